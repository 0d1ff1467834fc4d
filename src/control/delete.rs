// SPDX-License-Identifier: GPL-2.0

//! The end of snapshots, stores and sessions.

use super::record;
use super::Registry;
use super::Snapshot;
use super::Spare;
use super::State;
use crate::cow;
use crate::event;
use crate::image::Image;
use crate::kapi::abi;
use crate::kapi::time::Deadline;
use crate::store;
use crate::tracker::Tracker;
use kernel::prelude::*;
use kernel::sync::Arc;

impl Registry {
    /// BDSNAP_IOC_STORE_DROP.
    pub(super) fn store_drop(&self, session: u64, arg: usize) -> Result {
        let a = abi::read_arg::<abi::bdsnap_store_drop>(arg)?;
        if a.flags != 0 {
            return Err(EINVAL);
        }
        let mut state = self.state.lock();
        let is_it = |s: &Spare| s.owner == session && s.handle == a.store;
        let place = state.spares.iter().position(is_it).ok_or(ENOENT)?;
        state.spares.remove(place).map(drop).map_err(|_| ENOENT)
    }

    /// BDSNAP_IOC_SNAPSHOT_KEEP.
    pub(super) fn snapshot_keep(&self, _session: u64, arg: usize) -> Result {
        let a = abi::read_arg::<abi::bdsnap_snapshot_ref>(arg)?;
        if a.flags != 0 {
            return Err(EINVAL);
        }
        let mut state = self.state.lock();
        let snapshot = state
            .snapshots
            .iter_mut()
            .find(|s| s.id == a.id)
            .ok_or(ENOENT)?;
        snapshot.owner = None;
        Ok(())
    }

    /// BDSNAP_IOC_SNAPSHOT_DELETE.
    pub(super) fn snapshot_delete(&self, _session: u64, arg: usize) -> Result {
        let a = abi::read_arg::<abi::bdsnap_snapshot_ref>(arg)?;
        if a.flags & !abi::BDSNAP_DELETE_FORCE != 0 {
            return Err(EINVAL);
        }
        let force = a.flags & abi::BDSNAP_DELETE_FORCE != 0;
        let mut state = self.state.lock();
        let place = state
            .snapshots
            .iter()
            .position(|s| s.id == a.id)
            .ok_or(ENOENT)?;
        delete(&mut state, place, force)
    }
}

/// Deletes the snapshot at `place` of the list. EBUSY: an image is open, unless `force`.
fn delete(state: &mut State, place: usize, force: bool) -> Result {
    let snapshot = state.snapshots.get(place).ok_or(ENOENT)?;
    // Who comes to open an image now is turned away; who was there before is counted.
    snapshot.images.iter().for_each(|i| i.close(true));
    let open = snapshot.images.iter().any(|i| i.openers() > 0);
    if open && !force {
        snapshot.images.iter().for_each(|i| i.close(false));
        return Err(EBUSY);
    }
    // From here on it is of no use to anybody; what is on its way to its store must get there
    // before its memory can go.
    for image in snapshot.images.iter() {
        image.version().close();
        // What waits for a portion of its store may go now.
        image.tracker().kick();
    }
    let deadline = Deadline::after_ms(abi::BDSNAP_TIMEOUT_DEFAULT_MS);
    // (Reads that come now fail at once.)
    let is_idle = |i: &Image| i.version().is_idle() && !i.is_being_read();
    let idle = || snapshot.images.iter().all(is_idle);
    if !deadline.wait_until(idle) {
        let cause = abi::BDSNAP_CAUSE_STORE_STALLED;
        snapshot.images.iter().for_each(|i| i.version().fail(cause));
        snapshot.images.iter().for_each(|i| i.close(false));
        return Err(ETIMEDOUT);
    }
    let snapshot = state.snapshots.remove(place).map_err(|_| ENOENT)?;
    dissolve(state, snapshot);
    Ok(())
}

/// Takes a snapshot apart: images, versions, store. Images that are open remain until they are closed.
pub(super) fn dissolve(state: &mut State, snapshot: Snapshot) {
    let Snapshot {
        id, images, store, ..
    } = snapshot;
    for image in images {
        let (tracker, version) = (image.tracker().clone(), image.version().clone());
        // Nobody reads it any more after this.
        if let Some(open) = image.retire() {
            // (Without memory for that it is removed.)
            let _ = state.remains.push(open, GFP_KERNEL);
        }
        if store.is_some() {
            cow::remove(&tracker, &version);
            // Somebody may have the image open still.
            version.give_up_store();
        }
    }
    if let Some(store) = store {
        // Others may still use slots of it, but new images show again what is there.
        store.mark_changed();
    }
    event::post(abi::bdsnap_event {
        type_: abi::BDSNAP_EVENT_DELETED,
        snapshot: id,
        ..Default::default()
    });
}

/// Deletes all snapshots that an origin is part of, those of its earlier generations included.
/// EBUSY: an image is open; those before it are gone.
pub(super) fn delete_of(state: &mut State, tracker: &Arc<Tracker>) -> Result {
    let dev = tracker.dev();
    let is_of = |s: &Snapshot| s.images.iter().any(|i| i.tracker().dev() == dev);
    while let Some(place) = state.snapshots.iter().position(is_of) {
        delete(state, place, false)?;
    }
    Ok(())
}

/// A file of the control device was closed: what it made and didn't keep goes.
pub(super) fn end_session(registry: &Registry, session: u64) {
    let mut state = registry.state.lock();
    while let Some(place) = state
        .snapshots
        .iter()
        .position(|s| s.owner == Some(session))
    {
        // Whoever reads an image gets EIO. One whose store does not answer stays, for others to
        // delete.
        if delete(&mut state, place, true).is_err() {
            if let Some(snapshot) = state.snapshots.get_mut(place) {
                snapshot.owner = None;
            }
        }
    }
    state.spares.retain(|s| s.owner != session);
    record::end_session(&state, session);
    if state.server == Some(session) {
        state.server = None;
        store::set_served(false);
    }
}
