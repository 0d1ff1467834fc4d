// SPDX-License-Identifier: GPL-2.0

//! Freezing several file systems within a time limit.
//!
//! `freeze_super()` can't be interrupted, so a work item calls it. When the time is up the caller
//! goes; the worker thaws what it has frozen as soon as it comes back. Before the first freeze it
//! writes back what is dirty, so that the freezes are short.

use super::Registry;
use crate::kapi::abi;
use crate::kapi::abi::Refused;
use crate::kapi::freeze::FileSystem;
use crate::kapi::time;
use crate::kapi::time::Deadline;
use crate::tracker::Tracker;
use core::sync::atomic::AtomicI32;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::new_work;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::impl_has_work;
use kernel::workqueue::Work;
use kernel::workqueue::WorkItem;

/// The worker is freezing.
const FREEZING: u32 = 0;
/// It is still writing back.
const SYNCING: u32 = 4;
/// Writing back may take so many times as long as freezing.
const SYNC_FACTOR: u32 = 3;
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
    /// The origins: what users of the bare devices have written is written back too.
    origins: KVec<Arc<Tracker>>,
    /// How far it has come.
    phase: AtomicU32,
    /// The one being frozen, or that could not be.
    at: AtomicU32,
    /// The error number of that one.
    errno: AtomicI32,
    /// When the first freeze was begun.
    begun: AtomicU64,
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
    /// For these file systems, each once, and the origins below them. ENOMEM.
    pub(super) fn new(list: KVec<FileSystem>, origins: KVec<Arc<Tracker>>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                list,
                origins,
                phase: AtomicU32::new(SYNCING),
                at: AtomicU32::new(0),
                errno: AtomicI32::new(0),
                begun: AtomicU64::new(0),
                work <- new_work!("bdsnap::freeze"),
            }),
            GFP_KERNEL,
        )
    }

    /// Freezes all of them within `limit_ms`, once they are written back; the result is thawed when
    /// dropped. The refusal names the one that could not be frozen. Sleeps.
    pub(super) fn frozen(
        self: &Arc<Self>,
        registry: &Registry,
        limit_ms: u32,
    ) -> Result<Frozen, Refused> {
        let _ = registry.freezing.queue().enqueue(self.clone());
        self.wait(SYNCING, limit_ms.saturating_mul(SYNC_FACTOR))?;
        self.wait(FREEZING, limit_ms)?;
        if self.phase.load(Ordering::Acquire) == FROZEN {
            return Ok(Frozen(self.clone()));
        }
        let error = Error::from_errno(self.errno.load(Ordering::Acquire));
        let at = self.at.load(Ordering::Acquire) as usize;
        Err(Refused::new(error, abi::BDSNAP_CAUSE_FREEZE).of(at))
    }

    /// Waits until a phase is over. ETIMEDOUT: it isn't, and the worker is on its own now.
    fn wait(&self, phase: u32, limit_ms: u32) -> Result<(), Refused> {
        let over = || self.phase.load(Ordering::Acquire) != phase;
        if Deadline::after_ms(limit_ms).wait_until(over) {
            return Ok(());
        }
        let gave_up =
            self.phase
                .compare_exchange(phase, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
        if gave_up.is_err() {
            return Ok(());
        }
        let at = self.at.load(Ordering::Acquire) as usize;
        Err(Refused::new(ETIMEDOUT, abi::BDSNAP_CAUSE_FREEZE_TIMEOUT).of(at))
    }

    /// The worker's part.
    fn freeze(&self) {
        for (at, fs) in self.list.iter().enumerate() {
            self.at.store(at as u32, Ordering::Release);
            fs.sync();
        }
        for origin in self.origins.iter() {
            // What can't be written is lost to the bare device's user, who is told by fsync().
            let _ = origin.device.sync();
        }
        let go_on =
            self.phase
                .compare_exchange(SYNCING, FREEZING, Ordering::AcqRel, Ordering::Acquire);
        if go_on.is_err() {
            return;
        }
        // Until all is thawed, no portion of a store can be made there.
        for origin in self.origins.iter() {
            origin.lock_chain().hurried += 1;
        }
        self.begun.store(time::monotonic_ns(), Ordering::Release);
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

    /// Thaws the first `n`, the last first: once, after `freeze` has begun to.
    fn thaw(&self, n: usize) {
        for fs in self.list.iter().take(n).rev() {
            if fs.thaw().is_err() {
                pr_warn!("a file system could not be thawed: somebody else has done it\n");
            }
        }
        for origin in self.origins.iter() {
            let mut chain = origin.lock_chain();
            chain.hurried = chain.hurried.saturating_sub(1);
        }
    }
}

/// File systems that are frozen, until dropped.
pub(super) struct Frozen(Arc<Freezer>);

impl Frozen {
    /// When the first freeze was begun (`CLOCK_MONOTONIC`, nanoseconds).
    pub(super) fn since(&self) -> u64 {
        self.0.begun.load(Ordering::Acquire)
    }

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
