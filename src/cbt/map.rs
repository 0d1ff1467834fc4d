// SPDX-License-Identifier: GPL-2.0

//! The change map: one byte for each CBT block, in pages.
//!
//! A write marks its blocks before it is let through, without a lock. What the bytes mean is
//! [`bdsnap_logic::cbt`]'s business. A [`View`] keeps what the map was at a cut: a page of the map
//! is put aside at the first mark after the cut. Where there is no memory for that, the view
//! says "changed" for the whole page. The kinds of change go the same way.

use super::kinds::pieces;
use super::Kinds;
use crate::kapi::abi;
use crate::kapi::inflight::Watch;
use crate::kapi::pages;
use crate::kapi::slot;
use crate::kapi::slot::BytePage;
use crate::kapi::slot::Content;
use crate::kapi::slot::Slot;
use crate::kapi::slot::PAGE_BYTES;
use bdsnap_logic::cbt;
use bdsnap_logic::cbt::Clock;
use bdsnap_logic::kind;
use bdsnap_logic::kind::Change;
use bdsnap_logic::kind::Parts;
use bdsnap_logic::units::Blocks;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::Mutex;

/// In a value that was read: the block was discarded, and not written since.
const DISCARDED: u32 = crate::kapi::abi::BDSNAP_MAP_DISCARDED;

/// The change map of one origin, for one generation.
#[pin_data]
pub(crate) struct Map {
    /// How many blocks.
    blocks: u64,
    /// Their bytes.
    pages: KVVec<KBox<BytePage>>,
    /// The kinds of their changes.
    kinds: Arc<Kinds>,
    /// The mark number, which writes are marked with now.
    mark: AtomicU64,
    /// The byte for it.
    code: AtomicU8,
    /// The numbers.
    #[pin]
    clock: Mutex<Clock>,
}

/// A map as of a cut.
pub(crate) struct View {
    /// The number of the cut.
    number: u64,
    /// Pages that were put aside.
    pages: KVVec<Slot<Saved>>,
}

/// A page that was put aside.
struct Saved {
    /// What of the map.
    bytes: KBox<BytePage>,
    /// What of the kinds; none: all written.
    kinds: Option<KBox<BytePage>>,
}

impl Saved {
    /// A copy of a page and its kinds, if there is memory for the page.
    fn copy(
        bytes: &BytePage,
        kinds: Option<&BytePage>,
        flags: kernel::alloc::Flags,
    ) -> Option<KBox<Self>> {
        let bytes = copy(bytes, flags)?;
        let kinds = kinds.and_then(|k| copy(k, flags));
        KBox::new(Self { bytes, kinds }, flags).ok()
    }
}

impl View {
    /// The number of the cut that it shows.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Takes over what a newer view, about to go, has put aside and this one has not. Where memory
    /// is out the page counts as changed. May sleep.
    pub(crate) fn inherit(&self, newer: &View) {
        for (own, newer) in self.pages.iter().zip(newer.pages.iter()) {
            match (own.content(), newer.content()) {
                (Content::Empty, Content::Full(page)) => {
                    own.put(Saved::copy(&page.bytes, page.kinds.as_deref(), GFP_KERNEL));
                }
                (Content::Empty, Content::Void) => own.put(None),
                _ => (),
            }
        }
    }
}

/// Where pages are put aside at the first mark after a cut.
#[derive(Clone, Copy)]
pub(crate) struct Aside<'a> {
    /// The view of the newest version.
    pub(crate) view: &'a View,
    /// Whether it is still getting pages from a newer one that has gone: what the map is now may
    /// be too new for it, and it rather says "changed".
    pub(crate) settling: bool,
}

/// A copy of a page, if there is memory.
fn copy(page: &BytePage, flags: kernel::alloc::Flags) -> Option<KBox<BytePage>> {
    let copy = slot::zeroed::<BytePage>(flags).ok()?;
    for (to, from) in copy.iter().zip(page.iter()) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    Some(copy)
}

/// Place of a block: page and byte.
pub(super) fn place(block: u64) -> (usize, usize) {
    let block = usize::try_from(block).unwrap_or(usize::MAX);
    (block / PAGE_BYTES, block % PAGE_BYTES)
}

impl Map {
    /// A new map, number 0, nothing changed, for `sectors` sectors in the blocks of `kinds`. ENOMEM.
    /// May sleep.
    pub(crate) fn new(sectors: u64, kinds: Arc<Kinds>) -> impl PinInit<Self, Error> {
        let all = Span::<Sectors>::of_len(0, sectors).unwrap_or(Span::EMPTY);
        let blocks = all.outward::<Blocks>(kinds.shift()).len();
        try_pin_init!(Self {
            pages: zero_pages(blocks)?,
            kinds,
            blocks,
            mark: AtomicU64::new(1),
            code: AtomicU8::new(cbt::code(1)),
            clock <- new_mutex!(Clock::new()),
        })
    }

    /// How many blocks it has.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Sectors in a block, as a shift.
    pub(crate) fn shift(&self) -> u32 {
        self.kinds.shift()
    }

    /// The number of the newest cut, and the oldest that can be asked about.
    pub(crate) fn numbers(&self) -> (u64, u64) {
        let clock = self.clock.lock();
        (clock.number(), clock.oldest())
    }

    /// Whether it can tell what changed between these cuts. To be asked *after* reading.
    pub(crate) fn can_answer(&self, since: u64, as_of: u64) -> bool {
        self.clock.lock().can_answer(since, as_of)
    }

    /// A view for the next cut. ENOMEM. May sleep; the cut must follow under the same lock.
    pub(crate) fn prepare_view(&self) -> Result<View> {
        Ok(View {
            number: self.clock.lock().mark(),
            pages: slot::slots(self.pages.len())?,
        })
    }

    /// Marks the blocks that `span` touches. `aside`: the newest version's view, None if there is no
    /// version. What doesn't come to an end that the [`Kinds`] see is a [`Change::Write`]. Any
    /// context that may take memory with GFP_NOWAIT.
    #[inline]
    pub(crate) fn mark(&self, change: Change, span: Span<Sectors>, aside: Option<Aside<'_>>) {
        let code = self.code.load(Ordering::Relaxed);
        let (written, discarded) = match change {
            Change::Write => (span.outward::<Blocks>(self.shift()), None),
            Change::Discard => {
                let parts = self.kinds.parts(change, span);
                let all = Span::new(parts.head.start(), parts.tail.end());
                (all.unwrap_or(Span::EMPTY), Some(parts))
            }
        };
        let (blocks, _) = written.split_at(self.blocks);
        let (page, first) = place(blocks.start());
        if first as u64 + blocks.len() <= PAGE_BYTES as u64 {
            return self.mark_piece(page, first, blocks, discarded.as_ref(), code, aside);
        }
        for piece in pieces(blocks) {
            let (page, first) = place(piece.start());
            self.mark_piece(page, first, piece, discarded.as_ref(), code, aside);
        }
    }

    /// What [`Map::mark`] was told to be discarded by `span` is so, without anything on the device
    /// having been discarded.
    pub(crate) fn unwanted(&self, span: Span<Sectors>) {
        self.kinds.ended(Change::Discard, span, true);
    }

    /// Marks blocks of one page, written but for what `parts` say.
    #[inline]
    fn mark_piece(
        &self,
        page: usize,
        first: usize,
        piece: Span<Blocks>,
        parts: Option<&Parts>,
        code: u8,
        aside: Option<Aside<'_>>,
    ) {
        let len = usize::try_from(piece.len()).unwrap_or(0);
        let Some(whole) = self.pages.get(page) else {
            return;
        };
        let Some(bytes) = whole.get(first..first + len) else {
            return;
        };
        // A byte that has the code was marked since the cut, and its page put aside then.
        let marked = bytes.iter().all(|b| b.load(Ordering::Acquire) == code);
        if !marked {
            self.put_aside(page, whole, aside);
        }
        // Who sees the mark of a write sees that it is no discard, and who sees either sees the
        // page put aside.
        match parts {
            None => self.kinds.writing(piece),
            Some(parts) => {
                self.kinds.writing(piece.intersect(parts.head));
                self.kinds.discarding(piece.intersect(parts.whole));
                self.kinds.writing(piece.intersect(parts.tail));
            }
        }
        if !marked {
            for byte in bytes {
                byte.store(code, Ordering::Release);
            }
        }
    }

    /// Puts a page aside that is about to be marked, if that is the first time since the cut.
    #[inline]
    fn put_aside(&self, page: usize, bytes: &BytePage, aside: Option<Aside<'_>>) {
        let Some((slot, settling)) =
            aside.and_then(|a| Some((a.view.pages.get(page)?, a.settling)))
        else {
            return;
        };
        if let Content::Empty = slot.content() {
            // Nobody has marked this page since the cut, or they would have found the slot
            // empty too. Of those who copy it now, one gets its copy in, and it made it
            // before anybody could mark.
            let now = Some(bytes).filter(|_| !settling);
            let kinds = self.kinds.page(page);
            slot.put(now.and_then(|b| Saved::copy(b, kinds, slot::NOWAIT)));
        }
    }

    /// Makes room for the next number, if that is due: goes over the whole map. May sleep.
    pub(crate) fn age_if_due(&self) {
        let mut clock = self.clock.lock();
        let Some(horizon) = clock.aging_due() else {
            return;
        };
        let pass = clock.set_oldest(horizon);
        let copy = *clock;
        // The lock is held all the while: only readers and cuts take it, never a write.
        for byte in self.pages.iter().flat_map(|p| p.iter()) {
            let old = byte.load(Ordering::Relaxed);
            if let Some(new) = copy.aged(old, pass.horizon()) {
                // One that fails was marked meanwhile.
                let _ = byte.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        clock.aging_done(pass);
    }

    /// Counts a cut: from here on writes are marked with the next number. The gate is closed.
    /// EOVERFLOW: aging is due.
    pub(crate) fn cut(&self) -> Result<u64> {
        let mut clock = self.clock.lock();
        let number = clock.cut().ok_or(EOVERFLOW)?;
        self.mark.store(clock.mark(), Ordering::SeqCst);
        self.code.store(cbt::code(clock.mark()), Ordering::SeqCst);
        Ok(number)
    }

    /// The number in which each of the blocks `first..first + out.len()` last changed, with
    /// BDSNAP_MAP_DISCARDED where `discards` is set and it was by a discard. `views`:
    /// those of the version asked about and of all newer ones, oldest first; none for the map as
    /// it is now. EINVAL: beyond the end. May sleep. Under the registry's lock: no cut and no aging
    /// comes in between.
    pub(crate) fn read<'v>(
        &self,
        first: u64,
        out: &mut [u32],
        discards: bool,
        views: impl Iterator<Item = &'v View> + Clone,
    ) -> Result {
        let mut block = first;
        let mut rest = out;
        while !rest.is_empty() {
            let (page, at) = place(block);
            let n = rest.len().min(PAGE_BYTES - at);
            let (chunk, others) = rest.split_at_mut_checked(n).ok_or(EINVAL)?;
            self.read_page(page, at, chunk, discards, views.clone())?;
            block += n as u64;
            rest = others;
        }
        Ok(())
    }

    /// Reads a part of one page.
    fn read_page<'v>(
        &self,
        page: usize,
        at: usize,
        out: &mut [u32],
        discards: bool,
        views: impl Iterator<Item = &'v View> + Clone,
    ) -> Result {
        let mark = self.mark.load(Ordering::SeqCst);
        let live = self.pages.get(page).ok_or(EINVAL)?;
        let kinds = self.kinds.page(page).filter(|_| discards);
        decode(live, kinds, at, mark, out)?;
        // If it was put aside, even just now, what was put aside counts.
        for view in views {
            match view.pages.get(page).map(Slot::content) {
                Some(Content::Full(saved)) => {
                    let kinds = saved.kinds.as_deref().filter(|_| discards);
                    return decode(&saved.bytes, kinds, at, view.number, out);
                }
                Some(Content::Void) => {
                    out.fill(number(view.number));
                    return Ok(());
                }
                Some(Content::Empty) | None => (),
            }
        }
        Ok(())
    }
}

/// Turns the bytes of a page from `at` on into numbers, with [`DISCARDED`] where `kinds` say so.
fn decode(
    bytes: &BytePage,
    kinds: Option<&BytePage>,
    at: usize,
    mark: u64,
    out: &mut [u32],
) -> Result {
    let range = at..at + out.len();
    let bytes = bytes.get(range.clone()).ok_or(EINVAL)?;
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = number(cbt::decode(byte.load(Ordering::Acquire), mark));
    }
    // After the bytes: see `mark_piece`.
    let kinds = kinds.and_then(|k| k.get(range)).unwrap_or_default();
    for (out, kind) in out.iter_mut().zip(kinds) {
        if kind::is_discarded(kind) {
            *out |= DISCARDED;
        }
    }
    Ok(())
}

/// A number as the ABI has it. Four thousand million cuts are far off; then all is changed.
fn number(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Zero pages for so many blocks. ENOMEM: they can't be had without pressing others; EINTR: this process is
/// being killed.
fn zero_pages(blocks: u64) -> Result<KVVec<KBox<BytePage>>> {
    let n = usize::try_from(blocks.div_ceil(PAGE_BYTES as u64))?;
    pages::are_available(n)?;
    let mut pages = KVVec::with_capacity(n, GFP_KERNEL)?;
    for _ in 0..n {
        if abi::is_dying() {
            return Err(EINTR);
        }
        pages.push(slot::zeroed(GFP_KERNEL)?, GFP_KERNEL)?;
    }
    Ok(pages)
}
