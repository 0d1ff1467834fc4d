// SPDX-License-Identifier: GPL-2.0

//! Block devices, held open for reading.
//!
//! Source: `bdev_file_open_by_dev()`, `bdev_fput()`; `struct block_device`.

use crate::ffi;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::error::to_result;
use kernel::prelude::*;

/// A device number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dev(bindings::dev_t);

impl Dev {
    /// From major and minor; EINVAL if they don't fit (12 and 20 bits).
    pub(crate) fn new(major: u32, minor: u32) -> Result<Self> {
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(EINVAL);
        }
        // SAFETY: Plain arithmetic.
        Ok(Self(unsafe { ffi::bdsnap_mkdev(major, minor) }))
    }

    /// The kernel's `dev_t`.
    pub(crate) fn raw(self) -> bindings::dev_t {
        self.0
    }

    /// Its major number.
    pub(crate) fn major(self) -> u32 {
        // SAFETY: Plain arithmetic.
        unsafe { ffi::bdsnap_major(self.0) }
    }

    /// Its minor number.
    pub(crate) fn minor(self) -> u32 {
        // SAFETY: Plain arithmetic.
        unsafe { ffi::bdsnap_minor(self.0) }
    }
}

/// Identity of a disk (`struct gendisk`), good for comparing while somebody holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DiskId(usize);

impl DiskId {
    /// The disk that a block device belongs to.
    ///
    /// # Safety
    ///
    /// `bdev` must be valid.
    #[inline]
    pub(crate) unsafe fn of(bdev: *const bindings::block_device) -> Self {
        // SAFETY: The caller's promise; `bd_disk` never changes.
        Self(unsafe { (*bdev).bd_disk } as usize)
    }

    /// Of a disk by its C object, which is not looked into.
    #[inline]
    pub(super) fn of_disk(disk: *const bindings::gendisk) -> Self {
        Self(disk as usize)
    }
}

/// Length of a device name, with its NUL.
pub(crate) const NAME_LEN: usize = ffi::BDSNAP_NAME_LEN as usize;

/// A block device held open (for reading, not exclusively): it may vanish from the machine, but
/// not from memory.
///
/// # Invariants
///
/// `file` is an open file of a block device that this owns, `bdev` its block device.
pub(crate) struct BlockDevice {
    file: NonNull<bindings::file>,
    bdev: NonNull<bindings::block_device>,
}

// SAFETY: The file and the device are reference-counted objects usable from any thread.
unsafe impl Send for BlockDevice {}
// SAFETY: All methods only read fields that are safe to read in parallel.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    /// Opens by number. ENXIO, ENODEV: no such device; ENOMEDIUM and others from its driver.
    /// May sleep.
    pub(crate) fn open(dev: Dev) -> Result<Self> {
        // SAFETY: Holder and operations may be null for an open that isn't exclusive.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(
                dev.raw(),
                ffi::BDSNAP_BLK_OPEN_READ,
                core::ptr::null_mut(),
                core::ptr::null(),
            )
        })?;
        Self::of_file(file)
    }

    /// Opens by number for writing and for us alone, as a mounted file system does: nobody else can
    /// claim it, or mount it. What is dirty in its page cache is written back, and the cache
    /// emptied. EBUSY: somebody has claimed it (or a part of it); EROFS; ENXIO, ENODEV, ENOMEDIUM and
    /// others from its driver. Sleeps.
    pub(crate) fn claim(dev: Dev) -> Result<Self> {
        static HOLDER: u8 = 0;
        // SAFETY: The holder is an address of ours that stays, and is never looked into.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(
                dev.raw(),
                ffi::BDSNAP_BLK_OPEN_STORE,
                core::ptr::addr_of!(HOLDER).cast_mut().cast(),
                core::ptr::null(),
            )
        })?;
        let this = Self::of_file(file)?;
        // SAFETY: `bdev` is valid by the type invariant.
        to_result(unsafe { bindings::sync_blockdev(this.bdev.as_ptr()) })?;
        // SAFETY: As above.
        unsafe { bindings::invalidate_bdev(this.bdev.as_ptr()) };
        Ok(this)
    }

    /// Of an opened file.
    fn of_file(file: *mut bindings::file) -> Result<Self> {
        let file = NonNull::new(file).ok_or(ENODEV)?;
        // SAFETY: `file` is an open block device.
        let bdev = NonNull::new(unsafe { bindings::file_bdev(file.as_ptr()) }).ok_or(ENODEV)?;
        // INVARIANT: As opened.
        Ok(Self { file, bdev })
    }

    /// The C object, valid as long as `self`.
    pub(crate) fn as_ptr(&self) -> *mut bindings::block_device {
        self.bdev.as_ptr()
    }

    /// Its number.
    pub(crate) fn dev(&self) -> Dev {
        // SAFETY: `bdev` is valid by the type invariant; `bd_dev` never changes.
        Dev(unsafe { (*self.bdev.as_ptr()).bd_dev })
    }

    /// The disk it belongs to.
    pub(crate) fn disk(&self) -> DiskId {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { DiskId::of(self.bdev.as_ptr()) }
    }

    /// First sector on the disk: 0 for a whole disk.
    pub(crate) fn start_sector(&self) -> u64 {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { (*self.bdev.as_ptr()).bd_start_sect }
    }

    /// Size in sectors, as of now.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_sectors(self.bdev.as_ptr()) }
    }

    /// Number of the medium: another one means another disk (`diskseq`).
    pub(crate) fn medium(&self) -> u64 {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_diskseq(self.bdev.as_ptr()) }
    }

    /// Whether bios become requests in its driver's queue; else they are handled one by one.
    pub(crate) fn has_requests(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_has_requests(self.bdev.as_ptr()) }
    }

    /// Whether a cgroup's limit (`io.max`) may hold back bios for its disk, before they reach the
    /// driver. Once it may, it always may.
    pub(crate) fn is_throttled(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_throttled(self.bdev.as_ptr()) }
    }

    /// Whether it can be told which writes are in its driver: with requests it always can, and with others
    /// but for device-mapper, md and NVMe disks with several paths, which count only if `queue/iostats` is on.
    pub(crate) fn counts_writes(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_counts_writes(self.bdev.as_ptr()) }
    }

    /// Waits up to `ms` milliseconds until the writes that have reached the driver have completed:
    /// ETIMEDOUT. On a disk without requests new writes must be held back meanwhile: they can't be
    /// told from old ones. (One whose bios aren't counted, `queue/iostats`, is not waited for.)
    /// Sleeps.
    pub(crate) fn settle(&self, ms: u32) -> Result {
        // SAFETY: `bdev` is valid by the type invariant.
        to_result(unsafe { ffi::bdsnap_bdev_settle(self.bdev.as_ptr(), ms) })
    }

    /// Logical block size in bytes.
    pub(crate) fn logical_block(&self) -> u32 {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_logical(self.bdev.as_ptr()) }
    }

    /// How memory for its I/O must be aligned: a mask, of bytes.
    pub(crate) fn dma_alignment(&self) -> u32 {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_dma_alignment(self.bdev.as_ptr()) }
    }

    /// Physical block size in bytes.
    pub(crate) fn physical_block(&self) -> u32 {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_physical(self.bdev.as_ptr()) }
    }

    /// Whether it refuses writes (`bdev_read_only()`).
    pub(crate) fn is_read_only(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_read_only(self.bdev.as_ptr()) }
    }

    /// Whether it is zoned.
    pub(crate) fn is_zoned(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_zoned(self.bdev.as_ptr()) }
    }

    /// Whether its data can be mapped directly, so that stores bypass the block layer.
    pub(crate) fn is_dax(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_dax(self.bdev.as_ptr()) }
    }

    /// Whether its sectors carry protection information.
    pub(crate) fn has_integrity(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_integrity(self.bdev.as_ptr()) }
    }

    /// Whether its hardware encrypts bios that carry a key.
    pub(crate) fn has_inline_crypto(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_inline_crypto(self.bdev.as_ptr()) }
    }

    /// Whether its disk is still there (`disk_live()`).
    pub(crate) fn is_live(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_live(self.bdev.as_ptr()) }
    }

    /// Whether it is on an NVMe disk with several paths. Any context.
    pub(crate) fn is_nvme_head(&self) -> bool {
        // SAFETY: `bdev` is valid by the type invariant.
        unsafe { ffi::bdsnap_bdev_is_nvme_head(self.bdev.as_ptr()) }
    }

    /// Writes back what its page cache holds, and waits (`sync_blockdev()`). Sleeps.
    pub(crate) fn sync(&self) -> Result {
        // SAFETY: `bdev` is valid by the type invariant.
        to_result(unsafe { bindings::sync_blockdev(self.bdev.as_ptr()) })
    }

    /// Its kernel name ("vdb1"), NUL-terminated.
    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        let mut name = [0u8; NAME_LEN];
        // SAFETY: `bdev` is valid by the type invariant, the buffer has the length given.
        unsafe { ffi::bdsnap_bdev_name(self.bdev.as_ptr(), name.as_mut_ptr().cast(), NAME_LEN) };
        name
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this owns the file.
        unsafe { bindings::bdev_fput(self.file.as_ptr()) };
    }
}
