// SPDX-License-Identifier: GPL-2.0

//! What the reader of an image is done with: it is not copied any more, and what has been copied of it
//! makes room, but for what older versions need.

use super::chain::Chain;
use super::chain::Link;
use super::extents::Inherited;
use super::extents::PackRoom;
use super::version::Version;
use crate::kapi::abi;
use crate::kapi::noio;
use crate::kapi::slot;
use crate::kapi::slot::BitPage;
use crate::kapi::time::Deadline;
use crate::store::Store;
use crate::tracker::Tracker;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::granule;
use bdsnap_logic::granule::State;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::cell::Cell;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Granules that are released at a time, with the chain locked.
const STEP: u64 = 1 << 13;
/// Packs of extents in a [`Room`]: two for each extent, of which few are needed.
const PACKS: usize = 16;
/// Stores in a [`Room`]: one for each extent.
const STORES: usize = 64;
/// Leaves of bitmaps in stock: twice what one extent may need, and more.
const LEAVES: usize = 12;

/// Memory for what has to be recorded of a release: nothing is allocated while the chain is locked, since
/// who copies would wait for it, and writes for that.
struct Room {
    /// Packs of extents.
    packs: KVec<PackRoom>,
    /// Leaves of bitmaps.
    leaves: KVec<KBox<BitPage>>,
    /// Stores of slots that were given back: who drops the last reference to one sleeps, and takes locks.
    stores: KVec<Arc<Store>>,
    /// A longer list of inherited stores.
    list: KVVec<Inherited>,
    /// How many it must have place for.
    wanted: usize,
}

impl Room {
    /// Fills it up, and drops what there is to be dropped. ENOMEM. Sleeps.
    fn refill(&mut self) -> Result {
        self.stores.clear();
        self.stores.reserve(STORES, GFP_KERNEL)?;
        while self.packs.len() < PACKS {
            self.packs.push(PackRoom::new(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        if self.list.capacity() < self.wanted {
            self.list = KVVec::with_capacity(self.wanted, GFP_KERNEL)?;
        }
        refill(&mut self.leaves)
    }

    /// Whether there is all that one extent may need, but for what is `wanted`.
    fn is_enough(&self) -> bool {
        self.packs.len() >= 2 && self.leaves.len() >= LEAVES / 2 && self.stores.len() < STORES
    }

    /// Takes back a pack that was not needed.
    fn give(&mut self, room: Option<PackRoom>) {
        if let Some(room) = room {
            // (It came from there.)
            let _ = self.packs.push_within_capacity(room);
        }
    }
}

/// Fills up a stock of leaves. ENOMEM. May sleep.
pub(super) fn refill(leaves: &mut KVec<KBox<BitPage>>) -> Result {
    while leaves.len() < LEAVES {
        leaves.push(slot::zeroed(GFP_KERNEL)?, GFP_KERNEL)?;
    }
    Ok(())
}

/// How far a release has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// All is released.
    Done,
    /// Some of it is just being copied.
    Copying,
    /// More room is needed.
    NoRoom,
}

/// Releases what of `sectors` is whole granules of a version, which a read of its image keeps in its
/// chain. Waits for copies of them that are on their way; sleeps.
///
/// EIO: it has failed. ETIMEDOUT: those did not get anywhere. EINTR: this process is being killed. ENOMEM.
/// What has been released by then stays so.
pub(crate) fn release(tracker: &Arc<Tracker>, version: &Version, sectors: Span<Sectors>) -> Result {
    let _noio = noio::Scope::enter();
    let mut room = Room {
        packs: KVec::new(),
        leaves: KVec::new(),
        stores: KVec::new(),
        list: KVVec::new(),
        wanted: 0,
    };
    let mut rest = sectors.inward::<Granules>(version.shift(), version.sectors());
    let mut result = Ok(());
    while !rest.is_empty() && result.is_ok() {
        let (part, others) = rest.split_at(rest.start().saturating_add(STEP));
        // Nothing of it begins to be copied any more, once that has been looked at.
        let deadline = Deadline::after_ms(abi::BDSNAP_STALL_MS);
        let mut progress = Ok(Progress::Copying);
        let ended = deadline.wait_until(|| {
            loop {
                progress = room
                    .refill()
                    .and_then(|()| tracker.lock_chain().release(version, part, &mut room));
                if progress != Ok(Progress::NoRoom) || abi::is_dying() {
                    break;
                }
            }
            progress != Ok(Progress::Copying) || abi::is_dying()
        });
        rest = others;
        result = match progress {
            Ok(Progress::Done) if !abi::is_dying() => Ok(()),
            Ok(_) if ended => Err(EINTR),
            Ok(_) => Err(ETIMEDOUT),
            Err(e) => Err(e),
        };
    }
    // Those that wait for room.
    tracker.kick();
    result
}

impl Link {
    /// Forgets `part` of the extent that it lies in. `room`, which is there: for what of it is before that;
    /// given back if it was not needed.
    fn cut_out(&mut self, part: Span<Granules>, room: Option<PackRoom>) -> Option<PackRoom> {
        let Ok(extent) = self.find(part.start()) else {
            return room;
        };
        let (before, _) = extent.span.split_at(part.start());
        if part.end() >= extent.span.end() {
            self.extents.remove(extent.last());
        } else {
            self.extents.cut_front(extent.last(), part.end());
        }
        if before.is_empty() {
            return room;
        }
        self.record(room?, before, extent.place)
    }
}

impl Chain {
    /// Releases granules of a version. EIO: it has failed.
    fn release(
        &mut self,
        version: &Version,
        span: Span<Granules>,
        room: &mut Room,
    ) -> Result<Progress> {
        let index = self.index_of(version).filter(|_| version.is_live());
        let index = index.ok_or(EIO)?;
        if version.ensure_kept_from(span, &mut room.leaves).is_err() {
            return Ok(Progress::NoRoom);
        }
        let mut progress = Progress::Done;
        let mut rest = span;
        while !rest.is_empty() {
            let Some(link) = self.links.get(index) else {
                break;
            };
            let (state, upto) = link.state_run(rest);
            let (run, others) = rest.split_at(upto);
            rest = others;
            match state {
                State::NotKept => (),
                State::Needed => version.release(run),
                State::Reading | State::Memory => progress = Progress::Copying,
                State::Stored | State::Lost => match self.forget_run(index, run, room)? {
                    Progress::Done => (),
                    Progress::Copying => progress = Progress::Copying,
                    Progress::NoRoom => return Ok(Progress::NoRoom),
                },
            }
        }
        Ok(progress)
    }

    /// Forgets granules of one extent that is in its place, after having handed them down to those older
    /// versions that need them. Copying: not all, since one of these is reading them. NoRoom: what has been
    /// done is. ENOMEM: an heir has more inherited stores than can be counted.
    fn forget_run(
        &mut self,
        index: usize,
        run: Span<Granules>,
        room: &mut Room,
    ) -> Result<Progress> {
        let split = self.links.split_at_mut_checked(index + 1);
        let Some((newer, older)) = split else {
            return Ok(Progress::Done);
        };
        let Some(link) = newer.last_mut() else {
            return Ok(Progress::Done);
        };
        let mut rest = run;
        let mut progress = Progress::Done;
        while !rest.is_empty() {
            let Ok(extent) = link.find(rest.start()) else {
                return Ok(progress);
            };
            let place = extent.from(rest.start()).place;
            let end = Cell::new(rest.end());
            let states = older.iter().map(|l| {
                let (state, upto) = l.state_run(rest);
                end.set(end.get().min(upto));
                state
            });
            let heir = granule::heir(states);
            let (part, others) = rest.split_at(end.get());
            rest = others;
            let heir = heir.and_then(|i| older.get_mut(i));
            if heir
                .as_ref()
                .is_some_and(|h| h.state_run(part).0 == State::Reading)
            {
                progress = Progress::Copying;
                continue;
            }
            // All that may fail comes first: a slot must not have two owners, nor none.
            if !room.is_enough() {
                return Ok(Progress::NoRoom);
            }
            let stored = match place {
                Place::Stored { store, slot } => link.store(store).map(|s| (s, store, slot)),
                _ => None,
            };
            let is_inherited = heir.is_some();
            if let Some(heir) = heir {
                heir.version.ensure_from(part, &mut room.leaves)?;
                let store = stored.as_ref().map(|s| &s.0);
                let Some(place) = heir.place_here(place, store, &mut room.list)? else {
                    room.wanted = heir.extents.wanted();
                    return Ok(Progress::NoRoom);
                };
                let heirs = room.packs.pop().ok_or(ENOMEM)?;
                room.give(heir.inherit(heirs, part, place));
            } else if let Some((store, _, slot)) = &stored {
                store.ensure_release(*slot, part.len(), &mut room.leaves)?;
            }
            let own = room.packs.pop();
            room.give(link.cut_out(part, own));
            link.version.release(part);
            if let Some((store, index, slot)) = stored {
                // Who still reads there finds out that it has been released.
                if !is_inherited {
                    store.release(slot, part.len());
                }
                // Not the last one: this one is.
                drop(link.extents.let_go(index));
                // (There is room.)
                let _ = room.stores.push_within_capacity(store);
            }
        }
        Ok(progress)
    }
}
