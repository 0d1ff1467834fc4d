// SPDX-License-Identifier: GPL-2.0

//! Tracking: which origins there are, and the hook while there are any.

use super::delete;
use super::janitor;
use super::Hooked;
use super::Registry;
use super::State;
use crate::kapi::abi;
use crate::kapi::abi::ModuleRef;
use crate::kapi::abi::Refused;
use crate::kapi::bdev::BlockDevice;
use crate::kapi::bdev::Dev;
use crate::kapi::hook::Hook;
use crate::kapi::power::PowerWatch;
use crate::kapi::rcu;
use crate::kapi::sentry::Sentry;
use crate::kapi::stray::Strays;
use crate::kapi::time::Deadline;
use crate::tracker;
use crate::tracker::Table;
use crate::tracker::Tracker;
use bdsnap_logic::units::SECTOR_SHIFT;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The module's version.
const RELEASE: &[u8] = b"0.1.0";

impl Registry {
    /// BDSNAP_IOC_VERSION.
    pub(super) fn version(&self, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_version>(arg)?;
        if a.flags != 0 {
            return Err(EINVAL);
        }
        a.abi = abi::BDSNAP_ABI_VERSION;
        a.hook = u32::from(self.state.lock().hooked.is_some());
        let features = abi::BDSNAP_FEATURE_DISCARDS
            | abi::BDSNAP_FEATURE_EVENTS
            | abi::BDSNAP_FEATURE_RELEASE
            | abi::BDSNAP_FEATURE_SINCE;
        a.features = u64::from(features);
        a.release = Default::default();
        for (to, from) in a.release.iter_mut().zip(RELEASE) {
            *to = *from as kernel::ffi::c_char;
        }
        abi::write_arg(arg, &a)
    }

    /// BDSNAP_IOC_TRACK.
    pub(super) fn track(&self, _session: u64, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_track>(arg)?;
        let sizes = abi::BDSNAP_BLOCK_SIZE_MIN..=abi::BDSNAP_BLOCK_SIZE_MAX;
        let size_ok =
            a.block_size == 0 || (a.block_size.is_power_of_two() && sizes.contains(&a.block_size));
        if a.flags != 0 || !size_ok {
            return Err(EINVAL);
        }
        let dev = Dev::new(a.major, a.minor)?;
        // A caller that can't be told gets nothing.
        abi::write_arg(arg, &a)?;
        let mut state = self.state.lock();
        state.reap();
        a.cause = 0;
        let result = self.track_device(&mut state, dev, a.block_size);
        match &result {
            Ok(tracker) => {
                a.block_size = 1 << (tracker.map.shift() + SECTOR_SHIFT);
                a.generation = tracker.generation;
                a.number = tracker.map.numbers().0;
            }
            Err(refused) => a.cause = refused.cause,
        }
        abi::write_arg(arg, &a)?;
        result.map(|_| ()).map_err(|r| r.error)
    }

    /// Tracks a device, or finds its tracker.
    fn track_device(
        &self,
        state: &mut State,
        dev: Dev,
        block_size: u32,
    ) -> Result<Arc<Tracker>, Refused> {
        if let Some(tracker) = state.tracker(dev).cloned() {
            let same = block_size == 0 || block_size == 1 << (tracker.map.shift() + SECTOR_SHIFT);
            let ended = tracker.ended() != 0;
            if tracker.device.is_live() && !same {
                return Err(EEXIST.into());
            }
            if !ended {
                return Ok(tracker);
            }
            if tracker.device.is_live() {
                // With images that are still good, the old generation stays until they go.
                return match tracker.lock_chain().is_dead() {
                    true => self.renew(state, &tracker),
                    false => Ok(tracker.clone()),
                };
            }
            // Another disk with the number of one that is gone: not the same origin.
            self.forget(state, &tracker)?;
        }
        if state.trackers.len() >= abi::BDSNAP_MAX_ORIGINS as usize {
            return Err(ENOSPC.into());
        }
        if state.image(dev).is_some() {
            return Err(Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_IMAGE));
        }
        let device = BlockDevice::open(dev)?;
        check(&device)?;
        let size = if block_size == 0 {
            abi::BDSNAP_BLOCK_SIZE_DEFAULT
        } else {
            block_size
        };
        if state.hooked.is_none() {
            state.hooked = Some(hook(&device)?);
        }
        let shift = size.trailing_zeros() - SECTOR_SHIFT;
        let result = self.add(state, device, shift);
        if result.is_err() {
            // The hook stays for as long as a tracker does, also one that could not go.
            state.reap();
        }
        result
    }

    /// Makes a tracker and puts it into the table.
    fn add(
        &self,
        state: &mut State,
        device: BlockDevice,
        shift: u32,
    ) -> Result<Arc<Tracker>, Refused> {
        expect_strays(state, &device)?;
        let queues = state.free_queues()?;
        let tracker = Tracker::new(device, shift, queues, self.idle.clone(), janitor::call)?;
        state.trackers.push(tracker.clone(), GFP_KERNEL)?;
        if let Err(e) = publish(state) {
            let _ = state.trackers.pop();
            return Err(e.into());
        }
        if let Err(refused) = settle(state, &tracker) {
            // Where it can't go, since its writes don't end or there is no memory, it stays, ended.
            if self.forget(state, &tracker).is_err() {
                tracker.end(abi::BDSNAP_CAUSE_DRAIN_TIMEOUT, true);
            }
            return Err(refused);
        }
        tracker.tell(abi::BDSNAP_EVENT_TRACKED, 0, [0; 16], 0);
        Ok(tracker)
    }

    /// Starts a new generation of an origin whose versions, if any, are dead: after its size has
    /// changed, or writes may have been missed. Failed versions keep the old tracker. Sleeps.
    ///
    /// EBUSY: what ended the old one may still be on its way (a command that takes its time); the
    /// new one has ended, too.
    pub(super) fn renew(
        &self,
        state: &mut State,
        old: &Arc<Tracker>,
    ) -> Result<Arc<Tracker>, Refused> {
        let device = BlockDevice::open(old.dev())?;
        check(&device)?;
        expect_strays(state, &device)?;
        let shift = old.map.shift();
        let new = Tracker::new(
            device,
            shift,
            state.free_queues()?,
            self.idle.clone(),
            janitor::call,
        )?;
        state.dying.reserve(1, GFP_KERNEL)?;
        let Some(place) = state.trackers.iter_mut().find(|t| Arc::ptr_eq(t, old)) else {
            return Err(ENOENT.into());
        };
        *place = new.clone();
        match publish(state) {
            Ok(()) => {
                let _ = state.dying.push_within_capacity(old.clone());
                state.reap();
                old.tell_end();
                if let Err(refused) = settle(state, &new) {
                    new.end(abi::BDSNAP_CAUSE_DRAIN_TIMEOUT, true);
                    return Err(refused);
                }
                new.tell(abi::BDSNAP_EVENT_TRACKED, 0, [0; 16], 0);
                Ok(new)
            }
            Err(e) => {
                if let Some(place) = state.trackers.iter_mut().find(|t| Arc::ptr_eq(t, &new)) {
                    *place = old.clone();
                }
                Err(e.into())
            }
        }
    }

    /// BDSNAP_IOC_UNTRACK.
    pub(super) fn untrack(&self, _session: u64, arg: usize) -> Result {
        let a = abi::read_arg::<abi::bdsnap_untrack>(arg)?;
        if a.flags & !abi::BDSNAP_UNTRACK_FORCE != 0 {
            return Err(EINVAL);
        }
        let dev = Dev::new(a.major, a.minor)?;
        let mut state = self.state.lock();
        state.reap();
        let tracker = state.tracker(dev).ok_or(ENOENT)?.clone();
        if a.flags & abi::BDSNAP_UNTRACK_FORCE != 0 {
            delete::delete_of(&mut state, &tracker)?;
        }
        self.forget(&mut state, &tracker)
    }

    /// Takes a tracker out of the table. EBUSY: it has versions, or writes in flight don't end.
    /// (Dead versions of a disk that is gone are no hindrance: nobody can write to it.)
    fn forget(&self, state: &mut State, tracker: &Arc<Tracker>) -> Result {
        {
            let chain = tracker.lock_chain();
            if chain.len() > 0 && (tracker.device.is_live() || !chain.is_dead()) {
                return Err(EBUSY);
            }
        }
        let place = state
            .trackers
            .iter()
            .position(|t| Arc::ptr_eq(t, tracker))
            .ok_or(ENOENT)?;
        // For it, and for the one that may follow it.
        state.dying.reserve(2, GFP_KERNEL)?;
        let table = Table::of(state.trackers.iter().filter(|t| !Arc::ptr_eq(t, tracker)))?;
        // From here on no new write is counted.
        drop(tracker::set_table(table));
        let deadline = Deadline::after_ms(abi::BDSNAP_TIMEOUT_DEFAULT_MS);
        let drained = deadline.wait_until(|| tracker.inflight.is_drained());
        if !drained {
            // Writes have come that it doesn't know of: if it can't go, another life begins.
            let _ = self.renew(state, tracker);
            if !state.trackers.iter().any(|t| Arc::ptr_eq(t, tracker)) {
                return Err(EBUSY);
            }
        }
        tracker.tell_end();
        tracker.tell(abi::BDSNAP_EVENT_UNTRACKED, 0, [0; 16], 0);
        if let (Ok(old), false) = (state.trackers.remove(place), drained) {
            let _ = state.dying.push_within_capacity(old);
        }
        state.reap();
        Ok(())
    }
}

/// Puts all trackers into the table that the hook looks into. ENOMEM.
fn publish(state: &State) -> Result {
    let table = Table::of(state.trackers.iter())?;
    drop(tracker::set_table(table));
    Ok(())
}

/// Hooks the submission of bios, and makes sure that they are seen.
fn hook(device: &BlockDevice) -> Result<Hooked, Refused> {
    let module = ModuleRef::get()?;
    let hook = Hook::register().map_err(refused)?;
    if !hook.self_test(device)? {
        return Err(Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_HOOK_BLIND));
    }
    Ok(Hooked {
        _sentry: Sentry::post().map_err(refused)?,
        strays: None,
        _power: PowerWatch::register()?,
        _hook: hook,
        _module: module,
    })
}

/// What it means that something could not be hooked.
fn refused(e: Error) -> Refused {
    match e {
        EBUSY => Refused::new(e, abi::BDSNAP_CAUSE_HOOK_BUSY),
        ENOMEM => e.into(),
        _ => Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_HOOK_BLIND),
    }
}

/// Sees to it that writes are noticed which have been held back since before tracking of `device`
/// begins, if there can be any.
fn expect_strays(state: &mut State, device: &BlockDevice) -> Result<(), Refused> {
    if let Some(hooked) = state.hooked.as_mut() {
        if hooked.strays.is_none() && device.is_throttled() {
            hooked.strays = Some(Strays::watch().map_err(refused)?);
        }
    }
    Ok(())
}

/// Waits for the writes to an origin that were on their way when the hook began to see it. EBUSY:
/// they don't end.
fn settle(state: &mut State, tracker: &Arc<Tracker>) -> Result<(), Refused> {
    // Who was on his way from the hook's place to the driver without having been seen.
    rcu::synchronize_tasks();
    // (A limit may have been set while tracking began.)
    expect_strays(state, &tracker.device)?;
    let hold = !tracker.device.has_requests();
    if hold {
        tracker.inflight.close();
    }
    let settled = tracker.device.settle(abi::BDSNAP_TIMEOUT_DEFAULT_MS);
    if hold {
        tracker.open_gate();
    }
    settled.map_err(|_| Refused::new(EBUSY, abi::BDSNAP_CAUSE_DRAIN_TIMEOUT))
}

/// Whether a device can be tracked.
fn check(device: &BlockDevice) -> Result<(), Refused> {
    let refusals = [
        (device.sectors() == 0, ENOMEDIUM, abi::BDSNAP_CAUSE_EMPTY),
        (device.is_read_only(), EROFS, abi::BDSNAP_CAUSE_READ_ONLY),
        (device.is_zoned(), EOPNOTSUPP, abi::BDSNAP_CAUSE_ZONED),
        (device.is_dax(), EOPNOTSUPP, abi::BDSNAP_CAUSE_DAX),
        (
            device.has_integrity(),
            EOPNOTSUPP,
            abi::BDSNAP_CAUSE_INTEGRITY,
        ),
        (
            device.has_inline_crypto(),
            EOPNOTSUPP,
            abi::BDSNAP_CAUSE_INLINE_CRYPTO,
        ),
        (
            device.logical_block() > abi::BDSNAP_GRANULE_MAX,
            EOPNOTSUPP,
            abi::BDSNAP_CAUSE_BLOCK_SIZE,
        ),
        (
            !device.counts_writes(),
            EOPNOTSUPP,
            abi::BDSNAP_CAUSE_UNCOUNTED,
        ),
    ];
    match refusals.iter().find(|(is, ..)| *is) {
        Some((_, error, cause)) => Err(Refused::new(*error, *cause)),
        None => Ok(()),
    }
}
