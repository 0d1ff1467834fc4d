// SPDX-License-Identifier: GPL-2.0

//! The change map, read and marked.

use super::Registry;
use super::State;
use crate::cow;
use crate::cow::Version;
use crate::kapi::abi;
use crate::kapi::bdev::Dev;
use crate::tracker::Tracker;
use bdsnap_logic::units::Blocks;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Blocks that are read at a time.
const CHUNK: u64 = 16384;

/// What a device number names: a tracker, and a version whose map is meant. None: as it is now.
fn named(state: &State, dev: Dev, live: bool) -> Result<(Arc<Tracker>, Option<Arc<Version>>)> {
    if let Some(image) = state.image(dev) {
        if live {
            return Err(EINVAL);
        }
        return Ok((image.tracker().clone(), Some(image.version().clone())));
    }
    let tracker = state.tracker(dev).ok_or(ENOENT)?.clone();
    if live {
        return Ok((tracker, None));
    }
    let (number, _) = tracker.map.numbers();
    let newest = cow::versions(&tracker, None)?.pop_front();
    Ok((tracker, newest.filter(|v| v.view.number() == number)))
}

/// Takes the first element of a list.
trait PopFront<T> {
    /// The first element.
    fn pop_front(self) -> Option<T>;
}

impl<T> PopFront<T> for KVec<T> {
    fn pop_front(mut self) -> Option<T> {
        self.remove(0).ok()
    }
}

impl Registry {
    /// BDSNAP_IOC_MAP_READ.
    pub(super) fn map_read(&self, _session: u64, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_map_read>(arg)?;
        let known = abi::BDSNAP_MAP_LIVE | abi::BDSNAP_MAP_DISCARDS;
        if a.flags & !known != 0 || a.reserved != 0 {
            return Err(EINVAL);
        }
        let dev = Dev::new(a.major, a.minor)?;
        let live = a.flags & abi::BDSNAP_MAP_LIVE != 0;
        let state = self.state.lock();
        let (tracker, version) = named(&state, dev, live)?;
        let blocks = tracker.map.blocks();
        let first = a.first_block;
        if first > blocks || (first == blocks && a.count > 0) || (a.count == 0 && a.buffer != 0) {
            return Err(EINVAL);
        }
        if a.count > 0 && a.buffer == 0 {
            return Err(EFAULT);
        }
        a.count = a.count.min(blocks - first);
        let (newest, oldest) = tracker.map.numbers();
        let asked = a.generation;
        a.number = version.as_ref().map_or(newest, |v| v.view.number());
        a.oldest = oldest;
        a.device_size = tracker.sectors() << SECTOR_SHIFT;
        a.block_size = 1 << (tracker.map.shift() + SECTOR_SHIFT);
        a.generation = tracker.generation;
        let known = asked == [0; 16] || asked == tracker.generation;
        // (What an image for an increment has not kept did not change after that.)
        let image = version.as_ref().filter(|_| state.image(dev).is_some());
        if let Some(since) = image.and_then(|v| v.since()) {
            a.oldest = oldest.max(since);
        }
        let known = known && a.since >= a.oldest && tracker.ended() == 0;
        if !known || !tracker.map.can_answer(a.since, a.number) {
            a.count = 0;
            abi::write_arg(arg, &a)?;
            return Err(ESTALE);
        }
        let discards = a.flags & abi::BDSNAP_MAP_DISCARDS != 0;
        if discards && a.number + 1 >= u64::from(abi::BDSNAP_MAP_DISCARDED) {
            return Err(EOVERFLOW);
        }
        let versions = cow::versions(&tracker, None)?;
        read_blocks(&tracker, version.as_deref(), &versions, &a)?;
        abi::write_arg(arg, &a)
    }

    /// BDSNAP_IOC_MARK.
    pub(super) fn mark(&self, _session: u64, arg: usize) -> Result {
        let (dev, ranges) = read_ranges(arg)?;
        let state = self.state.lock();
        let tracker = state.tracker(dev).ok_or(ENOENT)?;
        let mut spans = KVVec::with_capacity(ranges.len(), GFP_KERNEL)?;
        for range in ranges.iter() {
            let span = Span::<Sectors>::from_bytes_outward(range.offset, range.length);
            let bytes = tracker.sectors() << SECTOR_SHIFT;
            let inside = range
                .offset
                .checked_add(range.length)
                .is_some_and(|end| end <= bytes);
            match span.filter(|_| inside && range.length > 0) {
                Some(span) => spans.push(span, GFP_KERNEL)?,
                None => return Err(EINVAL),
            }
        }
        for span in spans.iter() {
            if abi::is_dying() {
                return Err(EINTR);
            }
            tracker.mark(*span);
        }
        Ok(())
    }
}

/// A struct bdsnap_mark: the device, and its ranges. EINVAL; EFAULT; ENOMEM.
pub(super) fn read_ranges(arg: usize) -> Result<(Dev, KVVec<abi::bdsnap_range>)> {
    let a = abi::read_arg::<abi::bdsnap_mark>(arg)?;
    let count_ok = (1..=abi::BDSNAP_MAX_RANGES).contains(&a.count);
    if a.flags != 0 || a.reserved != 0 || !count_ok {
        return Err(EINVAL);
    }
    let dev = Dev::new(a.major, a.minor)?;
    Ok((dev, abi::read_array(a.ranges, a.count as usize)?))
}

/// Writes the numbers of the blocks asked for to the user's buffer.
fn read_blocks(
    tracker: &Tracker,
    version: Option<&Version>,
    newest_first: &[Arc<Version>],
    a: &abi::bdsnap_map_read,
) -> Result {
    // From the version asked about to the newest.
    let own = version.and_then(|v| newest_first.iter().position(|o| core::ptr::eq(&**o, v)));
    let views = own
        .and_then(|own| newest_first.get(..=own))
        .unwrap_or_default()
        .iter()
        .rev()
        .map(|v| &v.view);
    let mut chunk = KVVec::from_elem(0u32, a.count.min(CHUNK) as usize, GFP_KERNEL)?;
    let discards = a.flags & abi::BDSNAP_MAP_DISCARDS != 0;
    let mut done = 0;
    while done < a.count {
        let n = (a.count - done).min(CHUNK) as usize;
        let out = chunk.get_mut(..n).ok_or(EINVAL)?;
        let first = a.first_block + done;
        tracker.map.read(first, out, discards, views.clone())?;
        if let Some(version) = version.filter(|v| v.since().is_some()) {
            for (value, block) in out.iter_mut().zip(first..) {
                let block = Span::<Blocks>::of_len(block, 1).ok_or(EINVAL)?;
                let sectors = block.sectors(tracker.map.shift(), tracker.sectors());
                *value = version.truer(sectors, *value);
            }
        }
        let at = done
            .checked_mul(size_of::<u32>() as u64)
            .and_then(|o| a.buffer.checked_add(o));
        abi::write_array(at.ok_or(EFAULT)?, out)?;
        done += n as u64;
    }
    Ok(())
}
