// SPDX-License-Identifier: GPL-2.0

//! The worker of an origin: takes held writes in batches, copies what they need, lets them go.
//!
//! It never waits for I/O: what has ended comes back through [`Tracker::done`].

use super::chain::Chain;
use super::chain::Job;
use super::chain::Phase;
use super::chain::Pool;
use super::chain::Start;
use super::extents::OWN;
use super::version::Damage;
use super::version::Version;
use super::version::Versions;
use crate::kapi::abi;
use crate::kapi::bio::ParkedList;
use crate::kapi::noio;
use crate::kapi::run;
use crate::kapi::run::Direction;
use crate::kapi::run::Io;
use crate::kapi::run::Run;
use crate::kapi::slot;
use crate::kapi::time;
use crate::kapi::time::Deadline;
use crate::kapi::trace;
use crate::store::Site;
use crate::tracker::Tracker;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::extent_map::PACK_EXTENTS;
use bdsnap_logic::fill;
use bdsnap_logic::granule;
use bdsnap_logic::granule::Need;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;

/// One round: what has ended, what has arrived, what waits. Runs on the tracker's work queue.
pub(crate) fn work(tracker: &Arc<Tracker>) {
    let _noio = noio::Scope::enter();
    let mut released = ParkedList::new();
    let mut chain = tracker.lock_chain();
    chain.restock();
    if chain.waiting.is_empty() {
        chain.progress = time::monotonic_ns();
        let versions = chain.links.iter().map(|link| &link.version);
        versions.for_each(|version| version.short_since.store(0, Ordering::Relaxed));
    }
    for run in tracker.done.take_all() {
        chain.progress = time::monotonic_ns();
        chain.ended(tracker, run);
    }
    chain.forget_shortage();
    let mut waiting = chain.waiting.take_all();
    let mut new = tracker.take_held();
    while let Some(held) = new.pop() {
        chain.give_up_for(chain.granules(held.span()));
        waiting.push(held);
    }
    while let Some(mut held) = waiting.pop() {
        let span = chain.granules(held.span());
        match chain.advance(span, held.cursor(), held.is_urgent()) {
            Some(cursor) => {
                held.set_cursor(cursor);
                chain.waiting.push(held);
            }
            None => released.push(held.release()),
        }
    }
    if let Some((span, cursor)) = chain.claim {
        let left = chain.advance(span, cursor, true);
        chain.claim = left.map(|cursor| (span, cursor));
    }
    if chain.is_dry() && !chain.pool.as_ref().is_some_and(Pool::is_busy) {
        // Nobody is to blame for what waits for a portion.
        chain.progress = time::monotonic_ns();
    }
    let starts = chain.take_starts();
    if !chain.waiting.is_empty() && !chain.watched {
        chain.watched = true;
        tracker.kick_watch();
    }
    let storing = !chain.stores.is_empty();
    drop(chain);
    // First of all: what comes then may be held up, by a disk that hangs.
    tracker.release(released);
    if storing {
        tracker.kick_store();
    }
    let starts = start(tracker, starts);
    tracker.lock_chain().give_starts(starts);
    tell(tracker);
}

/// Writes what has been copied to the stores. Apart from the copying, which goes on in memory when
/// a store's disk does not take more for the moment: then this waits in the block layer.
pub(crate) fn store(tracker: &Arc<Tracker>) {
    let _noio = noio::Scope::enter();
    loop {
        let starts = tracker.lock_chain().take_stores();
        if starts.is_empty() {
            return;
        }
        let starts = start(tracker, starts);
        tracker.lock_chain().give_stores(starts);
    }
}

/// Tells what has happened to the origin and its versions, if that has not been told.
fn tell(tracker: &Tracker) {
    tracker.tell_end();
    let guard = rcu::read_lock();
    let untold = tracker
        .versions
        .read(&guard)
        .is_some_and(Versions::any_untold);
    drop(guard);
    if !untold {
        return;
    }
    // (If one is left out since a newer one goes meanwhile, the next round does it.)
    let nth = |n| tracker.lock_chain().nth(n);
    for version in (0..).map_while(nth) {
        if let Some(seconds) = version.store().and_then(|s| s.take_news()) {
            tracker.tell(abi::BDSNAP_EVENT_LOW, 0, version.snapshot, seconds);
        }
        let (kind, cause) = match version.untold() {
            Some(Damage::All(cause)) => (abi::BDSNAP_EVENT_FAILED, cause),
            Some(Damage::Parts(cause)) => (abi::BDSNAP_EVENT_DAMAGED, cause),
            Some(Damage::None) | None => continue,
        };
        tracker.tell(kind, cause, version.snapshot, version.view.number());
        if kind == abi::BDSNAP_EVENT_FAILED {
            tracker.has_remains();
        }
    }
}

/// Copies what versions need of these sectors, as if they were about to be written, and waits for
/// it: the way a store is made of blocks that an older version may still need. Sleeps. Under the
/// registry's lock: one at a time.
///
/// ETIMEDOUT: the origin doesn't answer. EBUSY: a store waits for a portion, which can't come while the
/// registry is locked.
pub(crate) fn settle(tracker: &Arc<Tracker>, sectors: Span<Sectors>) -> Result {
    {
        let mut chain = tracker.lock_chain();
        let span = chain.granules(sectors);
        chain.claim = Some((span, 0));
    }
    let mut dry = false;
    let settled = Deadline::after_ms(abi::BDSNAP_TIMEOUT_MAX_MS).wait_until(|| {
        tracker.kick();
        let chain = tracker.lock_chain();
        dry = chain.claim.is_some() && chain.is_dry();
        dry || chain.claim.is_none()
    });
    if settled && !dry {
        return Ok(());
    }
    tracker.lock_chain().claim = None;
    tracker.kick();
    Err(if dry { EBUSY } else { ETIMEDOUT })
}

/// The first part of some sectors of a disk that no version of this origin needs. Sleeps.
pub(crate) fn unneeded(tracker: &Tracker, span: Span<Sectors>) -> Option<Span<Sectors>> {
    let start = tracker.span().start();
    let (before, rest) = span.split_at(start);
    if !before.is_empty() {
        return Some(before);
    }
    let (inside, behind) = rest.split_at(tracker.span().end());
    if inside.is_empty() {
        return Some(behind).filter(|b| !b.is_empty());
    }
    let chain = tracker.lock_chain();
    let Some(shift) = chain.links.first().map(|l| l.version.shift()) else {
        return Some(inside);
    };
    let of_origin = Span::<Sectors>::new(inside.start() - start, inside.end() - start)?;
    let mut rest = of_origin.outward::<Granules>(shift);
    while !rest.is_empty() {
        let (need, upto) = chain.need_run(rest);
        let (run, others) = rest.split_at(upto);
        if matches!(need, Need::Pass) {
            let sectors = run.sectors(shift, tracker.sectors()).intersect(of_origin);
            return Span::of_len(start.checked_add(sectors.start())?, sectors.len());
        }
        rest = others;
    }
    Some(behind).filter(|b| !b.is_empty())
}

/// Starts I/O, all in one plug; returns the list, empty.
fn start(tracker: &Arc<Tracker>, mut starts: KVec<Start>) -> KVec<Start> {
    if !starts.is_empty() {
        run::plugged(|| {
            for start in starts.drain_all() {
                let site = start.store.as_ref().map(|(store, slot)| store.site(*slot));
                let device = match site {
                    None => &tracker.device,
                    Some(Some(Site::Device(device, ..))) => device,
                    Some(Some(Site::Memory(pages, at, _))) => {
                        pages.put(at, &start.run, start.io.page, start.io.bytes);
                        Run::copied(start.run, tracker.clone());
                        continue;
                    }
                    // It was looked up when the write was made ready.
                    Some(None) => continue,
                };
                // It can't be refused: the run is free, and large enough.
                let _ = Run::start(start.run, tracker.clone(), device, start.io);
            }
        });
    }
    starts
}

impl Chain {
    /// The granules that sectors of the origin touch: all versions of an origin have one size.
    fn granules(&self, sectors: Span<Sectors>) -> Span<Granules> {
        match self.links.first() {
            Some(link) => sectors.outward(link.version.shift()),
            None => Span::EMPTY,
        }
    }

    /// Takes the list of writes to stores to be started; the next are put into the spare one.
    fn take_stores(&mut self) -> KVec<Start> {
        let mut list = KVec::new();
        if !self.stores.is_empty() {
            core::mem::swap(&mut list, &mut self.spare);
            core::mem::swap(&mut list, &mut self.stores);
        }
        list
    }

    /// Gives its memory back, for the next time.
    fn give_stores(&mut self, list: KVec<Start>) {
        self.spare = list;
    }

    /// Takes the list of reads to be started.
    fn take_starts(&mut self) -> KVec<Start> {
        core::mem::take(&mut self.starts)
    }

    /// Gives its memory back, for the next time.
    fn give_starts(&mut self, starts: KVec<Start>) {
        if self.starts.capacity() < starts.capacity() && self.starts.is_empty() {
            self.starts = starts;
        }
    }

    /// The I/O of a run has ended.
    fn ended(&mut self, tracker: &Arc<Tracker>, run: Arc<Run<Tracker>>) {
        let job = self
            .pool
            .as_mut()
            .and_then(|p| p.jobs.get_mut(run.index()))
            .and_then(Option::take);
        let Some(mut job) = job else {
            return;
        };
        let ok = run.status().is_ok();
        match job.phase {
            Phase::Read if ok => self.was_read(tracker, run, job, 0),
            Phase::Read if job.span != job.own && !job.own.is_empty() => {
                self.only_own(run, job);
            }
            Phase::Read if job.span.len() == 1 => self.was_read(tracker, run, job, 1),
            Phase::Read => {
                job.phase = Phase::Salvage { at: 0, bad: 0 };
                self.salvage(run, job, 0);
            }
            Phase::Salvage { at, mut bad } => {
                if !ok {
                    bad |= 1 << at;
                }
                let next = at + 1;
                if u64::from(next) < job.span.len() {
                    job.phase = Phase::Salvage { at: next, bad };
                    self.salvage(run, job, next);
                } else {
                    self.was_read(tracker, run, job, bad);
                }
            }
            Phase::Write => self.was_written(run, job, ok),
        }
    }

    /// What lies around a write could not be read with it: it is left alone, from here on for all writes,
    /// since errors take their time; and what the write needs is read again.
    fn only_own(&mut self, run: Arc<Run<Tracker>>, mut job: Job) {
        self.has_bad = true;
        let (whole, own) = (job.span, job.own);
        let room = self.pool.as_mut().and_then(|pool| pool.stock.take());
        let (Some(room), Some(link)) = (room, self.link_mut(&job.version)) else {
            // Without memory for that it is read one by one.
            job.phase = Phase::Salvage { at: 0, bad: 0 };
            return self.salvage(run, job, 0);
        };
        link.extents.remove(whole.end() - 1);
        let unused = link.record(room, own, Place::Reading);
        if let (Some(room), Some(pool)) = (unused, self.pool.as_mut()) {
            pool.stock.give(room);
        }
        let (before, after) = (own.start() - whole.start(), whole.end() - own.end());
        job.store.give_back(job.slot, before);
        job.store.give_back(job.slot + before + own.len(), after);
        job.store.was_read(before + after);
        (job.span, job.slot) = (own, job.slot + before);
        let sectors = job.version.sectors_of(own);
        self.put(&run, job);
        self.start_read(run, sectors, 0);
    }

    /// Puts a job back and reads one granule of it.
    fn salvage(&mut self, run: Arc<Run<Tracker>>, job: Job, at: u32) {
        let one = Span::of_len(job.span.start() + u64::from(at), 1).unwrap_or(Span::EMPTY);
        let sectors = job.version.sectors_of(one);
        self.put(&run, job);
        self.start_read(run, sectors, at as usize);
    }

    /// Puts a job back.
    fn put(&mut self, run: &Run<Tracker>, job: Job) {
        if let Some(slot) = self.pool.as_mut().and_then(|p| p.jobs.get_mut(run.index())) {
            *slot = Some(job);
        }
    }

    /// Ends a job.
    fn over(&mut self, run: Arc<Run<Tracker>>, version: &Version) {
        if let Some(pool) = self.pool.as_mut() {
            pool.give(run);
        }
        version.job_ends();
    }

    /// A job's old data is in memory, but for the granules with a bit in `bad`.
    fn was_read(&mut self, tracker: &Arc<Tracker>, run: Arc<Run<Tracker>>, job: Job, bad: u64) {
        let (store, slots) = (job.store.clone(), job.span.len());
        self.keep_or_drop(tracker, run, job, bad);
        // After what is given back of them: who finds none is told to come again until then.
        store.was_read(slots);
    }

    /// The same.
    fn keep_or_drop(
        &mut self,
        tracker: &Arc<Tracker>,
        run: Arc<Run<Tracker>>,
        mut job: Job,
        bad: u64,
    ) {
        let version = job.version.clone();
        if !tracker.has_medium() || !version.is_live() {
            // Nobody wants it any more; should an older version, it gets its own.
            self.forget(&version, job.span);
            job.store.give_back(job.slot, job.span.len());
            return self.over(run, &version);
        }
        let memory = Place::Memory {
            run: run.index() as u16,
            page: 0,
        };
        let whole = job.span;
        let good = if bad == 0 {
            self.keep_read(&run, &mut job, memory);
            whole.len()
        } else {
            self.salvaged(&version, whole, bad, memory)
        };
        tracker.count_copied(good << version.shift() << SECTOR_SHIFT);
        if good == 0 {
            job.store.give_back(job.slot, job.span.len());
        }
        let is_empty = good == 0 || job.span.is_empty();
        let sector = match job.store.site(job.slot).filter(|_| !is_empty) {
            Some(Site::Device(_, sector, _)) => sector,
            Some(Site::Memory(..)) => 0,
            None => return self.over(run, &version),
        };
        trace::copy(tracker.dev(), job.span.start(), job.span.len(), job.slot);
        // The last granule of a device may be short.
        let bytes = (version.sectors_of(job.span).len() as usize) << SECTOR_SHIFT;
        let (store, slot) = (job.store.clone(), job.slot);
        let page = (job.span.start() - whole.start()) as usize;
        job.phase = Phase::Write;
        self.put(&run, job);
        let start = Start {
            run,
            store: Some((store, slot)),
            io: Io {
                direction: Direction::Write,
                sector,
                page,
                bytes,
            },
        };
        // There is room for every run, and each is in here once at most.
        let _ = self.stores.push_within_capacity(start);
    }

    /// Records what has been read well: zeros need no slots. What is to be written remains in the job.
    fn keep_read(&mut self, run: &Run<Tracker>, job: &mut Job, memory: Place) {
        let (version, whole) = (job.version.clone(), job.span);
        let bytes = (version.sectors_of(whole).len() as usize) << SECTOR_SHIFT;
        let (head, tail) = fill::edges(run.zeros(bytes), whole.len());
        let (first, rest) = whole.split_at(whole.start() + head);
        let (rest, last) = rest.split_at(whole.end() - tail);
        let is_split = match (rest.is_empty(), head + tail) {
            (true, _) => {
                self.replace(&version, whole, Place::Zeros);
                true
            }
            (false, 0) => false,
            // (Where there is no memory for that, zeros are written, too.)
            (false, _) => self
                .split(
                    &version,
                    &[
                        (first, Place::Zeros),
                        (rest, memory.advanced(head)),
                        (last, Place::Zeros),
                    ],
                )
                .is_ok(),
        };
        if is_split {
            job.store.give_back(job.slot, head);
            job.store.give_back(job.slot + head + rest.len(), tail);
            (job.span, job.slot) = (rest, job.slot + head);
        } else {
            self.replace(&version, whole, memory);
        }
        version.keep(whole, false);
        if let (true, Some(link)) = (is_split, self.link_mut(&version)) {
            for part in [first, last].iter().filter(|part| !part.is_empty()) {
                link.extents.join_around(*part);
            }
        }
    }

    /// A job's data is in the store, or could not be put there.
    fn was_written(&mut self, run: Arc<Run<Tracker>>, job: Job, ok: bool) {
        let version = job.version;
        if !ok {
            version.fail(abi::BDSNAP_CAUSE_STORE_IO);
        }
        let index = self.index_of(&version).unwrap_or(usize::MAX);
        let (mut first, mut next) = (None, None);
        let mut at = job.span.start();
        while let Some(extent) = self
            .links
            .get(index)
            .and_then(|l| l.extents.at_or_after(at))
        {
            if extent.span.start() >= job.span.end() {
                next = Some(extent).filter(|e| e.span.start() == job.span.end());
                break;
            }
            first.get_or_insert(extent.last());
            at = extent.span.end();
            // (Others are zeros, or lost already.)
            let Place::Memory { .. } = extent.place else {
                continue;
            };
            let place = if ok {
                Place::Stored {
                    store: OWN,
                    slot: job.slot + (extent.span.start() - job.span.start()),
                }
            } else {
                self.lost_to_older(&version, extent.span, abi::BDSNAP_CAUSE_STORE_IO);
                Place::Lost
            };
            if let Some(link) = self.links.get_mut(index) {
                link.extents.put(extent.last(), place);
            }
        }
        if let Some(link) = self.links.get_mut(index) {
            // With what lies before and behind it, whichever came first.
            let ends = [first, next.map(|e| e.last())];
            ends.into_iter()
                .flatten()
                .for_each(|e| link.extents.join(e));
        }
        self.over(run, &version);
    }

    /// A version's data of some granules is lost, or could not be read: older versions that read there
    /// have lost it, too.
    fn lost_to_older(&mut self, version: &Version, span: Span<Granules>, cause: u32) {
        let Some(index) = self.index_of(version) else {
            return;
        };
        let older = self.links.get(index + 1..).unwrap_or_default();
        let mut rest = span;
        while !rest.is_empty() {
            let upto = older.iter().map(|l| l.state_run(rest).1).min();
            let (part, others) = rest.split_at(upto.unwrap_or(rest.end()));
            rest = others;
            let states = older.iter().map(|l| (&l.version, l.state_run(part).0));
            granule::readers(states).for_each(|reader| reader.lose(part.len(), cause));
        }
    }

    /// Forgets an extent that is being read.
    fn forget(&mut self, version: &Version, span: Span<Granules>) {
        if let Some(link) = self.link_mut(version) {
            link.extents.remove(span.end() - 1);
        }
    }

    /// Gives a whole extent, as it was recorded, another place.
    fn replace(&mut self, version: &Version, span: Span<Granules>, place: Place) {
        if let Some(link) = self.link_mut(version) {
            link.extents.put(span.end() - 1, place);
        }
    }

    /// Records what could be read of an extent, but for the granules with a bit in `bad`; says how many
    /// are good. Where there is no memory for the parts, all of it is lost.
    fn salvaged(
        &mut self,
        version: &Version,
        span: Span<Granules>,
        bad: u64,
        memory: Place,
    ) -> u64 {
        let mut parts = KVec::new();
        let mut at = span.start();
        let mut pushed = Ok(());
        while at < span.end() && pushed.is_ok() {
            let (part, lost) = same(span, at, bad);
            let place = if lost {
                Place::Lost
            } else {
                memory.advanced(at - span.start())
            };
            pushed = parts.push((part, place), slot::NOWAIT);
            at = part.end();
        }
        if pushed.is_err() || self.split(version, &parts).is_err() {
            self.replace(version, span, Place::Lost);
            version.keep(span, true);
            self.lost_to_older(version, span, abi::BDSNAP_CAUSE_ORIGIN_IO);
            return 0;
        }
        let mut good = 0;
        for (part, place) in parts.iter() {
            let lost = matches!(place, Place::Lost);
            version.keep(*part, lost);
            if lost {
                self.lost_to_older(version, *part, abi::BDSNAP_CAUSE_ORIGIN_IO);
            } else {
                good += part.len();
            }
        }
        good
    }

    /// Replaces an extent by parts of it, side by side; empty ones are left out. ENOMEM: all is as it
    /// was.
    fn split(&mut self, version: &Version, parts: &[(Span<Granules>, Place)]) -> Result {
        let (Some(index), Some((whole, _))) = (self.index_of(version), parts.last()) else {
            return Ok(());
        };
        let (Some(link), Some(pool)) = (self.links.get_mut(index), self.pool.as_mut()) else {
            return Ok(());
        };
        // Side by side, the first may find a full pack, and so may every so many of the others.
        if !pool.stock.has(2 + parts.len() / (PACK_EXTENTS / 2 - 1)) {
            return Err(ENOMEM);
        }
        link.extents.remove(whole.end() - 1);
        for (part, place) in parts.iter().filter(|(part, _)| !part.is_empty()) {
            match pool.stock.take() {
                Some(room) => {
                    if let Some(room) = link.record(room, *part, *place) {
                        pool.stock.give(room);
                    }
                }
                // It can't be: there were enough.
                None => version.fail(abi::BDSNAP_CAUSE_NO_MEMORY),
            }
        }
        Ok(())
    }
}

/// The longest part of `span` from `at` on whose granules are all bad, or all good: and which.
fn same(span: Span<Granules>, at: u64, bad: u64) -> (Span<Granules>, bool) {
    let is_bad = |g: u64| bad.checked_shr((g - span.start()) as u32).unwrap_or(0) & 1 == 1;
    let lost = is_bad(at);
    let mut end = at + 1;
    while end < span.end() && is_bad(end) == lost {
        end += 1;
    }
    (Span::new(at, end).unwrap_or(Span::EMPTY), lost)
}
