// SPDX-License-Identifier: GPL-2.0

//! Scopes in which no allocation may start I/O.

use crate::ffi;
use kernel::types::NotThreadSafe;

/// While it lives, no allocation of this task starts I/O (`memalloc_noio_save()`).
pub(crate) struct Scope {
    saved: u32,
    _task: NotThreadSafe,
}

impl Scope {
    /// Begins a scope; scopes nest.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: The function only sets a flag of the current task.
            saved: unsafe { ffi::bdsnap_noio_save() },
            _task: NotThreadSafe,
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // SAFETY: `saved` is from the matching save, on the same task since the type isn't `Send`.
        unsafe { ffi::bdsnap_noio_restore(self.saved) };
    }
}
