// SPDX-License-Identifier: GPL-2.0

//! Keeps a store that does not answer from holding up the origin's writes for ever.

use super::chain::Chain;
use super::chain::Phase;
use crate::kapi::abi;
use crate::kapi::time;
use crate::tracker::Tracker;
use kernel::sync::Arc;

/// How often is looked, microseconds.
const PAUSE_US: i64 = 500_000;

/// How long writes may wait for a store that takes nothing, nanoseconds.
const STALL_NS: u64 = abi::BDSNAP_STALL_MS as u64 * 1_000_000;

/// Looks at the progress of the copying for as long as writes wait for it. Sleeps.
pub(crate) fn watch(tracker: &Arc<Tracker>) {
    loop {
        time::sleep_us(PAUSE_US);
        let mut chain = tracker.lock_chain();
        if chain.waiting.is_empty() {
            chain.watched = false;
            return;
        }
        let stalls = time::monotonic_ns().saturating_sub(chain.progress) > STALL_NS;
        if stalls {
            chain.give_up();
        }
        if stalls || chain.is_short() {
            drop(chain);
            // Those that wait may pass now; or, waiting for a portion, not wait any longer.
            tracker.kick();
        }
    }
}

impl Chain {
    /// Nothing has come back for long: gives up the versions whose stores are being written, and
    /// where that has been of no use, since they hold all the memory, every one. An origin that
    /// can't be read is nobody's fault here: its writes would hang without us, too.
    fn give_up(&mut self) {
        let cause = abi::BDSNAP_CAUSE_STORE_STALLED;
        let jobs = self.pool.as_ref().map_or(&[][..], |p| &*p.jobs);
        let mut writing = jobs
            .iter()
            .flatten()
            .filter(|j| matches!(j.phase, Phase::Write))
            .peekable();
        if writing.peek().is_none() {
            return;
        }
        let mut any = false;
        for job in writing {
            any |= job.version.is_live();
            job.version.fail(cause);
        }
        if !any {
            self.links.iter().for_each(|l| l.version.fail(cause));
        }
        self.progress = time::monotonic_ns();
    }
}
