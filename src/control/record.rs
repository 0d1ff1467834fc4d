// SPDX-License-Identifier: GPL-2.0

//! Recording what is written before a cut, and what is free.

use super::changes::read_ranges;
use super::Registry;
use super::State;
use crate::cow;
use crate::cow::Free;
use crate::cow::Recorder;
use crate::cow::Spared;
use crate::kapi::abi;
use crate::kapi::bdev::Dev;
use crate::kapi::rcu::Retired;
use crate::tracker::Tracker;
use bdsnap_logic::units::Blocks;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;

impl Registry {
    /// BDSNAP_IOC_RECORD.
    pub(super) fn record(&self, session: u64, arg: usize) -> Result {
        let a = abi::read_arg::<abi::bdsnap_record>(arg)?;
        if a.flags & !abi::BDSNAP_RECORD_END != 0 {
            return Err(EINVAL);
        }
        let dev = Dev::new(a.major, a.minor)?;
        let state = self.state.lock();
        let tracker = state.tracker(dev).ok_or(ENOENT)?;
        if a.flags & abi::BDSNAP_RECORD_END != 0 {
            let own = recorder_of(tracker).filter(|owner| *owner == session);
            return own.map(|_| drop(stop(tracker))).ok_or(ENOENT);
        }
        if tracker.ended() != 0 {
            return Err(ESTALE);
        }
        match recorder_of(tracker) {
            Some(owner) if owner != session => return Err(EBUSY),
            Some(_) => return Ok(()),
            None => (),
        }
        let recorder = Recorder::new(session, tracker.sectors())?;
        drop(
            tracker
                .recorder
                .swap(Some(KBox::new(recorder, GFP_KERNEL)?)),
        );
        Ok(())
    }

    /// BDSNAP_IOC_FREE.
    pub(super) fn free(&self, session: u64, arg: usize) -> Result {
        let (dev, ranges) = read_ranges(arg)?;
        let state = self.state.lock();
        let tracker = state.tracker(dev).ok_or(ENOENT)?;
        let span = |range: &abi::bdsnap_range| {
            // Inwards: what is free in part is not.
            let exact = Span::<Sectors>::from_bytes_exact(range.offset, range.length);
            let span = exact.filter(|s| !s.is_empty() && s.end() <= tracker.sectors());
            span.ok_or(EINVAL)
        };
        for range in ranges.iter() {
            span(range)?;
        }
        for range in ranges.iter() {
            // (A guard for each: they may be many, and long.)
            let guard = rcu::read_lock();
            let recorder = tracker.recorder.read(&guard);
            let recorder = recorder.filter(|r| r.owner() == session).ok_or(ENOENT)?;
            recorder.set_free(span(range)?);
            if abi::is_dying() {
                return Err(EINTR);
            }
        }
        Ok(())
    }
}

impl Registry {
    /// BDSNAP_IOC_SINCE.
    pub(super) fn since(&self, session: u64, arg: usize) -> Result {
        let a = abi::read_arg::<abi::bdsnap_since>(arg)?;
        if a.flags != 0 {
            return Err(EINVAL);
        }
        let dev = Dev::new(a.major, a.minor)?;
        let state = self.state.lock();
        let tracker = state.tracker(dev).ok_or(ENOENT)?;
        if tracker.ended() != 0 || (a.generation != [0; 16] && a.generation != tracker.generation) {
            return Err(ESTALE);
        }
        // Before a cut does: then `since` is not too old afterwards.
        tracker.map.age_if_due();
        let (number, _) = tracker.map.numbers();
        if !tracker.map.can_answer(a.since, number) {
            return Err(ESTALE);
        }
        let guard = rcu::read_lock();
        let old = tracker.recorder.read(&guard);
        let old = old.filter(|r| r.owner() == session).map(Recorder::shared);
        drop(guard);
        let recorder = old.ok_or(ENOENT)?;
        let recorder = recorder.for_increment(a.since, tracker.map.shift())?;
        let recorder = KBox::new(recorder, GFP_KERNEL)?;
        let values = KVVec::from_elem(0u32, CHUNK, GFP_KERNEL)?;
        // Waits until no hook uses the old one any more: what has passed by then is in the map.
        drop(tracker.recorder.swap(Some(recorder)));
        spare_unchanged(tracker, a.since, values)
    }
}

/// The session that has an origin's writes recorded.
fn recorder_of(tracker: &Tracker) -> Option<u64> {
    let guard = rcu::read_lock();
    tracker.recorder.read(&guard).map(Recorder::owner)
}

/// What is free is not on the image, whatever the origin has there: where that is another than at the
/// last cut, it has changed. To be called before the cut; what becomes used until then is written.
/// (Before the first one there is no image.) Sleeps.
pub(super) fn mark_differences(tracker: &Tracker, free: Option<&Free>) {
    let guard = rcu::read_lock();
    let last = tracker.last_free.read(&guard).cloned();
    drop(guard);
    let is_first = tracker.map.numbers().0 == 0;
    if is_first || (last.is_none() && free.is_none()) {
        return;
    }
    cow::differences(last.as_deref(), free, |span, is_free| {
        tracker.mark_free(span, is_free);
        // What was written since the bits were looked at is no discard.
        if let Some(free) = free.filter(|_| is_free) {
            free.each_used(span, |part| tracker.mark_free(part, false));
        }
    });
}

/// Ends the recordings of a session. Sleeps.
pub(super) fn end_session(state: &State, session: u64) {
    for tracker in state.trackers.iter() {
        if recorder_of(tracker) == Some(session) {
            drop(stop(tracker));
        }
    }
}

/// Ends a recording. Dropping what is returned waits for RCU.
pub(super) fn stop(tracker: &Arc<Tracker>) -> Retired<Recorder> {
    tracker.recorder.swap(None)
}

/// What need not be kept of an origin, if this session has it recorded.
pub(super) fn spared_of(tracker: &Tracker, session: u64) -> Option<Spared> {
    let guard = rcu::read_lock();
    let recorder = tracker.recorder.read(&guard);
    recorder
        .filter(|r| r.owner() == session)
        .map(Recorder::spared)
}

/// Blocks that are looked at at a time.
const CHUNK: usize = 16384;

/// Tells the recorder what has not changed after snapshot `since`. Sleeps. Under the registry's lock: no
/// cut comes in between. `values`: room for [`CHUNK`].
fn spare_unchanged(tracker: &Tracker, since: u64, mut values: KVVec<u32>) -> Result {
    let (blocks, shift) = (tracker.map.blocks(), tracker.map.shift());
    let unchanged = |run: Span<Blocks>| {
        let guard = rcu::read_lock();
        if let Some(recorder) = tracker.recorder.read(&guard) {
            recorder.set_unchanged(run.sectors(shift, tracker.sectors()));
        }
    };
    // The blocks so far that have not changed.
    let mut run = Span::<Blocks>::EMPTY;
    let mut first = 0;
    while first < blocks {
        let n = (blocks - first).min(CHUNK as u64) as usize;
        let out = values.get_mut(..n).ok_or(EINVAL)?;
        tracker.map.read(first, out, false, core::iter::empty())?;
        for (value, block) in out.iter().zip(first..) {
            if u64::from(*value) > since {
                unchanged(run);
                run = Span::of_len(block + 1, 0).unwrap_or(Span::EMPTY);
            } else {
                run = Span::new(run.start(), block + 1).unwrap_or(run);
            }
        }
        first += n as u64;
    }
    unchanged(run);
    let guard = rcu::read_lock();
    if let Some(recorder) = tracker.recorder.read(&guard) {
        recorder.spare_free();
    }
    Ok(())
}
