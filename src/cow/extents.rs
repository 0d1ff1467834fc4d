// SPDX-License-Identifier: GPL-2.0

//! The extents of a version: their packs in a red-black tree, and the stores that they lie in.

use crate::store::Store;
use bdsnap_logic::extent_map::Extent;
use bdsnap_logic::extent_map::ExtentMap;
use bdsnap_logic::extent_map::Pack;
use bdsnap_logic::extent_map::Packs;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::extent_map::MAX_INDEX;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Span;
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::rbtree::RBTreeNodeReservation;
use kernel::sync::Arc;

/// The index of a version's own store in [`Place::Stored`]; others are those that it has inherited.
pub(super) const OWN: u16 = 0;

/// Memory for one pack of extents: what is recorded needs one at most.
pub(super) type PackRoom = RBTreeNodeReservation<u64, Pack>;

/// Packs by their bounds.
struct Tree(RBTree<u64, Pack>);

impl Packs for Tree {
    type Room = PackRoom;

    fn look<R>(&self, granule: u64, see: impl FnOnce(u64, &Pack) -> R) -> Option<R> {
        let cursor = self.0.cursor_lower_bound(&granule)?;
        let (bound, pack) = cursor.current();
        Some(see(*bound, pack))
    }

    fn change<R>(&mut self, granule: u64, change: impl FnOnce(u64, &mut Pack) -> R) -> Option<R> {
        let mut cursor = self.0.cursor_lower_bound_mut(&granule)?;
        let (bound, pack) = cursor.current_mut();
        Some(change(*bound, pack))
    }

    fn look_before<R>(&self, bound: u64, see: impl FnOnce(u64, &Pack) -> R) -> Option<R> {
        let cursor = self.0.cursor_lower_bound(&bound)?;
        let (bound, pack) = cursor.peek_prev()?;
        Some(see(*bound, pack))
    }

    fn add(&mut self, room: PackRoom, bound: u64, pack: Pack) {
        self.0.insert(room.into_node(bound, pack));
    }

    fn remove(&mut self, bound: u64) {
        self.0.remove(&bound);
    }
}

/// A store of a newer version that was deleted, with data that is still needed.
pub(super) struct Inherited {
    /// The store; None: nothing is in it any more.
    store: Option<Arc<Store>>,
    /// How many extents lie in it.
    extents: u64,
}

/// Extents by granule. Under the lock of the chain.
pub(super) struct Extents {
    /// They.
    map: ExtentMap<Tree>,
    /// The stores that are not the version's own, by index less 1.
    inherited: KVVec<Inherited>,
    /// Which of them was asked for last.
    latest: usize,
}

impl Extents {
    /// None. Needs no memory.
    pub(super) fn new() -> Self {
        Self {
            map: ExtentMap::new(Tree(RBTree::new())),
            inherited: KVVec::new(),
            latest: 0,
        }
    }

    /// See [`ExtentMap::at_or_after`].
    pub(super) fn at_or_after(&self, granule: u64) -> Option<Extent> {
        self.map.at_or_after(granule)
    }

    /// See [`ExtentMap::insert`].
    pub(super) fn insert(
        &mut self,
        extent: Extent,
        room: PackRoom,
    ) -> Result<Option<PackRoom>, PackRoom> {
        let unused = self.map.insert(extent, room)?;
        if let Some(inherited) = self.inherited_mut(extent.place) {
            inherited.extents += 1;
        }
        Ok(unused)
    }

    /// Gives the extent that ends with granule `last`, which is not in a store, another place: in the
    /// version's own store, or in none.
    pub(super) fn put(&mut self, last: u64, place: Place) {
        self.map.put(last, place);
    }

    /// See [`ExtentMap::cut_front`].
    pub(super) fn cut_front(&mut self, last: u64, granule: u64) {
        self.map.cut_front(last, granule);
    }

    /// See [`ExtentMap::remove`].
    pub(super) fn remove(&mut self, last: u64) {
        let gone = self.map.remove(last);
        self.one_less(gone);
    }

    /// See [`ExtentMap::join`]: long runs of writes cost one extent.
    pub(super) fn join(&mut self, last: u64) {
        let gone = self.map.join(last);
        self.one_less(gone);
    }

    /// Joins the extents that `span` begins and ends with to those next to it.
    pub(super) fn join_around(&mut self, span: Span<Granules>) {
        if let Some(first) = self.map.at_or_after(span.start()) {
            self.join(first.last());
        }
        let next = self.map.at_or_after(span.end());
        if let Some(next) = next.filter(|next| next.span.start() == span.end()) {
            self.join(next.last());
        }
    }

    /// Takes note that there is an extent less.
    fn one_less(&mut self, gone: Option<Extent>) {
        if let Some(inherited) = gone.and_then(|e| self.inherited_mut(e.place)) {
            inherited.extents -= 1;
        }
    }

    /// The inherited store that a place is in.
    fn inherited_mut(&mut self, place: Place) -> Option<&mut Inherited> {
        match place {
            Place::Stored { store, .. } => {
                let index = usize::from(store).checked_sub(1)?;
                self.inherited.get_mut(index)
            }
            _ => None,
        }
    }

    /// The inherited store with an index.
    pub(super) fn inherited(&self, index: u16) -> Option<Arc<Store>> {
        let index = usize::from(index).checked_sub(1)?;
        self.inherited.get(index)?.store.clone()
    }

    /// Lets go of an inherited store if nothing is in it any more. The caller drops it without the lock.
    pub(super) fn let_go(&mut self, index: u16) -> Option<Arc<Store>> {
        let index = usize::from(index).checked_sub(1)?;
        let inherited = self.inherited.get_mut(index);
        inherited.filter(|i| i.extents == 0)?.store.take()
    }

    /// The index of a store that is, or will be, inherited. ENOMEM: there are as many as can be counted,
    /// 32767. None: `list`, which takes the place of the list of them where that is full, must have a
    /// capacity of [`Extents::wanted`].
    pub(super) fn index_of(
        &mut self,
        store: &Arc<Store>,
        list: &mut KVVec<Inherited>,
    ) -> Result<Option<u16>> {
        let is = |i: &Inherited| i.store.as_ref().is_some_and(|s| Arc::ptr_eq(s, store));
        let latest = self.inherited.get(self.latest).filter(|i| is(i));
        let found = latest.map(|_| self.latest);
        let found = found.or_else(|| self.inherited.iter().rposition(is));
        let free = || self.inherited.iter().position(|i| i.store.is_none());
        let index = match found.or_else(free) {
            Some(index) => index,
            None => {
                let count = self.inherited.len();
                if count >= usize::from(MAX_INDEX) {
                    return Err(ENOMEM);
                }
                if count == self.inherited.capacity() {
                    if list.capacity() < self.wanted() {
                        return Ok(None);
                    }
                    for inherited in self.inherited.drain_all() {
                        // (There is room.)
                        let _ = list.push_within_capacity(inherited);
                    }
                    core::mem::swap(&mut self.inherited, list);
                }
                let new = Inherited {
                    store: None,
                    extents: 0,
                };
                let _ = self.inherited.push_within_capacity(new);
                count
            }
        };
        let inherited = self.inherited.get_mut(index).ok_or(ENOMEM)?;
        inherited.store.get_or_insert_with(|| store.clone());
        self.latest = index;
        Ok(Some(index as u16 + 1))
    }

    /// How many inherited stores a larger list would have place for.
    pub(super) fn wanted(&self) -> usize {
        2 * self.inherited.capacity() + 4
    }
}
