// SPDX-License-Identifier: GPL-2.0
//! Where a bio lands.

use crate::units::Sectors;
use crate::units::Span;

/// Where on its disk a bio of `sectors` sectors at `sector` lands.
///
/// Both are as in `bi_iter`. `part_start` is the first sector of the bio's device on the disk; it
/// is 0 for a whole disk, and for a bio that is remapped already (`BIO_REMAPPED`). The kernel has
/// not checked the bio yet where this is asked, so the sum may be more than a `u64`: it saturates.
#[inline]
pub fn bio_on_disk(sector: u64, sectors: u64, part_start: u64) -> Span<Sectors> {
    let start = part_start.saturating_add(sector);
    Span::new(start, start.saturating_add(sectors)).unwrap_or(Span::EMPTY)
}

/// The part of a bio that lies inside an origin, counted from the origin's start; [`None`] if there
/// is none. Both spans are on the disk.
#[inline]
pub fn in_origin(bio: Span<Sectors>, origin: Span<Sectors>) -> Option<Span<Sectors>> {
    let part = bio.intersect(origin);
    if part.is_empty() {
        return None;
    }
    Span::of_len(part.start().checked_sub(origin.start())?, part.len())
}
