// SPDX-License-Identifier: GPL-2.0
//! Calls for a work that come more often than it runs.
//!
//! A call while the work is running makes it go round once more. To queue it instead, as a workqueue
//! would take it, wakes another thread each time, which finds that the first one is at it.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering;

/// Nothing is wanted.
const IDLE: u32 = 0;
/// The work is queued, or somebody is about to queue it.
const QUEUED: u32 = 1;
/// It runs, and has not been called since this round began.
const RUNNING: u32 = 2;
/// It runs, and is to go round once more.
const AGAIN: u32 = 3;

/// Rounds in one run: then it is queued again, so that who flushes its queue comes to an end.
const ROUNDS: u32 = 16;

/// The calls for one work: something that a workqueue runs, never twice at a time.
pub struct Calls(AtomicU32);

impl Default for Calls {
    fn default() -> Self {
        Self::new()
    }
}

impl Calls {
    /// None yet.
    pub const fn new() -> Self {
        Self(AtomicU32::new(IDLE))
    }

    /// Calls for a round that begins after this; whether the work must be queued for it (to queue
    /// it twice does no harm: who was first may not have come to it). Any context.
    #[must_use]
    pub fn call(&self) -> bool {
        let mut now = self.0.load(Ordering::Relaxed);
        loop {
            let next = match now {
                RUNNING | AGAIN => AGAIN,
                _ => QUEUED,
            };
            match self
                .0
                .compare_exchange_weak(now, next, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => return next == QUEUED,
                Err(other) => now = other,
            }
        }
    }

    /// Runs rounds until there are no calls; whether the work must be queued again for more. By the work
    /// alone, which has been queued because of [`Calls::call`].
    #[must_use]
    pub fn answer(&self, mut round: impl FnMut()) -> bool {
        for _ in 0..ROUNDS {
            // What was there before the calls until now is seen in this round.
            self.0.swap(RUNNING, Ordering::SeqCst);
            round();
            let done = self
                .0
                .compare_exchange(RUNNING, IDLE, Ordering::SeqCst, Ordering::SeqCst);
            if done.is_ok() {
                return false;
            }
        }
        self.0.swap(QUEUED, Ordering::SeqCst);
        true
    }
}
