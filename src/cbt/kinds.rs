// SPDX-License-Identifier: GPL-2.0

//! Kinds of change: which blocks were discarded and not written since.
//!
//! One byte for each CBT block, in pages that are made at the first discard there. What the bytes
//! mean, and why they are right, is [`bdsnap_logic::kind`]'s business. A page that isn't there,
//! for want of memory too, says "written".

use super::map::place;
use crate::kapi::inflight::Watch;
use crate::kapi::slot;
use crate::kapi::slot::BytePage;
use crate::kapi::slot::Slot;
use crate::kapi::slot::PAGE_BYTES;
use bdsnap_logic::kind;
use bdsnap_logic::kind::Change;
use bdsnap_logic::kind::Parts;
use bdsnap_logic::units::Blocks;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::sync::atomic::fence;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The kinds of one origin's blocks.
pub(crate) struct Kinds {
    /// Sectors in a block, as a shift.
    shift: u32,
    /// Sectors of the origin.
    sectors: u64,
    /// Their bytes.
    pages: KVVec<Slot<BytePage>>,
    /// Whether there has been any discard: set before its page is looked for, and never taken back.
    any: AtomicBool,
}

impl Kinds {
    /// For `sectors` sectors in blocks of `1 << shift` sectors: nothing discarded. ENOMEM. May
    /// sleep.
    pub(crate) fn new(sectors: u64, shift: u32) -> Result<Arc<Self>> {
        let all = Span::<Sectors>::of_len(0, sectors).unwrap_or(Span::EMPTY);
        let blocks = all.outward::<Blocks>(shift).len();
        let pages = slot::slots(usize::try_from(blocks.div_ceil(PAGE_BYTES as u64))?)?;
        Ok(Arc::new(
            Self {
                shift,
                sectors,
                pages,
                any: AtomicBool::new(false),
            },
            GFP_KERNEL,
        )?)
    }

    /// Sectors in a block, as a shift.
    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    /// Splits the blocks that a change touches.
    #[inline]
    pub(super) fn parts(&self, change: Change, span: Span<Sectors>) -> Parts {
        kind::parts(change, span, self.shift, self.sectors)
    }

    /// The bytes of a page, if there was a discard in it.
    #[inline]
    pub(super) fn page(&self, page: usize) -> Option<&BytePage> {
        self.pages.get(page).and_then(Slot::get)
    }

    /// Blocks of one page are about to be written. Any context.
    #[inline]
    pub(super) fn writing(&self, blocks: Span<Blocks>) {
        if blocks.is_empty() || !self.any.load(Ordering::Relaxed) {
            return;
        }
        if let Some(kinds) = self.bytes(blocks) {
            kind::written(kinds);
        }
    }

    /// Blocks of one page are about to be discarded. Any context that may take memory with
    /// GFP_NOWAIT.
    pub(super) fn discarding(&self, blocks: Span<Blocks>) {
        if blocks.is_empty() {
            return;
        }
        if !self.any.load(Ordering::Relaxed) {
            self.any.store(true, Ordering::Relaxed);
        }
        let (page, _) = place(blocks.start());
        if let Some(slot) = self.pages.get(page).filter(|s| s.get().is_none()) {
            if let Ok(zeros) = slot::zeroed(slot::NOWAIT) {
                slot.put(Some(zeros));
            }
        }
        if let Some(kinds) = self.bytes(blocks) {
            kind::discarding(kinds);
        }
        // See `ended`.
        fence(Ordering::SeqCst);
    }

    /// The bytes of blocks of one page.
    #[inline]
    fn bytes(&self, blocks: Span<Blocks>) -> Option<&[AtomicU8]> {
        let (page, first) = place(blocks.start());
        let end = first.checked_add(usize::try_from(blocks.len()).ok()?)?;
        self.page(page)?.get(first..end)
    }
}

/// Splits blocks at the borders of pages.
pub(super) fn pieces(blocks: Span<Blocks>) -> impl Iterator<Item = Span<Blocks>> {
    let mut rest = blocks;
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let border = (rest.start() / PAGE_BYTES as u64 + 1).saturating_mul(PAGE_BYTES as u64);
        let (piece, others) = rest.split_at(border);
        rest = others;
        Some(piece)
    })
}

impl Watch for Kinds {
    fn ended(&self, change: Change, span: Span<Sectors>, ok: bool) {
        let change = if ok { change } else { Change::Write };
        // Either a discard of the same blocks that begins now finds what was written on the
        // device, or its marks are found here (`any` is one of them).
        fence(Ordering::SeqCst);
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let parts = self.parts(change, span);
        for written in [parts.head, parts.tail] {
            for piece in pieces(written) {
                self.writing(piece);
            }
        }
        for piece in pieces(parts.whole) {
            if let Some(kinds) = self.bytes(piece) {
                kind::discarded(kinds);
            }
        }
    }
}
