// SPDX-License-Identifier: GPL-2.0

//! The end of a version: what older ones need of it is handed down to them.

use super::chain::Chain;
use super::chain::Link;
use super::extents::Inherited;
use super::extents::PackRoom;
use super::extents::OWN;
use super::release::refill;
use super::version::Version;
use super::version::Versions;
use crate::kapi::slot::BitPage;
use crate::kapi::time;
use crate::store::Store;
use crate::tracker::Tracker;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::granule;
use bdsnap_logic::granule::State;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Span;
use core::cell::Cell;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;

/// Takes a version out of its origin's chain. Its image is gone already. Waits for copies on their
/// way, for RCU, and sleeps. Under the registry's lock, so the list changes under nobody else.
pub(crate) fn remove(tracker: &Arc<Tracker>, version: &Arc<Version>) {
    version.close();
    // Copies are begun under the lock, for versions that live: seen there, zero stays zero.
    let mut chain = loop {
        let chain = tracker.lock_chain();
        if version.is_idle() {
            break chain;
        }
        drop(chain);
        tracker.kick();
        time::sleep_us(200);
    };
    let newest = chain.index_of(version) == Some(0);
    chain.hand_down(version);
    let list = loop {
        match chain.versions(Some(version)) {
            Ok(list) if list.is_empty() => break Some(None),
            Ok(list) => match KBox::new(Versions::new(list, newest), GFP_KERNEL) {
                Ok(list) => break Some(Some(list)),
                Err(_) => time::sleep_us(1000),
            },
            Err(_) => time::sleep_us(1000),
        }
    };
    let retired = list.map(|list| tracker.versions.swap(list));
    let gone = chain.unlink(version);
    drop(chain);
    // Waits for hooks and completions that still look at the old list.
    drop(retired);
    if let Some(older) = gone.older {
        // Marks that came between the first look and the new list.
        older.view.inherit(&version.view);
    }
    let guard = rcu::read_lock();
    if let Some(versions) = tracker.versions.read(&guard) {
        versions.settled();
    }
    drop(guard);
    tracker.lock_chain().shrink();
    tracker.kick();
}

/// Memory for what is handed down.
struct Stock {
    /// Leaves of bitmaps.
    leaves: KVec<KBox<BitPage>>,
    /// A pack of extents.
    room: Option<PackRoom>,
    /// A longer list of inherited stores.
    list: KVVec<Inherited>,
}

/// What [`Chain::unlink`] took out.
struct Unlinked {
    /// The next older version.
    older: Option<Arc<Version>>,
    /// The link, dropped outside the lock.
    _link: Option<Link>,
}

impl Link {
    /// Takes over the data of granules from a newer version, in `store` if in any. ENOMEM. May sleep.
    fn take_over(
        &mut self,
        span: Span<Granules>,
        place: Place,
        store: Option<&Arc<Store>>,
        stock: &mut Stock,
    ) -> Result {
        let (own, _) = self.state_run(span);
        if granule::inherit(own, place.state()).is_none() || own == State::Reading {
            // What it is reading, or has, is its own.
            return Ok(());
        }
        self.version.ensure(span)?;
        let place = loop {
            match self.place_here(place, store, &mut stock.list)? {
                Some(place) => break place,
                None => {
                    stock.list = KVVec::with_capacity(self.extents.wanted(), GFP_KERNEL)?;
                }
            }
        };
        let room = match stock.room.take() {
            Some(room) => room,
            None => PackRoom::new(GFP_KERNEL)?,
        };
        stock.room = self.inherit(room, span, place);
        Ok(())
    }

    /// A place of a newer version, in `store` if in any, as this one says it. Errors, and None: see
    /// [`super::extents::Extents::index_of`].
    pub(super) fn place_here(
        &mut self,
        place: Place,
        store: Option<&Arc<Store>>,
        list: &mut KVVec<Inherited>,
    ) -> Result<Option<Place>> {
        Ok(match (place, store) {
            (Place::Stored { slot, .. }, Some(store)) => {
                let index = self.extents.index_of(store, list)?;
                index.map(|store| Place::Stored { store, slot })
            }
            // (A version in the chain has all its stores.)
            (Place::Stored { .. }, None) => return Err(EIO),
            (place, _) => Some(place),
        })
    }

    /// Takes over granules that it needs, with memory that is there; gives back what was not needed.
    pub(super) fn inherit(
        &mut self,
        room: PackRoom,
        span: Span<Granules>,
        place: Place,
    ) -> Option<PackRoom> {
        let unused = self.record(room, span, place);
        self.version.inherit(span, place == Place::Lost);
        self.is_heir = true;
        unused
    }
}

impl Chain {
    /// Gives older versions what they read through `version`.
    fn hand_down(&mut self, version: &Version) {
        let Some(index) = self.index_of(version) else {
            return;
        };
        let Some((newer, older)) = self.links.split_at_mut_checked(index + 1) else {
            return;
        };
        let Some(link) = newer.last_mut() else {
            return;
        };
        match older.first() {
            Some(next) => next.version.view.inherit(&version.view),
            // All that it has goes with its store.
            None if !link.is_heir => return,
            None => (),
        }
        // (Where there is no memory for that, slots stay in use.)
        let mut stock = Stock {
            leaves: KVec::new(),
            room: None,
            list: KVVec::new(),
        };
        let mut at = 0;
        while let Some(extent) = link.extents.at_or_after(at) {
            at = extent.span.end();
            let mut rest = extent.span;
            while !rest.is_empty() {
                let end = Cell::new(rest.end());
                let heir = granule::heir(older.iter().map(|l| {
                    let (state, upto) = l.state_run(rest);
                    end.set(end.get().min(upto));
                    state
                }));
                let (part, others) = rest.split_at(end.get());
                rest = others;
                let place = extent.from(part.start()).place;
                let store = match place {
                    Place::Stored { store, .. } => link.store(store),
                    _ => None,
                };
                let done = match (heir.and_then(|i| older.get_mut(i)), place) {
                    (Some(heir), place) => heir.take_over(part, place, store.as_ref(), &mut stock),
                    // One that came from a newer version, whose store goes on without this one.
                    (None, Place::Stored { store: index, slot }) if index != OWN => {
                        if let (Some(store), Ok(())) = (store, refill(&mut stock.leaves)) {
                            let ensured = store.ensure_release(slot, part.len(), &mut stock.leaves);
                            if ensured.is_ok() {
                                store.release(slot, part.len());
                            }
                        }
                        Ok(())
                    }
                    (None, _) => Ok(()),
                };
                if done.is_err() {
                    // All of them would read it through the heir, and find newer data.
                    let cause = crate::kapi::abi::BDSNAP_CAUSE_NO_MEMORY;
                    older.iter().for_each(|l| l.version.fail(cause));
                    return;
                }
            }
        }
    }

    /// Takes a version out.
    fn unlink(&mut self, version: &Version) -> Unlinked {
        match self.index_of(version) {
            Some(index) => Unlinked {
                older: self.links.get(index + 1).map(|l| l.version.clone()),
                _link: self.links.remove(index).ok(),
            },
            None => Unlinked {
                older: None,
                _link: None,
            },
        }
    }
}
