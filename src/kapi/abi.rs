// SPDX-License-Identifier: GPL-2.0

//! The structs and constants of `include/uapi/bdsnap.h`, and their way from and to user space.

use crate::ffi;
use core::mem::size_of;
use kernel::bindings;
use kernel::prelude::*;
use kernel::transmute::AsBytes;
use kernel::transmute::FromBytes;
use kernel::uaccess::UserPtr;
use kernel::uaccess::UserSlice;

pub(crate) use crate::ffi::*;

/// Why something that was asked for isn't done.
#[derive(Clone, Copy)]
pub(crate) struct Refused {
    /// The error number.
    pub(crate) error: Error,
    /// `BDSNAP_CAUSE_*`, 0: none.
    pub(crate) cause: u32,
    /// Which of several things.
    pub(crate) index: u32,
}

impl Refused {
    /// With this cause.
    pub(crate) fn new(error: Error, cause: u32) -> Self {
        Self {
            error,
            cause,
            index: 0,
        }
    }

    /// Of the thing with this index.
    pub(crate) fn of(self, index: usize) -> Self {
        Self {
            index: index as u32,
            ..self
        }
    }
}

impl<E: Into<Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::new(error.into(), 0)
    }
}

/// A struct of the ABI: plain old data, all bit patterns valid, no padding.
///
/// # Safety
///
/// As said; and its first field is `__u32 size` where [`read_arg`] is used for it.
pub(crate) unsafe trait Abi: Default {}

macro_rules! abi {
    ($($name:ident = $size:literal),* $(,)?) => {$(
        // SAFETY: Defined in the header with fixed-width fields and explicit padding, which the
        // check of its size proves.
        unsafe impl Abi for ffi::$name {}
        // SAFETY: As above.
        unsafe impl AsBytes for ffi::$name {}
        // SAFETY: As above.
        unsafe impl FromBytes for ffi::$name {}
        const _: () = assert!(size_of::<ffi::$name>() == $size);
    )*};
}

abi! {
    bdsnap_version = 56,
    bdsnap_track = 48,
    bdsnap_untrack = 16,
    bdsnap_list = 40,
    bdsnap_origin_info = 112,
    bdsnap_store_add = 96,
    bdsnap_snapshot_device = 80,
    bdsnap_snapshot_create = 128,
    bdsnap_snapshot_ref = 24,
    bdsnap_snapshot_info = 120,
    bdsnap_version_info = 184,
    bdsnap_map_read = 96,
    bdsnap_range = 16,
    bdsnap_mark = 32,
    bdsnap_events = 16,
    bdsnap_event = 104,
    bdsnap_snapshot_note = 40,
    bdsnap_serve = 16,
    bdsnap_store_drop = 16,
    bdsnap_record = 16,
    bdsnap_since = 40,
    fiemap_extent = 56,
}

impl Clone for ffi::bdsnap_event {
    fn clone(&self) -> Self {
        *self
    }
}
impl Copy for ffi::bdsnap_event {}

/// Reads an ioctl's argument: a struct that carries its size first.
///
/// EFAULT; EINVAL: smaller than `T`; E2BIG: larger, and the surplus not zero.
pub(crate) fn read_arg<T: Abi + FromBytes + AsBytes>(arg: usize) -> Result<T> {
    let size = UserSlice::new(UserPtr::from_addr(arg), size_of::<u32>())
        .reader()
        .read::<u32>()? as usize;
    if size < size_of::<T>() {
        return Err(EINVAL);
    }
    if size > 4096 {
        return Err(E2BIG);
    }
    let mut reader = UserSlice::new(UserPtr::from_addr(arg), size).reader();
    let value = reader.read::<T>()?;
    let mut surplus = size - size_of::<T>();
    while surplus > 0 {
        if reader.read::<u8>()? != 0 {
            return Err(E2BIG);
        }
        surplus -= 1;
    }
    Ok(value)
}

/// Writes the known part of an ioctl's argument back. EFAULT.
pub(crate) fn write_arg<T: Abi + AsBytes>(arg: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .writer()
        .write(value)
}

/// Reads `count` items from a user's array. EFAULT, ENOMEM; EOVERFLOW where the size overflows.
pub(crate) fn read_array<T: FromBytes + AsBytes>(addr: u64, count: usize) -> Result<KVVec<T>> {
    let bytes = count.checked_mul(size_of::<T>()).ok_or(EOVERFLOW)?;
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    let mut items = KVVec::with_capacity(count, GFP_KERNEL)?;
    let mut reader = UserSlice::new(UserPtr::from_addr(addr), bytes).reader();
    for _ in 0..count {
        items.push(reader.read::<T>()?, GFP_KERNEL)?;
    }
    Ok(items)
}

/// Writes items to a user's array. EFAULT.
pub(crate) fn write_array<T: AsBytes>(addr: u64, items: &[T]) -> Result {
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    let bytes = items.len().checked_mul(size_of::<T>()).ok_or(EOVERFLOW)?;
    let mut writer = UserSlice::new(UserPtr::from_addr(addr), bytes).writer();
    for item in items {
        writer.write(item)?;
    }
    Ok(())
}

/// Writes a list's item at place `index` of an array of `stride` bytes an item: cut or padded
/// with zeros. EFAULT.
pub(crate) fn write_item<T: Abi + AsBytes>(
    addr: u64,
    index: usize,
    stride: usize,
    item: &T,
) -> Result {
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    let at = index
        .checked_mul(stride)
        .and_then(|o| addr.checked_add(o))
        .ok_or(EFAULT)?;
    let mut writer = UserSlice::new(UserPtr::from_addr(at), stride).writer();
    let known = size_of::<T>().min(stride);
    // SAFETY: `T` is plain data without padding, `known` at most its size.
    let bytes =
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(item).cast::<u8>(), known) };
    writer.write_slice(bytes)?;
    for _ in known..stride {
        writer.write(&0u8)?;
    }
    Ok(())
}

/// Whether the caller may administer the system (`CAP_SYS_ADMIN`).
pub(crate) fn is_admin() -> bool {
    // SAFETY: Looks at the current task's credentials.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) }
}

/// Whether the calling process is being killed: it should not work on for long.
pub(crate) fn is_dying() -> bool {
    // SAFETY: Looks at the current task.
    unsafe { ffi::bdsnap_fatal_signal() }
}

/// A random (version 4) UUID, in RFC 4122 byte order.
pub(crate) fn random_uuid() -> [u8; 16] {
    let mut uuid = [0u8; 16];
    // SAFETY: Writes 16 bytes.
    unsafe { bindings::generate_random_uuid(uuid.as_mut_ptr()) };
    uuid
}

/// Keeps the module from being unloaded, until dropped.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// ENODEV: it is being unloaded.
    pub(crate) fn get() -> Result<Self> {
        // SAFETY: A valid module pointer: our own.
        if unsafe {
            bindings::try_module_get(kernel::module::this_module::<crate::Bdsnap>().as_ptr())
        } {
            Ok(Self(()))
        } else {
            Err(ENODEV)
        }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: As above; the reference is ours.
        unsafe { bindings::module_put(kernel::module::this_module::<crate::Bdsnap>().as_ptr()) };
    }
}
