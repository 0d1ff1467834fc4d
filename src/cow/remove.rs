// SPDX-License-Identifier: GPL-2.0

//! The end of a version: what older ones need of it is handed down to them.

use super::chain::Chain;
use super::chain::Extent;
use super::chain::Link;
use super::chain::Place;
use super::release::refill;
use super::version::Version;
use super::version::Versions;
use crate::kapi::time;
use crate::tracker::Tracker;
use bdsnap_logic::granule;
use bdsnap_logic::granule::State;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Span;
use core::cell::Cell;
use kernel::prelude::*;
use kernel::rbtree::RBTreeNodeReservation;
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

/// What [`Chain::unlink`] took out.
struct Unlinked {
    /// The next older version.
    older: Option<Arc<Version>>,
    /// The link, dropped outside the lock.
    _link: Option<Link>,
}

impl Link {
    /// Takes over the data of granules from a newer version. ENOMEM. May sleep.
    fn take_over(&mut self, span: Span<Granules>, place: Place) -> Result {
        let (own, _) = self.state_run(span);
        if granule::inherit(own, place.state()).is_none() || own == State::Reading {
            // What it is reading, or has, is its own.
            return Ok(());
        }
        self.version.ensure(span)?;
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        self.inherit(node, span, place);
        Ok(())
    }

    /// The same, of granules that it needs, with memory that is there.
    pub(super) fn inherit(
        &mut self,
        node: RBTreeNodeReservation<u64, Extent>,
        span: Span<Granules>,
        place: Place,
    ) {
        let lost = matches!(place, Place::Lost);
        self.record(node, span, place);
        self.version.inherit(span, lost);
        self.is_heir = true;
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
        let own = version.store();
        // (Where there is no memory for that, slots stay in use.)
        let mut stock = KVec::new();
        for (last, extent) in link.extents.iter() {
            let mut at = extent.first;
            while let Some(rest) = Span::<Granules>::new(at, last + 1).filter(|s| !s.is_empty()) {
                let end = Cell::new(rest.end());
                let heir = granule::heir(older.iter().map(|l| {
                    let (state, upto) = l.state_run(rest);
                    end.set(end.get().min(upto));
                    state
                }));
                let upto = end.get();
                let part = Span::new(at, upto).unwrap_or(rest);
                let place = extent.place.advanced(at - extent.first);
                let done = match (heir.and_then(|i| older.get_mut(i)), place) {
                    (Some(heir), place) => heir.take_over(part, place),
                    // One that came from a newer version, whose store goes on without this one.
                    (None, Place::Stored { store, slot }) => {
                        let is_own = own.as_ref().is_some_and(|own| Arc::ptr_eq(own, &store));
                        if !is_own && refill(&mut stock).is_ok() {
                            let ensured = store.ensure_release(slot, part.len(), &mut stock);
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
                at = upto;
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
