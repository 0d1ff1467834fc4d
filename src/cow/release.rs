// SPDX-License-Identifier: GPL-2.0

//! What the reader of an image is done with: it is not copied any more, and what has been copied of it
//! makes room, but for what older versions need.

use super::chain::Chain;
use super::heir::heir;
use super::heir::Room;
use super::version::Version;
use crate::kapi::abi;
use crate::kapi::noio;
use crate::kapi::time::Deadline;
use crate::tracker::Tracker;
use bdsnap_logic::extent_map::Place;
use bdsnap_logic::granule::State;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Granules that are released at a time, with the chain locked.
const STEP: u64 = 1 << 13;

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
    let mut room = Room::new();
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
            let (part, heir) = heir(older, rest);
            (_, rest) = rest.split_at(part.end());
            if heir.as_ref().is_some_and(|h| h.is_reading(part)) {
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
                let store = stored.as_ref().map(|s| &s.0);
                if !heir.take_over(part, place, store, room)? {
                    return Ok(Progress::NoRoom);
                }
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
