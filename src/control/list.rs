// SPDX-License-Identifier: GPL-2.0

//! The lists of what there is.

use super::create::copy_name;
use super::Registry;
use super::Snapshot;
use crate::cow::Damage;
use crate::event;
use crate::image::Image;
use crate::kapi::abi;
use crate::kapi::abi::Abi;
use crate::kapi::bdev::BlockDevice;
use crate::kapi::bdev::Dev;
use crate::store;
use crate::tracker::Tracker;
use bdsnap_logic::units::SECTOR_SHIFT;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::transmute::AsBytes;

/// Reads the argument of a list, checked; only the list of versions has an id.
fn list_arg(arg: usize, with_id: bool) -> Result<abi::bdsnap_list> {
    let a = abi::read_arg::<abi::bdsnap_list>(arg)?;
    let item_ok = a.item_size % 8 == 0 && (8..=4096).contains(&a.item_size);
    let id_ok = with_id || a.id == [0; 16];
    if a.flags != 0 || !item_ok || !id_ok {
        return Err(EINVAL);
    }
    Ok(a)
}

/// Writes as many items as there is room for, and how many there are.
fn list<T: Abi + AsBytes>(
    arg: usize,
    mut a: abi::bdsnap_list,
    items: impl ExactSizeIterator<Item = Result<T>>,
) -> Result {
    let (room, total) = (a.count as usize, items.len());
    for (index, item) in items.take(room).enumerate() {
        abi::write_item(a.buffer, index, a.item_size as usize, &item?)?;
    }
    a.count = u32::try_from(total)?;
    abi::write_arg(arg, &a)
}

impl Registry {
    /// BDSNAP_IOC_LIST_ORIGINS.
    pub(super) fn list_origins(&self, _session: u64, arg: usize) -> Result {
        let a = list_arg(arg, false)?;
        let state = self.state.lock();
        list(arg, a, state.trackers.iter().map(|t| Ok(origin(t))))
    }

    /// BDSNAP_IOC_LIST_SNAPSHOTS.
    pub(super) fn list_snapshots(&self, _session: u64, arg: usize) -> Result {
        let a = list_arg(arg, false)?;
        let state = self.state.lock();
        list(arg, a, state.snapshots.iter().map(|s| Ok(snapshot(s))))
    }

    /// BDSNAP_IOC_LIST_VERSIONS.
    pub(super) fn list_versions(&self, _session: u64, arg: usize) -> Result {
        let a = list_arg(arg, true)?;
        let state = self.state.lock();
        let snapshot = state
            .snapshots
            .iter()
            .find(|s| s.id == a.id)
            .ok_or(ENOENT)?;
        list(arg, a, snapshot.images.iter().map(|i| Ok(version(i))))
    }
}

impl Registry {
    /// BDSNAP_IOC_SNAPSHOT_NOTE.
    pub(super) fn snapshot_note(&self, _session: u64, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_snapshot_note>(arg)?;
        if a.flags != 0 || a.reserved != 0 {
            return Err(EINVAL);
        }
        let state = self.state.lock();
        let snapshot = state.snapshots.iter().find(|s| s.id == a.id);
        let note = &snapshot.ok_or(ENOENT)?.note;
        let part = note.get(..a.length as usize).unwrap_or(note);
        abi::write_array(a.buffer, part)?;
        a.length = note.len() as u32;
        abi::write_arg(arg, &a)
    }

    /// BDSNAP_IOC_SERVE.
    pub(super) fn serve(&self, session: u64, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_serve>(arg)?;
        if a.flags & !abi::BDSNAP_SERVE_QUERY != 0 || a.reserved != 0 {
            return Err(EINVAL);
        }
        // A caller that can't be told gets nothing.
        abi::write_arg(arg, &a)?;
        let mut state = self.state.lock();
        if a.flags & abi::BDSNAP_SERVE_QUERY == 0 {
            if state.server.is_some_and(|server| server != session) {
                return Err(EBUSY);
            }
            state.server = Some(session);
            store::set_served(true);
        }
        a.served = u32::from(state.server.is_some());
        abi::write_arg(arg, &a)
    }

    /// BDSNAP_IOC_EVENTS.
    pub(super) fn events(&self, _session: u64, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_events>(arg)?;
        if a.flags != 0 || a.reserved != 0 {
            return Err(EINVAL);
        }
        // A caller that can't be told gets nothing.
        abi::write_arg(arg, &a)?;
        a.fd = event::open()?;
        abi::write_arg(arg, &a)
    }
}

/// What there is to say of an origin.
fn origin(tracker: &Arc<Tracker>) -> abi::bdsnap_origin_info {
    let (number, oldest) = tracker.map.numbers();
    let (copied, parked) = tracker.counts();
    let cause = tracker.ended();
    let state = match cause {
        _ if !tracker.device.is_live() => abi::BDSNAP_ORIGIN_GONE,
        0 => abi::BDSNAP_ORIGIN_TRACKED,
        abi::BDSNAP_CAUSE_ORIGIN_GONE => abi::BDSNAP_ORIGIN_GONE,
        abi::BDSNAP_CAUSE_RESIZED => abi::BDSNAP_ORIGIN_RESIZED,
        _ => abi::BDSNAP_ORIGIN_RESET,
    };
    let mut info = abi::bdsnap_origin_info {
        major: tracker.dev().major(),
        minor: tracker.dev().minor(),
        device_size: tracker.sectors() << SECTOR_SHIFT,
        block_size: 1 << (tracker.map.shift() + SECTOR_SHIFT),
        state,
        cause,
        generation: tracker.generation,
        number,
        oldest,
        snapshots: tracker.lock_chain().len() as u32,
        bytes_copied: copied,
        writes_parked: parked,
        ..Default::default()
    };
    copy_name(&mut info.name, &tracker.device.name());
    info
}

/// State and cause of a version, as of now: what has just become of its origin counts.
fn health(image: &Image) -> (u32, u32) {
    let _ = image.tracker().ended();
    match image.version().damage() {
        Damage::None => (abi::BDSNAP_SNAPSHOT_OK, 0),
        Damage::Parts(cause) => (abi::BDSNAP_SNAPSHOT_DAMAGED, cause),
        Damage::All(cause) => (abi::BDSNAP_SNAPSHOT_FAILED, cause),
    }
}

/// What there is to say of a snapshot.
fn snapshot(snapshot: &Snapshot) -> abi::bdsnap_snapshot_info {
    let (state, cause) = snapshot.images.iter().map(health).max().unwrap_or((0, 0));
    let shift = snapshot.images.first().map_or(0, |i| i.version().shift()) + SECTOR_SHIFT;
    let mut info = abi::bdsnap_snapshot_info {
        id: snapshot.id,
        created_ns: snapshot.created_ns,
        state,
        cause,
        device_count: snapshot.images.len() as u32,
        granule: 1 << shift,
        kept: u32::from(snapshot.owner.is_none()),
        store_seconds: u64::MAX,
        note_len: snapshot.note.len() as u32,
        ..Default::default()
    };
    let Some(store) = &snapshot.store else {
        return info;
    };
    let (fill, dev) = (store.fill(), store.device().map(BlockDevice::dev));
    let outlook = store.outlook();
    info.store_capacity = fill.total << shift;
    info.store_used = fill.used << shift;
    info.store_limit = outlook.limit;
    info.store_major = dev.map_or(0, Dev::major);
    info.store_minor = dev.map_or(0, Dev::minor);
    info.store_rate = outlook.rate;
    info.hold_ms = outlook.hold_ms;
    info.run = store.run_bytes() as u32;
    // One that has failed needs nothing any more.
    if !snapshot.has_failed() {
        info.store_waiting = u32::from(outlook.is_waited_for);
        info.store_wanted = outlook.wanted;
        info.store_seconds = outlook.seconds.unwrap_or(u64::MAX);
    }
    info
}

/// What there is to say of a version.
fn version(image: &Image) -> abi::bdsnap_version_info {
    let (tracker, version) = (image.tracker(), image.version());
    let (state, cause) = health(image);
    let shift = version.shift() + SECTOR_SHIFT;
    let (copied, lost, not_kept) = version.counts();
    let (free, unneeded) = version.spared();
    let since = version.since();
    let mut info = abi::bdsnap_version_info {
        major: tracker.dev().major(),
        minor: tracker.dev().minor(),
        image_major: image.dev.major(),
        image_minor: image.dev.minor(),
        device_size: version.sectors() << SECTOR_SHIFT,
        generation: tracker.generation,
        number: version.view.number(),
        state,
        cause,
        bytes_copied: copied << shift,
        bytes_lost: lost << shift,
        bytes_not_kept: not_kept << shift,
        bytes_free: free << shift,
        bytes_unneeded: unneeded << shift,
        bytes_released: version.released() << shift,
        flags: since.map_or(0, |_| abi::BDSNAP_VERSION_SINCE),
        since: since.unwrap_or(0),
        openers: image.openers(),
        ..Default::default()
    };
    copy_name(&mut info.name, &tracker.device.name());
    copy_name(&mut info.image_name, &image.name);
    info
}
