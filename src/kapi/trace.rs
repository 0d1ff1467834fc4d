// SPDX-License-Identifier: GPL-2.0

//! The module's tracepoints (`src/ffi/bdsnap_events.h`). Callable in any context.

use super::bdev::Dev;
use crate::ffi;

/// Why a write was parked.
#[derive(Clone, Copy)]
pub(crate) enum Parked {
    /// Its old data must be copied first.
    Copy = 0,
    /// The gate is closed.
    Gate = 1,
    /// No memory to count it.
    Memory = 2,
}

/// A write was parked; sectors are relative to the origin.
pub(crate) fn park(dev: Dev, sector: u64, sectors: u64, why: Parked) {
    // SAFETY: A tracepoint; takes plain numbers.
    unsafe { ffi::bdsnap_trace_park(dev.raw(), sector, sectors, why as u32) };
}

/// A run of granules is being copied to a slot of its store.
pub(crate) fn copy(dev: Dev, granule: u64, granules: u64, slot: u64) {
    // SAFETY: As above.
    unsafe { ffi::bdsnap_trace_copy(dev.raw(), granule, granules, slot) };
}

/// An origin was cut.
pub(crate) fn cut(dev: Dev, number: u64, gate_ns: u64) {
    // SAFETY: As above.
    unsafe { ffi::bdsnap_trace_cut(dev.raw(), number, gate_ns) };
}
