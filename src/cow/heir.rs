// SPDX-License-Identifier: GPL-2.0

//! Heirs: older versions, which take over the data that they read through a newer one, before that
//! forgets it or goes.

use super::chain::Link;
use super::extents::Inherited;
use super::extents::PackRoom;
use crate::kapi::slot;
use crate::kapi::slot::BitPage;
use crate::store::Store;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::granule;
use bdsnap_logic::granule::State;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Span;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Packs of extents in a [`Room`]: two for each extent, of which few are needed.
const PACKS: usize = 16;
/// Stores in a [`Room`]: one for each extent.
const STORES: usize = 64;
/// Leaves of bitmaps in stock: twice what one extent may need, and more.
const LEAVES: usize = 12;

/// Memory for what has to be recorded: nothing is allocated while the chain is locked, since who copies
/// would wait for it, and writes for that.
pub(super) struct Room {
    /// Packs of extents.
    pub(super) packs: KVec<PackRoom>,
    /// Leaves of bitmaps.
    pub(super) leaves: KVec<KBox<BitPage>>,
    /// Stores of slots that were given back: who drops the last reference to one sleeps, and takes locks.
    pub(super) stores: KVec<Arc<Store>>,
    /// A longer list of inherited stores.
    list: KVVec<Inherited>,
    /// How many it must have place for.
    wanted: usize,
}

impl Room {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self {
            packs: KVec::new(),
            leaves: KVec::new(),
            stores: KVec::new(),
            list: KVVec::new(),
            wanted: 0,
        }
    }

    /// Fills it up, and drops what there is to be dropped. ENOMEM. Sleeps.
    pub(super) fn refill(&mut self) -> Result {
        self.stores.clear();
        self.stores.reserve(STORES, GFP_KERNEL)?;
        while self.packs.len() < PACKS {
            self.packs.push(PackRoom::new(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        if self.list.capacity() < self.wanted {
            self.list = KVVec::with_capacity(self.wanted, GFP_KERNEL)?;
        }
        while self.leaves.len() < LEAVES {
            self.leaves.push(slot::zeroed(GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Whether there is all that one extent may need, but for what is `wanted`.
    pub(super) fn is_enough(&self) -> bool {
        self.packs.len() >= 2 && self.leaves.len() >= LEAVES / 2 && self.stores.len() < STORES
    }

    /// Takes back a pack that was not needed.
    pub(super) fn give(&mut self, room: Option<PackRoom>) {
        if let Some(room) = room {
            // (It came from there.)
            let _ = self.packs.push_within_capacity(room);
        }
    }
}

/// The heir to the beginning of `span`, of which a newer version has the data: one of the `older` ones, the
/// next older first, if any of them makes use of it. And for how much of `span` that is so.
pub(super) fn heir(
    older: &mut [Link],
    span: Span<Granules>,
) -> (Span<Granules>, Option<&mut Link>) {
    let mut end = span.end();
    let heir = granule::heir(older.iter().map(|link| {
        let (state, upto) = link.state_run(span);
        end = end.min(upto);
        state
    }));
    let (part, _) = span.split_at(end);
    (part, heir.and_then(|index| older.get_mut(index)))
}

impl Link {
    /// Whether the first granule of `span` is just being read.
    pub(super) fn is_reading(&self, span: Span<Granules>) -> bool {
        self.state_run(span).0 == State::Reading
    }

    /// Takes over the data of granules that it needs, at a newer version's `place`, which is in `store` if in
    /// any. `room` must be enough. False: nothing has been done, since more than that is wanted. ENOMEM: it
    /// has as many inherited stores as can be counted.
    pub(super) fn take_over(
        &mut self,
        span: Span<Granules>,
        place: Place,
        store: Option<&Arc<Store>>,
        room: &mut Room,
    ) -> Result<bool> {
        self.version.ensure_from(span, &mut room.leaves)?;
        let place = match (place, store) {
            (Place::Stored { slot, .. }, Some(store)) => {
                match self.extents.index_of(store, &mut room.list)? {
                    Some(store) => Place::Stored { store, slot },
                    None => {
                        room.wanted = self.extents.wanted();
                        return Ok(false);
                    }
                }
            }
            // (A version in the chain has all its stores.)
            (Place::Stored { .. }, None) => return Err(EIO),
            (place, _) => place,
        };
        let pack = room.packs.pop().ok_or(ENOMEM)?;
        let unused = self.record(pack, span, place);
        room.give(unused);
        self.version.inherit(span);
        self.is_heir = true;
        Ok(true)
    }

    /// Forgets `part` of the extent that it lies in. `room`, which is there: for what of it is before that;
    /// given back if it was not needed.
    pub(super) fn cut_out(
        &mut self,
        part: Span<Granules>,
        room: Option<PackRoom>,
    ) -> Option<PackRoom> {
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
