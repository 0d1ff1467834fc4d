// SPDX-License-Identifier: GPL-2.0

//! Clocks and short sleeps.

use crate::ffi;
use kernel::time::delay::fsleep;
use kernel::time::Delta;

/// Nanoseconds of `CLOCK_REALTIME`.
pub(crate) fn realtime_ns() -> u64 {
    // SAFETY: Reads a clock, in any context.
    unsafe { ffi::bdsnap_realtime_ns() }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: Reads a clock, in any context.
    unsafe { ffi::bdsnap_monotonic_ns() }
}

/// Nanoseconds in a millisecond.
const NS_PER_MS: u64 = 1_000_000;

/// A point in time after which waiting ends.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(u64);

impl Deadline {
    /// `ms` milliseconds from now.
    pub(crate) fn after_ms(ms: u32) -> Self {
        Self(monotonic_ns().saturating_add(u64::from(ms).saturating_mul(NS_PER_MS)))
    }

    /// Whether it has passed.
    pub(crate) fn passed(self) -> bool {
        monotonic_ns() >= self.0
    }

    /// Polls `done` until it is true or the time is up; says which. Sleeps in between, first
    /// short, then up to a millisecond.
    pub(crate) fn wait_until(self, mut done: impl FnMut() -> bool) -> bool {
        let mut pause: i64 = 50;
        loop {
            if done() {
                return true;
            }
            if self.passed() {
                return done();
            }
            sleep_us(pause);
            pause = (pause * 2).min(1000);
        }
    }
}

/// Sleeps for about `us` microseconds.
pub(crate) fn sleep_us(us: i64) {
    fsleep(Delta::from_micros(us));
}
