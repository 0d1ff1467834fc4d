// SPDX-License-Identifier: GPL-2.0

//! `/dev/bdsnap`: an open file is a session, which owns what it made until told otherwise.

use super::delete;
use super::Registry;
use super::REGISTRY;
use crate::kapi::abi;
use core::sync::atomic::Ordering;
use kernel::error::Result;
use kernel::fs::File;
use kernel::miscdevice::MiscDevice;
use kernel::miscdevice::MiscDeviceOptions;
use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;
use kernel::sync::ArcBorrow;

/// An open file of the control device.
pub(crate) struct Session {
    /// Its number, unique while the module is loaded.
    id: u64,
}

/// The control device.
pub(crate) fn register() -> impl PinInit<MiscDeviceRegistration<Session>, Error> {
    MiscDeviceRegistration::register(MiscDeviceOptions { name: c"bdsnap" })
}

/// The registry; ENODEV while the module starts or stops.
fn registry() -> Result<ArcBorrow<'static, Registry>> {
    REGISTRY.get().ok_or(ENODEV)
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = KBox<Self>;
    type OwnerModule = crate::Bdsnap;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let id = registry()?.next_session.fetch_add(1, Ordering::Relaxed);
        Ok(KBox::new(Self { id }, GFP_KERNEL)?)
    }

    fn release(session: KBox<Self>, _file: &File) {
        if let Ok(registry) = registry() {
            delete::end_session(&registry, session.id);
        }
    }

    fn ioctl(session: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if kernel::ioctl::_IOC_TYPE(cmd) != abi::BDSNAP_IOC_TYPE {
            return Err(ENOTTY);
        }
        let registry = registry()?;
        let nr = kernel::ioctl::_IOC_NR(cmd);
        if nr == abi::BDSNAP_NR_VERSION {
            return registry.version(arg).map(|()| 0);
        }
        let command = match nr {
            abi::BDSNAP_NR_TRACK => Registry::track,
            abi::BDSNAP_NR_UNTRACK => Registry::untrack,
            abi::BDSNAP_NR_LIST_ORIGINS => Registry::list_origins,
            abi::BDSNAP_NR_STORE_ADD => Registry::store_add,
            abi::BDSNAP_NR_STORE_DROP => Registry::store_drop,
            abi::BDSNAP_NR_SNAPSHOT_CREATE => Registry::snapshot_create,
            abi::BDSNAP_NR_SNAPSHOT_KEEP => Registry::snapshot_keep,
            abi::BDSNAP_NR_SNAPSHOT_DELETE => Registry::snapshot_delete,
            abi::BDSNAP_NR_LIST_SNAPSHOTS => Registry::list_snapshots,
            abi::BDSNAP_NR_LIST_VERSIONS => Registry::list_versions,
            abi::BDSNAP_NR_MAP_READ => Registry::map_read,
            abi::BDSNAP_NR_MARK => Registry::mark,
            abi::BDSNAP_NR_RECORD => Registry::record,
            abi::BDSNAP_NR_FREE => Registry::free,
            abi::BDSNAP_NR_EVENTS => Registry::events,
            abi::BDSNAP_NR_SNAPSHOT_NOTE => Registry::snapshot_note,
            abi::BDSNAP_NR_SERVE => Registry::serve,
            abi::BDSNAP_NR_SNAPSHOT_RELEASE => Registry::snapshot_release,
            abi::BDSNAP_NR_SINCE => Registry::since,
            _ => return Err(ENOTTY),
        };
        if !abi::is_admin() {
            return Err(EPERM);
        }
        command(&registry, session.id, arg).map(|()| 0)
    }
}
