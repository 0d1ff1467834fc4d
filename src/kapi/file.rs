// SPDX-License-Identifier: GPL-2.0

//! Files whose blocks are used directly.
//!
//! Source: `S_SWAPFILE` in `include/linux/fs.h` (what swap files rely on), `->fiemap`, `bmap()`.

use super::bdev::BlockDevice;
use super::bdev::Dev;
use crate::ffi;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::fs::LocalFile;
use kernel::prelude::*;
use kernel::sync::aref::ARef;

/// A file by descriptor of the calling process. EBADF.
pub(super) fn get(fd: i32) -> Result<FileRef> {
    let fd = u32::try_from(fd).map_err(|_| EBADF)?;
    let file: ARef<LocalFile> = LocalFile::fget(fd).map_err(|_| EBADF)?;
    let ptr = NonNull::new(file.as_ptr()).ok_or(EBADF)?;
    core::mem::forget(file);
    // INVARIANT: The reference of the `ARef` is ours now.
    Ok(FileRef(ptr))
}

/// A reference to an open file; only its inode and super block are used.
///
/// # Invariants
///
/// Owns a reference to a valid file.
pub(super) struct FileRef(NonNull<bindings::file>);

// SAFETY: A file reference may be dropped on any thread, and what we read never changes.
unsafe impl Send for FileRef {}
// SAFETY: As above.
unsafe impl Sync for FileRef {}

impl FileRef {
    /// The C object.
    pub(super) fn as_ptr(&self) -> *mut bindings::file {
        self.0.as_ptr()
    }

    /// Its inode (`file_inode()`).
    pub(super) fn inode(&self) -> *mut bindings::inode {
        // SAFETY: The file is valid by the type invariant.
        unsafe { ffi::bdsnap_file_inode(self.0.as_ptr()) }
    }

    /// Its super block.
    pub(super) fn super_block(&self) -> *mut bindings::super_block {
        // SAFETY: An open file has an inode, an inode a super block.
        unsafe { (*self.inode()).i_sb }
    }
}

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// A regular file, open for writing, that nobody else uses by blocks.
pub(crate) struct BlockFile {
    file: FileRef,
}

impl BlockFile {
    /// By descriptor. EBADF; EINVAL: not a regular file open for writing.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        let file = get(fd)?;
        // SAFETY: The file is valid.
        if !unsafe { ffi::bdsnap_file_writable_regular(file.as_ptr()) } {
            return Err(EINVAL);
        }
        Ok(Self { file })
    }

    /// Whether its file system is of this type ("ext4").
    pub(crate) fn is_on(&self, fs: &CStr) -> bool {
        // SAFETY: A super block has a type with a name, a C string that lives as long.
        let name =
            unsafe { CStr::from_char_ptr(ffi::bdsnap_fs_name(self.file.super_block()).cast()) };
        name.to_bytes() == fs.to_bytes()
    }

    /// Whether its data is on another device than its metadata (XFS realtime).
    pub(crate) fn is_realtime(&self) -> bool {
        // SAFETY: The file is valid.
        unsafe { ffi::bdsnap_file_realtime(self.file.as_ptr()) }
    }

    /// Opens the device that its file system is on. ENODEV: on none.
    pub(crate) fn device(&self) -> Result<BlockDevice> {
        // SAFETY: The super block is valid as long as the file, and `s_bdev` as long as it.
        let dev = unsafe {
            let bdev = (*self.file.super_block()).s_bdev;
            if bdev.is_null() {
                return Err(ENODEV);
            }
            (*bdev).bd_dev
        };
        // SAFETY: Plain arithmetic.
        let (major, minor) = unsafe { (ffi::bdsnap_major(dev), ffi::bdsnap_minor(dev)) };
        BlockDevice::open(Dev::new(major, minor)?)
    }

    /// Nails its blocks down: from here on the file system moves none of them. EBUSY: it is a
    /// swap file or pinned already; errors of writing back what is dirty. Sleeps.
    pub(crate) fn pin(self) -> Result<PinnedFile> {
        // SAFETY: The inode is valid as long as the file.
        to_result(unsafe { ffi::bdsnap_inode_claim(self.file.inode()) })?;
        // INVARIANT: Claimed by us.
        let pinned = PinnedFile { file: self.file };
        // SAFETY: As above.
        to_result(unsafe { ffi::bdsnap_inode_settle(pinned.file.inode()) })?;
        Ok(pinned)
    }
}

/// A file whose blocks stay where they are (`S_SWAPFILE`), until dropped.
///
/// # Invariants
///
/// The flag was set by us.
pub(crate) struct PinnedFile {
    file: FileRef,
}

impl PinnedFile {
    /// Its size in bytes.
    pub(crate) fn len(&self) -> u64 {
        // SAFETY: The inode is valid as long as the file.
        u64::try_from(unsafe { ffi::bdsnap_inode_size(self.file.inode()) }).unwrap_or(0)
    }

    /// Has the file system write the mapping of the first `len` bytes into the user's buffer:
    /// room for `room` `struct fiemap_extent`. Returns how many there are in it. Errors of the
    /// file system; EOPNOTSUPP: it has no FIEMAP; EFAULT.
    pub(crate) fn fiemap(&self, len: u64, buffer: u64, room: u32) -> Result<u32> {
        let mut mapped = 0;
        // SAFETY: The inode is valid; the buffer is a user address that is checked on access.
        to_result(unsafe {
            ffi::bdsnap_inode_fiemap(
                self.file.inode(),
                len,
                buffer as *mut c_void,
                room,
                &mut mapped,
            )
        })?;
        Ok(mapped.min(room))
    }

    /// The mapping of a file system without FIEMAP that consists of clusters, from byte `from` to byte
    /// `upto`, which are in whole clusters but for the end: where on the device that begins, and how many
    /// bytes of it lie side by side. ENODATA: a hole; EOPNOTSUPP: it can't be asked; EINTR: a fatal signal;
    /// EINVAL. Sleeps.
    pub(crate) fn run(&self, from: u64, upto: u64) -> Result<(u64, u64)> {
        let (mut start, mut len) = (0, 0);
        // SAFETY: The inode is valid as long as the file.
        let bits = unsafe { ffi::bdsnap_inode_blkbits(self.file.inode()) };
        let first = from >> bits;
        let most = upto
            .checked_next_multiple_of(1 << bits)
            .and_then(|upto| (upto >> bits).checked_sub(first))
            .ok_or(EINVAL)?;
        // SAFETY: As above.
        to_result(unsafe {
            ffi::bdsnap_file_run(self.file.as_ptr(), first, most, &mut start, &mut len)
        })?;
        let start = start.checked_mul(1 << bits).ok_or(EINVAL)?;
        Ok((start, len << bits))
    }
}

impl Drop for PinnedFile {
    fn drop(&mut self) {
        // SAFETY: The inode is valid as long as the file, and the claim is ours.
        unsafe { ffi::bdsnap_inode_unclaim(self.file.inode()) };
    }
}
