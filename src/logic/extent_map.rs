// SPDX-License-Identifier: GPL-2.0
//! Where the data of a version's granules is: a map of extents, in packs of some that follow each other.
//!
//! With writes at random each granule is an extent of its own, so that the size of one is what a
//! snapshot costs in memory: 16 bytes here, in packs of which two thirds are in use on average.
//! The tree that finds a pack is the caller's: [`Packs`].

use crate::granule::State;
use crate::units::div_down;
use crate::units::mask;
use crate::units::times;
use crate::units::Granules;
use crate::units::Span;

/// The most granules that an extent can have.
pub const MAX_GRANULES: u64 = 1 << LEN_BITS;

/// The most runs, and the most stores of other versions, that a map can name.
pub const MAX_INDEX: u16 = (1 << INDEX_BITS) - 1;

/// The length of an extent, less 1, has so many bits; its last granule the others of 64.
const LEN_BITS: u32 = 13;
/// Slots have so many bits ([`crate::fill::SLOT_BITS`]), and pages of a run.
const AT_BITS: u32 = crate::fill::SLOT_BITS;
/// Indices of runs and stores have so many bits; two are left of 64 for the kind.
const INDEX_BITS: u32 = 15;

/// Where the data of an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On its way from the origin.
    Reading,
    /// Nowhere: it is zeros.
    Zeros,
    /// Nowhere.
    Lost,
    /// In memory.
    Memory {
        /// In the run with this index.
        run: u16,
        /// The page of the extent's first granule in it.
        page: u64,
    },
    /// In a store.
    Stored {
        /// Which one: an index of the caller's.
        store: u16,
        /// The slot of the extent's first granule.
        slot: u64,
    },
}

impl Place {
    /// The state of granules there.
    pub const fn state(self) -> State {
        match self {
            Self::Reading => State::Reading,
            Self::Memory { .. } => State::Memory,
            Self::Stored { .. } | Self::Zeros => State::Stored,
            Self::Lost => State::Lost,
        }
    }

    /// The place of the granules from `n` granules on.
    pub const fn advanced(self, n: u64) -> Self {
        match self {
            Self::Memory { run, page } => Self::Memory {
                run,
                page: page.saturating_add(n),
            },
            Self::Stored { store, slot } => Self::Stored {
                store,
                slot: slot.saturating_add(n),
            },
            other => other,
        }
    }

    /// In 64 bits: kind, index, and place there. [`None`]: it doesn't fit.
    fn encode(self) -> Option<u64> {
        let (kind, index, at) = match self {
            Self::Reading => (0, 0, 0),
            Self::Zeros => (0, 0, 1),
            Self::Lost => (0, 0, 2),
            Self::Memory { run, page } => (1, run, page),
            Self::Stored { store, slot } => (2, store, slot),
        };
        let fits = index <= MAX_INDEX && at <= mask(AT_BITS);
        let kind = times(kind, AT_BITS.saturating_add(INDEX_BITS));
        fits.then(|| kind | times(u64::from(index), AT_BITS) | at)
    }

    /// What was encoded.
    fn decode(packed: u64) -> Self {
        let at = packed & mask(AT_BITS);
        let index = div_down(packed, AT_BITS) & mask(INDEX_BITS);
        let index = u16::try_from(index).unwrap_or(MAX_INDEX);
        match (div_down(packed, AT_BITS.saturating_add(INDEX_BITS)), at) {
            (0, 0) => Self::Reading,
            (0, 1) => Self::Zeros,
            (1, page) => Self::Memory { run: index, page },
            (2, slot) => Self::Stored { store: index, slot },
            _ => Self::Lost,
        }
    }
}

/// Some consecutive granules with one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The granules: one at least.
    pub span: Span<Granules>,
    /// Where their data is.
    pub place: Place,
}

impl Extent {
    /// Its last granule: what it is found by.
    pub const fn last(&self) -> u64 {
        self.span.end().saturating_sub(1)
    }

    /// The part of it from `granule` on.
    pub fn from(&self, granule: u64) -> Self {
        let (before, span) = self.span.split_at(granule);
        Self {
            span,
            place: self.place.advanced(before.len()),
        }
    }

    /// The one extent that it and the next one are, if that lies behind it and the data of both lies
    /// side by side in one store, or is zeros.
    fn joined(&self, next: &Self) -> Option<Self> {
        let can = matches!(self.place, Place::Zeros | Place::Stored { .. });
        let lies_on = can && self.place.advanced(self.span.len()) == next.place;
        let span = Span::new(self.span.start(), next.span.end())?;
        let follows = self.span.end() == next.span.start() && span.len() <= MAX_GRANULES;
        (lies_on && follows).then_some(Self {
            span,
            place: self.place,
        })
    }
}

/// An extent in 16 bytes.
#[derive(Clone, Copy)]
struct Entry {
    /// The last granule, and the length less 1.
    range: u64,
    /// The place.
    place: u64,
}

impl Entry {
    /// None: an unused entry of a pack.
    const UNUSED: Self = Self { range: 0, place: 0 };

    /// [`None`]: it doesn't fit, or is empty.
    fn new(extent: &Extent) -> Option<Self> {
        let len = extent.span.len().checked_sub(1)?;
        let fits = len <= mask(LEN_BITS) && div_down(extent.last(), 64 - LEN_BITS) == 0;
        let place = extent.place.encode()?;
        fits.then(|| Self {
            range: times(extent.last(), LEN_BITS) | len,
            place,
        })
    }

    /// The last granule.
    fn last(&self) -> u64 {
        div_down(self.range, LEN_BITS)
    }

    /// What was encoded.
    fn extent(&self) -> Extent {
        let end = self.last().saturating_add(1);
        let len = (self.range & mask(LEN_BITS)).saturating_add(1);
        let span = Span::new(end.saturating_sub(len), end).unwrap_or(Span::EMPTY);
        Extent {
            span,
            place: Place::decode(self.place),
        }
    }
}

/// The most extents in a pack: with a tree's node and the bound of the pack it has 512 bytes.
pub const PACK_EXTENTS: usize = 29;

/// Extents that follow each other, by last granule.
///
/// # Invariants
///
/// The first `len` entries are in use, in order, and without granules in common.
pub struct Pack {
    /// How many extents there are.
    len: usize,
    /// They, and unused entries.
    entries: [Entry; PACK_EXTENTS],
}

impl Pack {
    /// No extents.
    const EMPTY: Self = Self {
        len: 0,
        entries: [Entry::UNUSED; PACK_EXTENTS],
    };

    /// Its extents.
    fn list(&self) -> &[Entry] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    /// The index of the first extent that doesn't end before `granule`.
    fn index(&self, granule: u64) -> usize {
        self.list().partition_point(|entry| entry.last() < granule)
    }

    /// The extent that ends with granule `last`, and its index.
    fn ending(&self, last: u64) -> Option<(usize, Extent)> {
        let index = self.index(last);
        let entry = self.list().get(index)?;
        (entry.last() == last).then(|| (index, entry.extent()))
    }

    /// Puts an extent where it belongs. False: there is no room.
    fn insert(&mut self, new: Entry) -> bool {
        if self.len >= PACK_EXTENTS {
            return false;
        }
        let at = self.index(new.last());
        self.len = self.len.saturating_add(1);
        let mut next = new;
        let moved = self.entries.get_mut(at..self.len).unwrap_or_default();
        for entry in moved.iter_mut() {
            core::mem::swap(entry, &mut next);
        }
        true
    }

    /// Takes the extent with this index out.
    fn remove(&mut self, index: usize) {
        let mut next = Entry::UNUSED;
        let moved = self.entries.get_mut(index..self.len).unwrap_or_default();
        for entry in moved.iter_mut().rev() {
            core::mem::swap(entry, &mut next);
        }
        if index < self.len {
            self.len = self.len.saturating_sub(1);
        }
    }

    /// Moves its first `count` extents into a new pack.
    fn split(&mut self, count: usize) -> Self {
        let mut lower = Self::EMPTY;
        let all = self.list().iter().take(count);
        for (to, from) in lower.entries.iter_mut().zip(all) {
            *to = *from;
        }
        lower.len = count.min(self.len);
        for index in lower.len..self.len {
            let entry = self.entries.get(index).copied();
            let to = self.entries.get_mut(index.saturating_sub(lower.len));
            if let (Some(entry), Some(to)) = (entry, to) {
                *to = entry;
            }
        }
        self.len = self.len.saturating_sub(lower.len);
        lower
    }
}

/// The packs of a map: a tree of them by *bound*, each with another one. The caller's.
pub trait Packs {
    /// Memory for a pack.
    type Room;

    /// What `see` makes of the pack with the lowest bound that is not below `granule`, and of that bound.
    fn look<R>(&self, granule: u64, see: impl FnOnce(u64, &Pack) -> R) -> Option<R>;

    /// The same, where `change` may change the pack.
    fn change<R>(&mut self, granule: u64, change: impl FnOnce(u64, &mut Pack) -> R) -> Option<R>;

    /// What `see` makes of the pack with the highest bound below `bound`, which a pack has, and of that bound.
    fn look_before<R>(&self, bound: u64, see: impl FnOnce(u64, &Pack) -> R) -> Option<R>;

    /// Adds a pack.
    fn add(&mut self, room: Self::Room, bound: u64, pack: Pack);

    /// Takes the pack with this bound out.
    fn remove(&mut self, bound: u64);
}

/// A map of extents.
///
/// # Invariants
///
/// No granule is in two extents. All extents of a pack end at its bound or before, and begin after
/// all those of packs with lower bounds end. If there are packs, there is one whose bound is
/// [`u64::MAX`]; it alone may be empty.
pub struct ExtentMap<P> {
    /// The packs.
    packs: P,
}

impl<P: Packs> ExtentMap<P> {
    /// An empty map, with no packs in `packs`.
    pub const fn new(packs: P) -> Self {
        Self { packs }
    }

    /// The first extent that doesn't end before `granule`.
    pub fn at_or_after(&self, granule: u64) -> Option<Extent> {
        let look = |bound, pack: &Pack| (bound, pack.list().get(pack.index(granule)).copied());
        let (bound, found) = self.packs.look(granule, look)?;
        let entry = match found {
            Some(entry) => entry,
            None => {
                let first = |_, pack: &Pack| pack.list().first().copied();
                self.packs.look(bound.checked_add(1)?, first)??
            }
        };
        Some(entry.extent())
    }

    /// Adds an extent, no granule of which is in the map; gives `room` back if it was not needed.
    /// The error has it, too: the extent has more than [`MAX_GRANULES`], none, or numbers that are too high.
    pub fn insert(&mut self, extent: Extent, room: P::Room) -> Result<Option<P::Room>, P::Room> {
        let Some(entry) = Entry::new(&extent) else {
            return Err(room);
        };
        let put = |_, pack: &mut Pack| pack.insert(entry);
        if self.packs.change(entry.last(), put) == Some(true) {
            return Ok(Some(room));
        }
        self.add(entry, room);
        Ok(None)
    }

    /// Adds an entry where there is no pack with room for it.
    #[cold]
    #[inline(never)]
    fn add(&mut self, entry: Entry, room: P::Room) {
        let split = self.packs.change(entry.last(), |_, pack| {
            // Where they come in order, packs become full, and the next ones have one to go to.
            let (count, bound) = match pack.index(entry.last()) {
                0 => (0, pack.list().first().map(|e| e.last().saturating_sub(1))),
                PACK_EXTENTS.. => (PACK_EXTENTS, None),
                _ => (PACK_EXTENTS / 2, None),
            };
            let mut lower = pack.split(count);
            let bound = bound.or_else(|| lower.list().last().map(Entry::last));
            let bound = bound.unwrap_or(entry.last());
            let part = if entry.last() <= bound {
                &mut lower
            } else {
                pack
            };
            part.insert(entry);
            (bound, lower)
        });
        let (bound, pack) = split.unwrap_or_else(|| {
            let mut pack = Pack::EMPTY;
            pack.insert(entry);
            (u64::MAX, pack)
        });
        self.packs.add(room, bound, pack);
    }

    /// Gives the extent that ends with granule `last` another place. False: there is none, or it doesn't fit.
    pub fn put(&mut self, last: u64, place: Place) -> bool {
        self.change(last, |extent| Extent { place, ..extent })
    }

    /// Takes the granules before `granule` out of the extent that ends with granule `last`, which has others.
    pub fn cut_front(&mut self, last: u64, granule: u64) -> bool {
        self.change(last, |extent| extent.from(granule))
    }

    /// Changes the extent that ends with granule `last`, but for that.
    fn change(&mut self, last: u64, change: impl FnOnce(Extent) -> Extent) -> bool {
        let put = |_, pack: &mut Pack| {
            let (index, extent) = pack.ending(last)?;
            let entry = Entry::new(&change(extent)).filter(|e| e.last() == last)?;
            *pack.entries.get_mut(index)? = entry;
            Some(())
        };
        self.packs.change(last, put).flatten().is_some()
    }

    /// Takes the extent that ends with granule `last` out.
    pub fn remove(&mut self, last: u64) -> Option<Extent> {
        let take = |bound, pack: &mut Pack| {
            let (index, extent) = pack.ending(last)?;
            pack.remove(index);
            Some((bound, pack.len, extent))
        };
        let (bound, left, extent) = self.packs.change(last, take)??;
        self.tidy(bound, left);
        Some(extent)
    }

    /// Joins the extent that ends with granule `last` to the one before it, if both are zeros, or lie side by
    /// side in one store: returns that one, as it was.
    pub fn join(&mut self, last: u64) -> Option<Extent> {
        let join = |bound, pack: &mut Pack| {
            let (index, extent) = pack.ending(last)?;
            let Some(index) = index.checked_sub(1) else {
                return Some(Err((bound, extent)));
            };
            let before = pack.list().get(index)?.extent();
            let joined = Entry::new(&before.joined(&extent)?)?;
            pack.remove(index);
            *pack.entries.get_mut(index)? = joined;
            Some(Ok((bound, pack.len, before)))
        };
        match self.packs.change(last, join)?? {
            Ok((bound, left, before)) => {
                self.tidy(bound, left);
                Some(before)
            }
            Err((bound, extent)) => {
                let last_of = |_, pack: &Pack| pack.list().last().map(Entry::extent);
                let before = self.packs.look_before(bound, last_of)??;
                let joined = before.joined(&extent)?;
                self.remove(before.last())?;
                self.change(last, |_| joined);
                Some(before)
            }
        }
    }

    /// Moves what is left in a pack, `left` extents, into the next one, or what is in the one before into it:
    /// if it is little.
    fn tidy(&mut self, bound: u64, left: usize) {
        if left <= PACK_EXTENTS / 4 && !self.merge(bound) {
            if let Some(before) = self.packs.look_before(bound, |bound, _| bound) {
                self.merge(before);
            }
        }
    }

    /// Moves the extents of a pack into the next one, if it has none, or both together are half of one at most.
    fn merge(&mut self, bound: u64) -> bool {
        let Some(next) = bound.checked_add(1) else {
            return false;
        };
        let len = |_, pack: &Pack| pack.len;
        let (Some(a), Some(b)) = (self.packs.look(bound, len), self.packs.look(next, len)) else {
            return false;
        };
        if a > 0 && a.saturating_add(b) > PACK_EXTENTS / 2 {
            return false;
        }
        for index in 0..a {
            let entry = |_, pack: &Pack| pack.list().get(index).copied();
            if let Some(entry) = self.packs.look(bound, entry).flatten() {
                self.packs.change(next, |_, into| into.insert(entry));
            }
        }
        self.packs.remove(bound);
        true
    }

    /// The packs.
    pub const fn packs(&self) -> &P {
        &self.packs
    }
}
