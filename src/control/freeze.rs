// SPDX-License-Identifier: GPL-2.0

//! Freezing several file systems within a time limit.
//!
//! `freeze_super()` can't be interrupted, so a work item calls it. When the time is up the caller
//! goes; the worker thaws what it has frozen as soon as it comes back.

use super::Registry;
use crate::kapi::abi;
use crate::kapi::abi::Refused;
use crate::kapi::freeze::FileSystem;
use crate::kapi::time::Deadline;
use core::sync::atomic::AtomicI32;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering;
use kernel::new_work;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::impl_has_work;
use kernel::workqueue::Work;
use kernel::workqueue::WorkItem;

/// The worker is freezing.
const FREEZING: u32 = 0;
/// All are frozen: they are the caller's to thaw.
const FROZEN: u32 = 1;
/// One could not be frozen, and the others are thawed.
const FAILED: u32 = 2;
/// The caller has gone: they are the worker's to thaw.
const ABANDONED: u32 = 3;

/// Some file systems, frozen in their order.
#[pin_data]
pub(super) struct Freezer {
    /// The file systems, top first.
    list: KVec<FileSystem>,
    /// How far it has come.
    phase: AtomicU32,
    /// The one being frozen, or that could not be.
    at: AtomicU32,
    /// The error number of that one.
    errno: AtomicI32,
    /// Freezes.
    #[pin]
    work: Work<Freezer>,
}

impl_has_work! {
    impl HasWork<Freezer> for Freezer { self.work }
}

impl WorkItem for Freezer {
    type Pointer = Arc<Freezer>;

    fn run(this: Arc<Freezer>) {
        this.freeze();
    }
}

impl Freezer {
    /// For these file systems, each once. ENOMEM.
    pub(super) fn new(list: KVec<FileSystem>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                list,
                phase: AtomicU32::new(FREEZING),
                at: AtomicU32::new(0),
                errno: AtomicI32::new(0),
                work <- new_work!("bdsnap::freeze"),
            }),
            GFP_KERNEL,
        )
    }

    /// Freezes all of them until the deadline; the result is thawed when dropped. The refusal
    /// names the one that could not be frozen. Sleeps.
    pub(super) fn frozen(
        self: &Arc<Self>,
        registry: &Registry,
        deadline: Deadline,
    ) -> Result<Frozen, Refused> {
        if self.list.is_empty() {
            self.phase.store(FROZEN, Ordering::Release);
            return Ok(Frozen(self.clone()));
        }
        let _ = registry.freezing.queue().enqueue(self.clone());
        let ended = deadline.wait_until(|| self.phase.load(Ordering::Acquire) != FREEZING);
        if !ended {
            let gave_up = self.phase.compare_exchange(
                FREEZING,
                ABANDONED,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if gave_up.is_ok() {
                let at = self.at.load(Ordering::Acquire) as usize;
                return Err(Refused::new(ETIMEDOUT, abi::BDSNAP_CAUSE_FREEZE_TIMEOUT).of(at));
            }
        }
        if self.phase.load(Ordering::Acquire) == FROZEN {
            return Ok(Frozen(self.clone()));
        }
        let error = Error::from_errno(self.errno.load(Ordering::Acquire));
        let at = self.at.load(Ordering::Acquire) as usize;
        Err(Refused::new(error, abi::BDSNAP_CAUSE_FREEZE).of(at))
    }

    /// The worker's part.
    fn freeze(&self) {
        for (at, fs) in self.list.iter().enumerate() {
            if self.phase.load(Ordering::Acquire) == ABANDONED {
                return self.thaw(at);
            }
            self.at.store(at as u32, Ordering::Release);
            if let Err(e) = fs.freeze() {
                self.thaw(at);
                self.errno.store(e.to_errno(), Ordering::Release);
                self.phase.store(FAILED, Ordering::Release);
                return;
            }
        }
        let done =
            self.phase
                .compare_exchange(FREEZING, FROZEN, Ordering::AcqRel, Ordering::Acquire);
        if done.is_err() {
            self.thaw(self.list.len());
        }
    }

    /// Thaws the first `n`, the last first.
    fn thaw(&self, n: usize) {
        for fs in self.list.iter().take(n).rev() {
            if fs.thaw().is_err() {
                pr_warn!("a file system could not be thawed: somebody else has done it\n");
            }
        }
    }
}

/// File systems that are frozen, until dropped.
pub(super) struct Frozen(Arc<Freezer>);

impl Frozen {
    /// The first that isn't frozen at this moment, against all odds.
    pub(super) fn first_thawed(&self) -> Option<usize> {
        self.0.list.iter().position(|fs| !fs.is_frozen())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.thaw(self.0.list.len());
    }
}
