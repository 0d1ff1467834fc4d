// SPDX-License-Identifier: GPL-2.0
//! Kinds of change: which CBT blocks were discarded, and not written since.
//!
//! A block has a byte beside its number: [`WRITTEN`], [`PENDING`] or [`DISCARDED`]. What changes a
//! block does so between a *begin* (before it is let through) and an *end* (it is complete, and
//! not yet counted as such). A write, and whatever counts as one, stores `WRITTEN` at both. A
//! discard that covers the block wholly stores `PENDING` at its begin; at its end, if it went well,
//! it makes `DISCARDED` of `PENDING`, and of nothing else; if it failed it is a write.
//!
//! When nothing is in flight, a `DISCARDED` block had a discard that went well and began after
//! every write had ended: the last `PENDING` was stored by a discard `D`, after the ends of all
//! writes, or one of those would have come in between; and `D` went well, or its own end would
//! have. Which discard of several at a time made `DISCARDED` of it doesn't matter, so they need
//! not be told apart. A write and a discard of one block at the same time leave `WRITTEN`: the
//! device may have taken them in either order.
//!
//! While something is in flight, a `DISCARDED` block may yet turn out to be written.

use crate::units::Blocks;
use crate::units::Sectors;
use crate::units::Span;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::AcqRel;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;

/// Written last, or never discarded.
pub const WRITTEN: u8 = 0;

/// A discard is on its way, and nothing else was since it began.
pub const PENDING: u8 = 1;

/// Discarded last.
pub const DISCARDED: u8 = 2;

/// What changes blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Everything but a discard; also one that failed.
    Write,
    /// A discard: what it covers holds nothing that anybody wants.
    Discard,
}

/// The blocks that a change touches, by what it is for them: `tail` goes on where `whole` ends, and
/// that where `head` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Written, before the discarded ones.
    pub head: Span<Blocks>,
    /// Discarded as a whole.
    pub whole: Span<Blocks>,
    /// Written, after them.
    pub tail: Span<Blocks>,
}

/// Splits the blocks of `1 << shift` sectors that `change` touches with `span`, on a device of
/// `device_len` sectors.
pub fn parts(change: Change, span: Span<Sectors>, shift: u32, device_len: u64) -> Parts {
    let touched = span.outward::<Blocks>(shift);
    let inside = match change {
        Change::Write => Span::EMPTY,
        Change::Discard => span.inward::<Blocks>(shift, device_len),
    };
    let (head, rest) = touched.split_at(inside.start());
    let (whole, tail) = rest.split_at(inside.end());
    Parts { head, whole, tail }
}

/// The blocks with these bytes are being written, or were. Between the writing and this, at its
/// end, there must be a full barrier.
pub fn written(kinds: &[AtomicU8]) {
    for kind in kinds {
        // Rarely anything else, and then no cache line changes hands.
        if kind.load(Relaxed) != WRITTEN {
            kind.swap(WRITTEN, AcqRel);
        }
    }
}

/// The blocks with these bytes are about to be discarded. Between this and the discard there must
/// be a full barrier.
pub fn discarding(kinds: &[AtomicU8]) {
    for kind in kinds {
        kind.swap(PENDING, AcqRel);
    }
}

/// The blocks with these bytes have been discarded, and it went well.
pub fn discarded(kinds: &[AtomicU8]) {
    for kind in kinds {
        // One that fails was written meanwhile, or is discarded already.
        let _ = kind.compare_exchange(PENDING, DISCARDED, AcqRel, Relaxed);
    }
}

/// Whether a block was discarded last.
pub fn is_discarded(kind: &AtomicU8) -> bool {
    kind.load(Acquire) == DISCARDED
}
