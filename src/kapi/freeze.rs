// SPDX-License-Identifier: GPL-2.0

//! Freezing of file systems.
//!
//! Source: `freeze_super()`, with FREEZE_HOLDER_KERNEL | FREEZE_MAY_NEST: a user's FITHAW can't
//! undo it, and other freezers may come and go.

use super::file;
use super::file::FileRef;
use crate::ffi;
use kernel::error::to_result;
use kernel::prelude::*;

/// A file system, held by an open file on it.
pub(crate) struct FileSystem {
    file: FileRef,
}

impl FileSystem {
    /// By descriptor of the calling process. EBADF.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        Ok(Self {
            file: file::get(fd)?,
        })
    }

    /// Writes back what is dirty, while its users go on. Sleeps, possibly long.
    pub(crate) fn sync(&self) {
        // SAFETY: The super block is active while a file on it is open.
        unsafe { ffi::bdsnap_sync_fs(self.file.super_block()) };
    }

    /// Freezes it: all writes of its users wait, and what was written is on its device. Sleeps,
    /// possibly long, and can't be interrupted. Each success must be followed by one thaw.
    pub(crate) fn freeze(&self) -> Result {
        // SAFETY: The super block is active while a file on it is open.
        to_result(unsafe { ffi::bdsnap_freeze(self.file.super_block()) })
    }

    /// Takes back one freeze. Sleeps.
    pub(crate) fn thaw(&self) -> Result {
        // SAFETY: As above.
        to_result(unsafe { ffi::bdsnap_thaw(self.file.super_block()) })
    }

    /// Whether it is frozen at this moment (SB_FREEZE_COMPLETE), by whomever.
    pub(crate) fn is_frozen(&self) -> bool {
        // SAFETY: As above.
        unsafe { ffi::bdsnap_is_frozen(self.file.super_block()) }
    }
}
