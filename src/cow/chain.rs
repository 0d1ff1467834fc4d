// SPDX-License-Identifier: GPL-2.0

//! The chain of an origin's versions: where each one's data is, and what must be copied.

use super::extents::Extents;
use super::extents::PackRoom;
use super::extents::OWN;
use super::version::Version;
use crate::kapi::abi;
use crate::kapi::inflight::HeldList;
use crate::kapi::run::Run;
use crate::kapi::slot;
use crate::kapi::slot::BitPage;
use crate::kapi::time::Deadline;
use crate::store::Store;
use crate::store::Taken;
use crate::tracker::Tracker;
use bdsnap_logic::extent_map::Extent;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::granule;
use bdsnap_logic::granule::Need;
use bdsnap_logic::granule::Source;
use bdsnap_logic::granule::State;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::cell::Cell;
use kernel::alloc::Flags;
use kernel::prelude::*;
use kernel::sync::Arc;

/// A version in the chain.
pub(super) struct Link {
    /// The version.
    pub(super) version: Arc<Version>,
    /// Where its data is.
    pub(super) extents: Extents,
    /// Whether it has data that came from newer ones, in their stores.
    pub(super) is_heir: bool,
    /// What its own store lacked in this round.
    pub(super) shortage: Shortage,
}

/// What a store lacked when it was asked last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shortage {
    /// Nothing, or it has not been asked.
    None,
    /// A portion, which what is urgent doesn't wait for.
    Portion,
    /// What is being read, and may be given back.
    Reads,
}

impl Link {
    /// The extent that holds `granule`; or else where the next one begins.
    pub(super) fn find(&self, granule: u64) -> Result<Extent, Option<u64>> {
        let extent = self.extents.at_or_after(granule).ok_or(None)?;
        if extent.span.start() > granule {
            return Err(Some(extent.span.start()));
        }
        Ok(extent)
    }

    /// The store with an index of one of its extents.
    pub(super) fn store(&self, index: u16) -> Option<Arc<Store>> {
        match index {
            OWN => self.version.store(),
            _ => self.extents.inherited(index),
        }
    }

    /// The state of the first granule of `span`, and up to where it is the same.
    pub(super) fn state_run(&self, span: Span<Granules>) -> (State, u64) {
        let limit = match self.find(span.start()) {
            Ok(extent) => return (extent.place.state(), extent.span.end().min(span.end())),
            Err(next) => next.unwrap_or(span.end()).min(span.end()),
        };
        let span = Span::new(span.start(), limit).unwrap_or(span);
        match self.version.kept_run(span) {
            (true, end) => (State::NotKept, end),
            (false, end) => (State::Needed, end),
        }
    }

    /// Records where the data of `span` is; gives the room back if it was not needed.
    pub(super) fn record(
        &mut self,
        room: PackRoom,
        span: Span<Granules>,
        place: Place,
    ) -> Option<PackRoom> {
        self.extents
            .insert(Extent { span, place }, room)
            .unwrap_or_else(|room| {
                // It can't be: no more than a run is recorded at a time, or what was.
                self.version.fail(abi::BDSNAP_CAUSE_NO_MEMORY);
                Some(room)
            })
    }
}

/// What a job is doing.
pub(super) enum Phase {
    /// Reading all of it.
    Read,
    /// Reading granule after granule, since reading all failed: the one that is being read, and
    /// those that could not be, one bit each.
    Salvage {
        /// Its place in the run.
        at: u32,
        /// Bits of the bad ones.
        bad: u64,
    },
    /// Writing it to the store.
    Write,
}

/// A copy on its way.
pub(super) struct Job {
    /// For this version.
    pub(super) version: Arc<Version>,
    /// Of these granules.
    pub(super) span: Span<Granules>,
    /// Of these there is no time to lose; the others lie around them.
    pub(super) own: Span<Granules>,
    /// To this store.
    pub(super) store: Arc<Store>,
    /// To these slots.
    pub(super) slot: u64,
    /// What is being done.
    pub(super) phase: Phase,
}

/// Where an image finds a granule.
pub(crate) enum Found {
    /// On the origin.
    Origin,
    /// It is zeros.
    Zeros,
    /// In a run's pages, from this page on.
    Memory(Arc<Run<Tracker>>, u64),
    /// In a store, from this slot on.
    Stored(Arc<Store>, u64),
    /// Nowhere.
    Unreadable,
}

/// Pages of a small run: random writes.
const SMALL_PAGES: usize = 4;
/// How many small runs an origin has.
const SMALL_RUNS: usize = 256;
/// Pages of a large run; [`Phase::Salvage`] has a bit for each.
const LARGE_PAGES: usize = 64;
/// How many large runs an origin has.
const LARGE_RUNS: usize = 24;

/// All that is needed to copy: the bound on memory on the way to the store, 10 MiB an origin.
/// Allocated with its first version, freed with its last.
pub(super) struct Pool {
    /// All runs, by index.
    runs: KVec<Arc<Run<Tracker>>>,
    /// Small runs that are free.
    small: KVec<Arc<Run<Tracker>>>,
    /// Large runs that are free.
    large: KVec<Arc<Run<Tracker>>>,
    /// What each run is doing, by index.
    pub(super) jobs: KVec<Option<Job>>,
    /// What copies are recorded with.
    pub(super) stock: Stock,
}

impl Pool {
    /// ENOMEM. May sleep.
    fn new() -> Result<Self> {
        let mut pool = Self {
            runs: KVec::with_capacity(SMALL_RUNS + LARGE_RUNS, GFP_KERNEL)?,
            small: KVec::with_capacity(SMALL_RUNS, GFP_KERNEL)?,
            large: KVec::with_capacity(LARGE_RUNS, GFP_KERNEL)?,
            jobs: KVec::with_capacity(SMALL_RUNS + LARGE_RUNS, GFP_KERNEL)?,
            stock: Stock::new()?,
        };
        pool.stock.fill(GFP_KERNEL)?;
        for index in 0..SMALL_RUNS + LARGE_RUNS {
            let (list, pages) = if index < SMALL_RUNS {
                (&mut pool.small, SMALL_PAGES)
            } else {
                (&mut pool.large, LARGE_PAGES)
            };
            let run = Run::new(pages, index)?;
            pool.runs.push(run.clone(), GFP_KERNEL)?;
            list.push(run, GFP_KERNEL)?;
            pool.jobs.push(None, GFP_KERNEL)?;
        }
        Ok(pool)
    }

    /// A free run for `granules` granules, or as near as there is.
    fn take(&mut self, granules: u64) -> Option<Arc<Run<Tracker>>> {
        if granules <= SMALL_PAGES as u64 {
            self.small.pop().or_else(|| self.large.pop())
        } else {
            self.large.pop().or_else(|| self.small.pop())
        }
    }

    /// Whether all runs are under way.
    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    /// Whether any copy is being read.
    fn is_reading(&self) -> bool {
        let is_read = |job: &Job| !matches!(job.phase, Phase::Write);
        self.jobs.iter().flatten().any(is_read)
    }

    /// Whether any copy is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.jobs.iter().any(Option::is_some)
    }

    /// Gives a run back.
    pub(super) fn give(&mut self, run: Arc<Run<Tracker>>) {
        let list = if run.index() < SMALL_RUNS {
            &mut self.small
        } else {
            &mut self.large
        };
        // It came from there, so there is room.
        let _ = list.push_within_capacity(run);
    }
}

/// I/O to be started once the chain is unlocked.
pub(super) struct Start {
    /// With this run.
    pub(super) run: Arc<Run<Tracker>>,
    /// To this slot of this store, and those after it; None: on the origin.
    pub(super) store: Option<(Arc<Store>, u64)>,
    /// What.
    pub(super) io: crate::kapi::run::Io,
}

/// Memory for what has to be recorded of copies, so that the copying never waits for memory: it may
/// be writes held by it that would free some. Filled up whenever there is some at hand.
pub(super) struct Stock {
    /// Packs of extents.
    packs: KVec<PackRoom>,
    /// Leaves of bitmaps.
    leaves: KVec<KBox<BitPage>>,
}

/// Packs in stock: a copy rarely needs one.
const STOCK_PACKS: usize = 64;
/// Leaves in stock.
const STOCK_LEAVES: usize = 64;

impl Stock {
    /// An empty one. ENOMEM. May sleep.
    fn new() -> Result<Self> {
        Ok(Self {
            packs: KVec::with_capacity(STOCK_PACKS, GFP_KERNEL)?,
            leaves: KVec::with_capacity(STOCK_LEAVES, GFP_KERNEL)?,
        })
    }

    /// Fills it up, as far as there is memory.
    fn fill(&mut self, flags: Flags) -> Result {
        while self.packs.len() < STOCK_PACKS {
            self.give(PackRoom::new(flags)?);
        }
        while self.leaves.len() < STOCK_LEAVES {
            let leaf = slot::zeroed(flags)?;
            self.leaves.push_within_capacity(leaf).map_err(|_| ENOMEM)?;
        }
        Ok(())
    }

    /// What a copy of `span` for `version` is recorded with, after which it can be kept. ENOMEM:
    /// there is none in stock, nor at hand. Any context.
    fn take_for(&mut self, version: &Version, span: Span<Granules>) -> Result<PackRoom> {
        // One round may need more than there is in stock, while there is plenty of memory.
        let mut ensured = version.ensure_from(span, &mut self.leaves);
        if ensured.is_err() || self.packs.is_empty() {
            let _ = self.fill(slot::NOWAIT);
            ensured = version.ensure_from(span, &mut self.leaves);
        }
        ensured?;
        self.take().ok_or(ENOMEM)
    }

    /// Room for a pack of extents. None: there is none in stock, nor at hand. Any context.
    pub(super) fn take(&mut self) -> Option<PackRoom> {
        let in_stock = self.packs.pop();
        in_stock.or_else(|| PackRoom::new(slot::NOWAIT).ok())
    }

    /// Makes sure that there are so many in stock. False: there is no memory at hand. Any context.
    pub(super) fn has(&mut self, packs: usize) -> bool {
        if self.packs.len() < packs {
            let _ = self.fill(slot::NOWAIT);
        }
        self.packs.len() >= packs
    }

    /// Takes room back that was not needed, or frees it.
    pub(super) fn give(&mut self, room: PackRoom) {
        let _ = self.packs.push_within_capacity(room);
    }
}

/// How long a copy waits for memory to record it with, when nothing else is on its way, and what is handed
/// down: then a version fails.
pub(super) const PATIENCE_MS: u32 = 500;

/// More granules than that are many for one write: such are discards.
const LONG: u64 = 1 << 14;

/// What came of an attempt to copy.
enum Attempt {
    /// It has begun, up to this granule.
    Begun(u64),
    /// All runs are under way, or the store waits for a portion.
    NoRun,
    /// The version has failed: ask again.
    Failed,
}

/// The chain: under its tracker's lock.
pub(crate) struct Chain {
    /// The versions, newest first.
    pub(super) links: KVec<Link>,
    /// Writes that wait for copies.
    pub(super) waiting: HeldList,
    /// A range to be copied as if it were about to be written, and how far that has come.
    pub(super) claim: Option<(Span<Granules>, u64)>,
    /// What copying needs; there while there are versions.
    pub(super) pool: Option<Pool>,
    /// Reads to be started; has room for one of each run.
    pub(super) starts: KVec<Start>,
    /// Writes to stores to be started; has room for one of each run.
    pub(super) stores: KVec<Start>,
    /// Changes places with `stores`, while that is being started.
    pub(super) spare: KVec<Start>,
    /// When the copying got on last, or had nothing to do (`CLOCK_MONOTONIC`, nanoseconds).
    pub(super) progress: u64,
    /// Whether somebody watches the progress.
    pub(super) watched: bool,
    /// Whether the origin has places that can't be read: then nothing is read but what must be.
    pub(super) has_bad: bool,
    /// How many freezes want that nothing waits for a portion: who could bring it may be waiting for us.
    pub(crate) hurried: u32,
}

impl Chain {
    /// No version.
    pub(crate) fn new() -> Self {
        Self {
            links: KVec::new(),
            waiting: HeldList::new(),
            claim: None,
            pool: None,
            starts: KVec::new(),
            stores: KVec::new(),
            spare: KVec::new(),
            progress: 0,
            watched: false,
            has_bad: false,
            hurried: 0,
        }
    }

    /// Whether no version lives: what there is has failed, or is being deleted.
    pub(crate) fn is_dead(&self) -> bool {
        !self.links.iter().any(|l| l.version.is_live())
    }

    /// Whether the last round found a store that waits for a portion.
    pub(crate) fn is_dry(&self) -> bool {
        let mut links = self.links.iter();
        links.any(|l| l.shortage == Shortage::Portion)
    }

    /// Whether it found one that lacks anything.
    pub(super) fn is_short(&self) -> bool {
        self.links.iter().any(|l| l.shortage != Shortage::None)
    }

    /// A round begins: stores are asked anew.
    pub(super) fn forget_shortage(&mut self) {
        let links = self.links.iter_mut();
        links.for_each(|l| l.shortage = Shortage::None);
    }

    /// Whether anything is being read for a version.
    pub(crate) fn is_reading(&self) -> bool {
        self.pool.as_ref().is_some_and(Pool::is_reading)
    }

    /// Takes room for one more version, if it has none, so that [`Chain::push`] can't fail. False: `room` is
    /// too small. What it had is left in `room`.
    fn accept(&mut self, room: &mut Reserve) -> bool {
        if self.links.len() == self.links.capacity() {
            if room.links.capacity() <= self.links.len() {
                return false;
            }
            for link in self.links.drain_all() {
                // (There is room.)
                let _ = room.links.push_within_capacity(link);
            }
            core::mem::swap(&mut self.links, &mut room.links);
        }
        if self.pool.is_none() {
            if room.pool.is_none() {
                return false;
            }
            core::mem::swap(&mut self.pool, &mut room.pool);
            for (own, new) in [&mut self.starts, &mut self.stores, &mut self.spare]
                .into_iter()
                .zip(room.lists.iter_mut())
            {
                core::mem::swap(own, new);
            }
        }
        true
    }

    /// Fills up what copies are recorded with, if there is memory at hand.
    pub(super) fn restock(&mut self) {
        if let Some(pool) = self.pool.as_mut() {
            // Else the next round, or the reserve has to do.
            let _ = pool.stock.fill(slot::NOWAIT);
        }
    }

    /// Frees what [`reserve`] took, if there is no version.
    pub(crate) fn shrink(&mut self) {
        if self.links.is_empty() && self.starts.is_empty() && self.stores.is_empty() {
            let idle = self.pool.as_ref().is_some_and(|p| !p.is_busy());
            if idle {
                self.pool = None;
                self.has_bad = false;
                for list in [&mut self.starts, &mut self.stores, &mut self.spare] {
                    *list = KVec::new();
                }
            }
        }
    }

    /// Adds the newest version, at its cut. Needs no memory after [`reserve`].
    pub(crate) fn push(&mut self, version: Arc<Version>) -> Result {
        let link = Link {
            version,
            extents: Extents::new(),
            is_heir: false,
            shortage: Shortage::None,
        };
        self.links
            .insert_within_capacity(0, link)
            .map_err(|_| ENOMEM)
    }

    /// The place of a version in the chain.
    pub(super) fn index_of(&self, version: &Version) -> Option<usize> {
        let is = |link: &Link| core::ptr::eq(&*link.version, version);
        self.links.iter().position(is)
    }

    /// A version's link.
    pub(super) fn link_mut(&mut self, version: &Version) -> Option<&mut Link> {
        let index = self.index_of(version)?;
        self.links.get_mut(index)
    }

    /// The version at this place, from the newest.
    pub(super) fn nth(&self, index: usize) -> Option<Arc<Version>> {
        self.links.get(index).map(|link| link.version.clone())
    }

    /// How many versions there are.
    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// What must happen before the first granule of `span` is overwritten, and up to where that
    /// is so.
    pub(super) fn need_run(&self, span: Span<Granules>) -> (Need, u64) {
        let mut end = span.end();
        let reads = |link: &&Link| !link.version.is_idle();
        let need = granule::need(self.links.iter(), reads, |link| {
            let (state, upto) = link.state_run(span);
            end = end.min(upto);
            granule::Link {
                state,
                live: link.version.is_live(),
            }
        });
        (need, end)
    }

    /// Begins the copies that a write to `span` waits for, from `cursor` on. Returns where the
    /// first granule is that it still has to wait for, None if for none. `dev_sectors`: the
    /// origin's; `urgent`: without it, no portion of a store may come. May sleep for memory, under a
    /// noio scope.
    pub(super) fn advance(
        &mut self,
        span: Span<Granules>,
        cursor: u64,
        urgent: bool,
    ) -> Option<u64> {
        let mut at = cursor.max(span.start());
        let mut blocked = None;
        while let Some(rest) = Span::new(at, span.end()).filter(|s| !s.is_empty()) {
            let (need, upto) = self.need_run(rest);
            match need {
                Need::Pass => at = upto,
                Need::Wait(_) => {
                    blocked = blocked.or(Some(at));
                    at = upto;
                }
                Need::Copy(index) => match self.copy(index, at, upto, urgent) {
                    Attempt::Begun(upto) => {
                        blocked = blocked.or(Some(at));
                        // It may not have come as far as here.
                        at = at.max(upto);
                    }
                    Attempt::NoRun => return blocked.or(Some(at)),
                    // It isn't live any more; another version may need the granule.
                    Attempt::Failed => (),
                },
            }
        }
        blocked
    }

    /// Gives up versions that need more of a long span than their stores can get: to find out that much of
    /// that is zeros would hold up a discard for too long. Once for each write: it looks at all of it.
    pub(super) fn give_up_for(&self, span: Span<Granules>) {
        if span.len() <= LONG {
            return;
        }
        // One at a time: then others may need what it needed.
        while let Some(version) = self.overwhelmed(span) {
            version.fail(abi::BDSNAP_CAUSE_STORE_FULL);
        }
    }

    /// The version that needs the beginning of a span, if it needs more of it than its store can get.
    fn overwhelmed(&self, span: Span<Granules>) -> Option<&Arc<Version>> {
        let (mut at, mut needed) = (span.start(), 0);
        let mut whose: Option<(usize, u64)> = None;
        for _ in 0..LONG {
            let rest = Span::new(at, span.end()).filter(|s| !s.is_empty())?;
            let (need, upto) = self.need_run(rest);
            if let Need::Copy(index) = need {
                let version = self.links.get(index).map(|l| &l.version)?;
                let room = || version.store().map_or(0, |s| s.slots_left());
                let (first, room) = *whose.get_or_insert_with(|| (index, room()));
                if first == index {
                    needed += upto.saturating_sub(at);
                    if needed > room {
                        return Some(version);
                    }
                }
            }
            at = upto;
        }
        // It is in so many pieces that this would take too long.
        None
    }

    /// What is copied with the granules `own`, which the version `index` needs: as far as it needs them,
    /// all of the blocks of its store's run size that they touch.
    fn around(&self, index: usize, own: Span<Granules>) -> Span<Granules> {
        let (from, upto) = (own.start(), own.end());
        let version = self.links.get(index).map(|l| &l.version);
        let Some((version, store)) = version.and_then(|v| Some((v, v.store()?))) else {
            return own;
        };
        let run = store.run();
        let all = Span::<Sectors>::of_len(0, version.sectors()).unwrap_or(Span::EMPTY);
        let all = all.outward::<Granules>(version.shift());
        let blocks = Span::new(from - from % run, upto.next_multiple_of(run));
        let blocks = blocks.unwrap_or(own).intersect(all);
        let is_needed = |span| match self.need_run(span) {
            (Need::Copy(i), end) => (i == index, end),
            (_, end) => (false, end),
        };
        let (mut start, mut at) = (blocks.start(), blocks.start());
        while let Some(rest) = Span::new(at, from).filter(|s| !s.is_empty()) {
            let (needed, end) = is_needed(rest);
            at = end;
            if !needed {
                start = at;
            }
        }
        let mut end = upto;
        while let Some(rest) = Span::new(end, blocks.end()).filter(|s| !s.is_empty()) {
            match is_needed(rest) {
                (true, upto) => end = upto,
                (false, _) => break,
            }
        }
        Span::new(start, end).unwrap_or(own)
    }

    /// Begins to copy granules from `from` on, at most up to `upto` but for what is copied with them,
    /// for the version `index`.
    fn copy(&mut self, index: usize, from: u64, upto: u64, urgent: bool) -> Attempt {
        match self.links.get(index).map(|l| l.shortage) {
            // It has just been asked for.
            Some(Shortage::Portion) if !urgent => return Attempt::NoRun,
            Some(Shortage::Reads) | None => return Attempt::NoRun,
            Some(Shortage::Portion | Shortage::None) => (),
        }
        if self.pool.as_ref().is_none_or(Pool::is_empty) {
            return Attempt::NoRun;
        }
        let own = Span::new(from, upto).unwrap_or(Span::EMPTY);
        let around = if self.has_bad {
            own
        } else {
            self.around(index, own)
        };
        let (Some(link), Some(pool)) = (self.links.get_mut(index), self.pool.as_mut()) else {
            return Attempt::NoRun;
        };
        let Some(run) = pool.take(around.len()) else {
            return Attempt::NoRun;
        };
        let version = link.version.clone();
        let pages = run.pages() as u64;
        let most = if around.len() <= pages {
            around
        } else {
            Span::of_len(from, (upto - from).min(pages)).unwrap_or(Span::EMPTY)
        };
        let (from, want) = (most.start(), most.len());
        let mut room = pool.stock.take_for(&version, most).ok();
        if room.is_none() && !pool.is_busy() {
            // None of ours will come free; but the system frees some when asked like this.
            Deadline::after_ms(PATIENCE_MS).wait_until(|| {
                room = pool.stock.take_for(&version, most).ok();
                room.is_some()
            });
        }
        let Some(room) = room else {
            pool.give(run);
            if pool.is_busy() {
                // There may be memory once one of these ends.
                return Attempt::NoRun;
            }
            version.fail(abi::BDSNAP_CAUSE_NO_MEMORY);
            return Attempt::Failed;
        };
        let Some(store) = version.store() else {
            pool.give(run);
            version.fail(abi::BDSNAP_CAUSE_STORE_FULL);
            return Attempt::Failed;
        };
        let (slot, len) = match store.take(want, urgent, self.hurried > 0, &version.short_since) {
            Taken::Slots(slot, len) => (slot, len),
            none => {
                pool.give(run);
                pool.stock.give(room);
                match none {
                    Taken::Later => link.shortage = Shortage::Portion,
                    Taken::Soon => link.shortage = Shortage::Reads,
                    Taken::Slots(..) | Taken::Full => {
                        version.fail(abi::BDSNAP_CAUSE_STORE_FULL);
                        return Attempt::Failed;
                    }
                }
                return Attempt::NoRun;
            }
        };
        // What lies around the write is only read for a write that waits for it: so that nothing is being
        // read of what nobody holds when a cut is made.
        let (from, used) = if from + len > own.start() {
            (from, len)
        } else {
            (own.start(), len.min(own.len()))
        };
        store.give_back(slot + used, len - used);
        store.was_read(len - used);
        let Some(job) = pool.jobs.get_mut(run.index()) else {
            return Attempt::NoRun;
        };
        let span = Span::of_len(from, used).unwrap_or(Span::EMPTY);
        if let Some(room) = link.record(room, span, Place::Reading) {
            pool.stock.give(room);
        }
        version.job_begins();
        let sectors = version.sectors_of(span);
        *job = Some(Job {
            version,
            store,
            span,
            own: span.intersect(own),
            slot,
            phase: Phase::Read,
        });
        self.start_read(run, sectors, 0);
        Attempt::Begun(span.end())
    }

    /// Queues a read of sectors of the origin into a run, from its page `page` on.
    pub(super) fn start_read(
        &mut self,
        run: Arc<Run<Tracker>>,
        sectors: Span<Sectors>,
        page: usize,
    ) {
        let io = crate::kapi::run::Io {
            direction: crate::kapi::run::Direction::Read,
            sector: sectors.start(),
            page,
            bytes: (sectors.len() as usize) << bdsnap_logic::units::SECTOR_SHIFT,
        };
        let start = Start {
            run,
            store: None,
            io,
        };
        // There is room for every run, and each is in here once at most.
        let _ = self.starts.push_within_capacity(start);
    }

    /// Where the image of `version` finds the first granule of `span`, and up to where it is the
    /// same place.
    pub(crate) fn locate(&self, version: &Version, span: Span<Granules>) -> (Found, u64) {
        let Some(own) = self.index_of(version) else {
            return (Found::Unreadable, span.end());
        };
        let end = Cell::new(span.end());
        let own_to_newest = || self.links.get(..=own).unwrap_or_default().iter().rev();
        let source = granule::source(own_to_newest().map(|link| {
            let (state, upto) = link.state_run(span);
            end.set(end.get().min(upto));
            state
        }));
        let found = match source {
            Source::Origin => Found::Origin,
            Source::Zeros => Found::Zeros,
            Source::Unreadable => Found::Unreadable,
            Source::Version(n) => {
                let link = own_to_newest().nth(n);
                link.and_then(|link| self.found(link, span.start()))
                    .unwrap_or(Found::Unreadable)
            }
        };
        (found, end.get())
    }
    /// Where the data of a granule is that a version has.
    fn found(&self, link: &Link, granule: u64) -> Option<Found> {
        Some(match link.find(granule).ok()?.from(granule).place {
            Place::Memory { run, page } => {
                let run = self.pool.as_ref()?.runs.get(usize::from(run))?;
                Found::Memory(run.clone(), page)
            }
            Place::Stored { store, slot } => Found::Stored(link.store(store)?, slot),
            Place::Zeros => Found::Zeros,
            Place::Reading | Place::Lost => Found::Unreadable,
        })
    }
}

/// What a chain needs for one more version.
struct Reserve {
    links: KVec<Link>,
    pool: Option<Pool>,
    /// For `starts`, `stores` and `spare`.
    lists: [KVec<Start>; 3],
}

/// Makes room in a chain for one more version, so that [`Chain::push`] can't fail. ENOMEM. Sleeps, but
/// allocates nothing with the chain locked. Under the registry's lock: only so does it remain.
pub(crate) fn reserve(tracker: &Tracker) -> Result {
    let mut room = Reserve {
        links: KVec::new(),
        pool: None,
        lists: [const { KVec::new() }; 3],
    };
    loop {
        let (links, has_pool) = {
            let mut chain = tracker.lock_chain();
            if chain.accept(&mut room) {
                return Ok(());
            }
            (chain.links.len(), chain.pool.is_some())
        };
        // (For some more: a chain grows rarely.)
        room.links = KVec::with_capacity(links + 4, GFP_KERNEL)?;
        if !has_pool && room.pool.is_none() {
            for list in room.lists.iter_mut() {
                list.reserve(SMALL_RUNS + LARGE_RUNS, GFP_KERNEL)?;
            }
            room.pool = Some(Pool::new()?);
        }
    }
}

/// The versions of an origin, newest first, without `except`; the list has room for one more. ENOMEM.
/// Sleeps, but allocates nothing with the chain locked.
pub(crate) fn versions(tracker: &Tracker, except: Option<&Version>) -> Result<KVec<Arc<Version>>> {
    loop {
        let count = tracker.lock_chain().len();
        let mut list = KVec::with_capacity(count + 1, GFP_KERNEL)?;
        let chain = tracker.lock_chain();
        if chain.len() > count {
            continue;
        }
        for link in chain.links.iter() {
            if !except.is_some_and(|e| core::ptr::eq(e, &*link.version)) {
                // (There is room.)
                let _ = list.push_within_capacity(link.version.clone());
            }
        }
        return Ok(list);
    }
}
