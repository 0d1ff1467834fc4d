// SPDX-License-Identifier: GPL-2.0

//! The end of a version: what older ones need of it is handed down to them.

use super::chain::versions;
use super::chain::Chain;
use super::chain::Link;
use super::chain::PATIENCE_MS;
use super::extents::OWN;
use super::heir::heir;
use super::heir::Room;
use super::version::Version;
use super::version::Versions;
use crate::kapi::abi;
use crate::kapi::noio;
use crate::kapi::time;
use crate::kapi::time::Deadline;
use crate::tracker::Tracker;
use bdsnap_logic::extent_map::Place;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;

/// Parts of extents that are handed down at a time, with the chain locked: at most.
const STEP: usize = 1 << 10;

/// Takes a version out of its origin's chain. Its image is gone already. Waits for copies on their
/// way, for RCU, and sleeps. Under the registry's lock, so the list changes under nobody else.
pub(crate) fn remove(tracker: &Arc<Tracker>, version: &Arc<Version>) {
    // What is written to free memory may wait for a portion, which can't come while the registry is locked.
    let _noio = noio::Scope::enter();
    version.close();
    // Copies are begun under the lock, for versions that live: seen there, zero stays zero.
    let is_idle = || {
        let _chain = tracker.lock_chain();
        version.is_idle()
    };
    while !is_idle() {
        tracker.kick();
        time::sleep_us(200);
    }
    let (newest, older) = tracker.lock_chain().place_of(version);
    if let Some(older) = &older {
        older.view.inherit(&version.view);
    }
    let list = loop {
        match others(tracker, version, newest) {
            Ok(list) => break list,
            Err(_) => time::sleep_us(1000),
        }
    };
    // Some of it at a time, so that copies get on meanwhile.
    let mut room = Room::new();
    let mut chain = loop {
        let refilled = refill(&mut room);
        let mut chain = tracker.lock_chain();
        match (chain.hand_down(version, &mut room), refilled) {
            (Ok(true), _) => break chain,
            (Ok(false), Ok(())) => (),
            _ => {
                chain.fail_older(version);
                break chain;
            }
        }
    };
    let retired = tracker.versions.swap(list);
    let gone = chain.unlink(version);
    drop(chain);
    // Waits for hooks and completions that still look at the old list.
    drop(retired);
    if let Some(older) = older {
        // Marks that came between the first look and the new list.
        older.view.inherit(&version.view);
    }
    let guard = rcu::read_lock();
    if let Some(versions) = tracker.versions.read(&guard) {
        versions.settled();
    }
    drop(guard);
    // With it may go a store, which marks its blocks as changed: in the older one's map, which is complete now.
    drop(gone);
    tracker.lock_chain().shrink();
    tracker.kick();
}

/// Fills up the room. ENOMEM: there was no memory for some time. Sleeps.
fn refill(room: &mut Room) -> Result {
    let mut refilled = Ok(());
    Deadline::after_ms(PATIENCE_MS).wait_until(|| {
        refilled = room.refill();
        refilled.is_ok()
    });
    refilled
}

/// The list of all versions but one, if there are others. ENOMEM. Sleeps.
fn others(tracker: &Tracker, version: &Version, settling: bool) -> Result<Option<KBox<Versions>>> {
    let list = versions(tracker, Some(version))?;
    if list.is_empty() {
        return Ok(None);
    }
    Ok(Some(KBox::new(Versions::new(list, settling), GFP_KERNEL)?))
}

impl Chain {
    /// Whether a version is the newest, and the next older one.
    fn place_of(&self, version: &Version) -> (bool, Option<Arc<Version>>) {
        let index = self.index_of(version);
        (index == Some(0), index.and_then(|i| self.nth(i + 1)))
    }

    /// Gives older versions what they read through `version`, which makes no copies any more and forgets it.
    /// True: that was all. False: some of it was, and `room` must be filled up. ENOMEM: an heir has more
    /// inherited stores than can be counted.
    ///
    /// What an heir is just reading remains: that is its own, or it needs this after all. So with the last
    /// of it `version` must be unlinked before the chain is unlocked.
    fn hand_down(&mut self, version: &Version, room: &mut Room) -> Result<bool> {
        let index = self.index_of(version);
        let split = index.and_then(|index| self.links.split_at_mut_checked(index + 1));
        let Some(([.., link], older)) = split else {
            return Ok(true);
        };
        if older.is_empty() && !link.is_heir {
            // All that it has goes with its store.
            return Ok(true);
        }
        let (mut at, mut count) = (0, 0);
        while let Some(extent) = link.extents.at_or_after(at) {
            if count == STEP || !room.is_enough() {
                return Ok(false);
            }
            let rest = extent.from(at);
            let (part, heir) = heir(older, rest.span);
            at = part.end();
            if heir.as_ref().is_some_and(|h| h.is_reading(part)) {
                continue;
            }
            let stored = match rest.place {
                Place::Stored { store, slot } => link.store(store).map(|s| (s, store, slot)),
                _ => None,
            };
            match (heir, &stored) {
                (Some(heir), stored) => {
                    let store = stored.as_ref().map(|s| &s.0);
                    if !heir.take_over(part, rest.place, store, room)? {
                        return Ok(false);
                    }
                }
                // In the store of a newer version, which goes on without this one.
                (None, Some((store, index, slot))) if *index != OWN => {
                    if store
                        .ensure_release(*slot, part.len(), &mut room.leaves)
                        .is_ok()
                    {
                        store.release(*slot, part.len());
                    }
                }
                (None, _) => (),
            }
            let before = room.packs.pop();
            room.give(link.cut_out(part, before));
            count += 1;
        }
        Ok(true)
    }

    /// Fails all older versions, since not all that they read through `version` could be handed down: they
    /// would find newer data there.
    fn fail_older(&self, version: &Version) {
        let newer = self.index_of(version).map_or(usize::MAX, |index| index + 1);
        for link in self.links.iter().skip(newer) {
            link.version.fail(abi::BDSNAP_CAUSE_NO_MEMORY);
        }
    }

    /// Takes a version out. The caller drops its link without the lock.
    fn unlink(&mut self, version: &Version) -> Option<Link> {
        let index = self.index_of(version)?;
        self.links.remove(index).ok()
    }
}
