// SPDX-License-Identifier: GPL-2.0

//! Workqueues of our own, so that they can be waited for when the module goes.
//!
//! Source: `alloc_workqueue()`.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;
use kernel::workqueue::Queue;

/// An owned workqueue; dropping it waits for what is queued.
///
/// # Invariants
///
/// The pointer is a workqueue that this owns.
pub(crate) struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue can be used and destroyed from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above; queueing is thread-safe.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue whose works run side by side. With `reclaim` it makes progress when memory is
    /// out (`WQ_MEM_RECLAIM`: it has a thread of its own for that), but its works may not wait for
    /// works of queues that don't. ENOMEM.
    pub(crate) fn new(name: &'static CStr, reclaim: bool) -> Result<Self> {
        let mut flags = bindings::wq_flags_WQ_UNBOUND;
        if reclaim {
            flags |= bindings::wq_flags_WQ_MEM_RECLAIM;
        }
        // SAFETY: The format has one string argument, which is a static C string.
        let ptr = unsafe {
            bindings::alloc_workqueue_noprof(c"%s".as_char_ptr(), flags, 0, name.as_char_ptr())
        };
        // INVARIANT: A fresh workqueue, ours.
        NonNull::new(ptr).map(Self).ok_or(ENOMEM)
    }

    /// Waits for what is queued or running. Sleeps.
    pub(crate) fn flush(&self) {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }

    /// The queue.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: By the type invariant the pointer is valid for as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own the queue, and nothing borrows it any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
