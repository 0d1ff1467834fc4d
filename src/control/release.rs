// SPDX-License-Identifier: GPL-2.0

//! Releasing what the reader of an image is done with.

use super::changes::read_ranges;
use super::Registry;
use crate::image::Image;
use crate::kapi::abi;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use kernel::prelude::*;

impl Registry {
    /// BDSNAP_IOC_SNAPSHOT_RELEASE.
    pub(super) fn snapshot_release(&self, _session: u64, arg: usize) -> Result {
        let (dev, ranges) = read_ranges(arg)?;
        let state = self.state.lock();
        let releaser = state.image(dev).and_then(Image::releaser);
        let releaser = releaser.ok_or(ENOENT)?;
        // From here on a deletion waits for us, and not the others for both.
        drop(state);
        let bytes = releaser.sectors() << SECTOR_SHIFT;
        let span = |range: &abi::bdsnap_range| {
            let end = range.offset.checked_add(range.length);
            let inside = range.length > 0 && end.is_some_and(|end| end <= bytes);
            // Whole sectors of it: granules are made of such.
            let from = range.offset.div_ceil(1 << SECTOR_SHIFT);
            let to = end.unwrap_or(0) >> SECTOR_SHIFT;
            let span = Span::<Sectors>::new(from, to.max(from)).filter(|_| inside);
            span.ok_or(EINVAL)
        };
        for range in ranges.iter() {
            span(range)?;
        }
        for range in ranges.iter() {
            releaser.release(span(range)?)?;
        }
        Ok(())
    }
}
