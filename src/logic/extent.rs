// SPDX-License-Identifier: GPL-2.0
//! The extents of a store: whether a file's may be used, and how its slots lie on them.
//!
//! A *slot* is the place of one granule in a store. Slots are numbered through all pieces of a
//! store, in the order in which the pieces came.

use crate::sort::sort_by_key;
use crate::units::div_down;
use crate::units::mask;
use crate::units::times;
use crate::units::SECTOR_SHIFT;

/// `FIEMAP_EXTENT_LAST`: the last extent of the file.
pub const FLAG_LAST: u32 = 0x1;

/// `FIEMAP_EXTENT_UNWRITTEN`: allocated, and reads as zeros.
pub const FLAG_UNWRITTEN: u32 = 0x800;

/// `FIEMAP_EXTENT_MERGED`: the file system keeps blocks, and these were put together.
pub const FLAG_MERGED: u32 = 0x1000;

/// The flags that a usable extent may have. All others mean blocks that are not known, not alone
/// the file's (`SHARED`), not where they seem to be, or something that this code has not heard of.
const USABLE: u32 = FLAG_LAST | FLAG_UNWRITTEN | FLAG_MERGED;

/// One extent of a file, in bytes, as in `struct fiemap_extent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExtent {
    /// Where it is in the file.
    pub logical: u64,
    /// Where it is on the device of the file system.
    pub physical: u64,
    /// How long it is.
    pub length: u64,
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
}

/// Why the extents of a file can't be a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Some part of the file has no extent.
    Hole,
    /// An extent has these flags, which no usable one has.
    Flags(u32),
    /// An extent is not made of whole logical blocks of the device.
    Misaligned,
    /// An extent goes past the end of the device, or of what can be counted.
    OutOfBounds,
    /// Two extents have bytes in common, in the file or on the device.
    Overlap,
    /// The extents end before the file does.
    Short,
    /// There are more extents than the caller has room for. (Only callers say this.)
    TooMany,
    /// The last extent is not marked as the last: the list was cut off.
    Unfinished,
    /// There are no extents, or the file is empty.
    Empty,
}

/// Checks the extents of a file of `file_len` bytes, as FIEMAP returned them for the whole file, on
/// a device of `device_len` bytes and of blocks of `logical_block` bytes.
///
/// They must cover the file without holes, in order; be made of whole blocks of the device, and
/// inside it; be nobody else's; and have no block in common. What lies past the end of the file is
/// cut off, down to extents of length 0, for a file system may free it at any time.
///
/// The list is in the order of the file again on return.
pub fn check(
    list: &mut [RawExtent],
    file_len: u64,
    device_len: u64,
    logical_block: u32,
) -> Result<(), Refusal> {
    if file_len == 0 {
        return Err(Refusal::Empty);
    }
    if !logical_block.is_power_of_two() {
        return Err(Refusal::Misaligned);
    }
    let in_block = u64::from(logical_block).wrapping_sub(1) | mask(SECTOR_SHIFT);
    let Some((last, others)) = list.split_last() else {
        return Err(Refusal::Empty);
    };
    let mut covered = 0;
    for extent in others {
        covered = check_one(extent, covered, device_len, in_block)?;
        if extent.flags & FLAG_LAST != 0 {
            return Err(Refusal::Flags(FLAG_LAST));
        }
    }
    covered = check_one(last, covered, device_len, in_block)?;
    if last.flags & FLAG_LAST == 0 {
        return Err(Refusal::Unfinished);
    }
    if covered < file_len {
        return Err(Refusal::Short);
    }

    sort_by_key(list, |extent| extent.physical);
    let mut end = 0;
    let mut overlap = false;
    for extent in list.iter() {
        overlap |= extent.physical < end;
        end = extent.physical.saturating_add(extent.length);
    }
    sort_by_key(list, |extent| extent.logical);
    if overlap {
        return Err(Refusal::Overlap);
    }

    let usable_end = file_len & !in_block;
    for extent in list.iter_mut() {
        extent.length = extent.length.min(usable_end.saturating_sub(extent.logical));
    }
    Ok(())
}

/// Checks one extent of a file that is covered up to `covered` by those before it. Returns up to
/// where it is covered then. `in_block` masks the bits of an offset inside a logical block.
fn check_one(
    extent: &RawExtent,
    covered: u64,
    device_len: u64,
    in_block: u64,
) -> Result<u64, Refusal> {
    let refused = extent.flags & !USABLE;
    if refused != 0 {
        return Err(Refusal::Flags(refused));
    }
    if extent.length == 0 || (extent.logical | extent.physical | extent.length) & in_block != 0 {
        return Err(Refusal::Misaligned);
    }
    if extent.logical > covered {
        return Err(Refusal::Hole);
    }
    if extent.logical < covered {
        return Err(Refusal::Overlap);
    }
    match extent.physical.checked_add(extent.length) {
        Some(end) if end <= device_len => (),
        _ => return Err(Refusal::OutOfBounds),
    }
    covered
        .checked_add(extent.length)
        .ok_or(Refusal::OutOfBounds)
}

/// A run of slots that lie one after the other on the store's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The sector of the first slot.
    pub sector: u64,
    /// The number of the first slot.
    pub slot: u64,
    /// How many slots there are.
    pub granules: u64,
}

impl Piece {
    /// The slot after the last.
    const fn end(&self) -> u64 {
        self.slot.saturating_add(self.granules)
    }
}

/// The slots on an extent, from `next_slot` on: as many whole granules of
/// `1 << granule_sectors_shift` sectors as it has. [`None`] if that is not one.
pub fn piece(extent: &RawExtent, granule_sectors_shift: u32, next_slot: u64) -> Option<Piece> {
    let granules = div_down(div_down(extent.length, SECTOR_SHIFT), granule_sectors_shift);
    if granules == 0 || extent.physical & mask(SECTOR_SHIFT) != 0 {
        return None;
    }
    next_slot.checked_add(granules)?;
    Some(Piece {
        sector: div_down(extent.physical, SECTOR_SHIFT),
        slot: next_slot,
        granules,
    })
}

/// The one piece that is `last` and `next` together, if `next` follows it on the device and in
/// number. The list of pieces then gets that one in the place of `last`.
pub fn join(last: &Piece, next: &Piece, granule_shift: u32) -> Option<Piece> {
    let sector = last
        .sector
        .checked_add(times(last.granules, granule_shift))?;
    (sector == next.sector && last.end() == next.slot).then_some(Piece {
        sector: last.sector,
        slot: last.slot,
        granules: last.granules.checked_add(next.granules)?,
    })
}

/// The sector of a slot, and how many slots lie one after the other from it on, itself included.
/// [`None`] if there is no such slot. The pieces are in the order of their slots, and a granule is
/// `1 << granule_shift` sectors.
pub fn locate(pieces: &[Piece], slot: u64, granule_shift: u32) -> Option<(u64, u64)> {
    let (piece, run) = find(pieces, slot)?;
    let ahead = times(slot.checked_sub(piece.slot)?, granule_shift);
    Some((piece.sector.checked_add(ahead)?, run))
}

/// The piece that a slot is in, and how many slots it has from that one on.
fn find(pieces: &[Piece], slot: u64) -> Option<(&Piece, u64)> {
    let mut rest = pieces;
    while let Some((before, from)) = rest.split_at_checked(rest.len() / 2) {
        let (middle, after) = from.split_first()?;
        if slot < middle.slot {
            rest = before;
        } else if slot >= middle.end() {
            rest = after;
        } else {
            return Some((middle, middle.end().saturating_sub(slot)));
        }
    }
    None
}

/// How many slots there are on `pieces`.
pub fn total(pieces: &[Piece]) -> u64 {
    pieces.last().map_or(0, Piece::end)
}

/// Hands out slots, each once, from the first to the last.
#[derive(Debug, Default)]
pub struct Cursor {
    /// The next slot to hand out.
    next: u64,
}

impl Cursor {
    /// Begins with the first slot.
    pub const fn new() -> Self {
        Self { next: 0 }
    }

    /// Takes a run of at most `want` slots that lie one after the other on the device: its first
    /// slot, and how many. [`None`] if none is left, or none is wanted. `pieces` may have grown at
    /// its end since the last time.
    pub fn take(&mut self, pieces: &[Piece], want: u64) -> Option<(u64, u64)> {
        let (_, run) = find(pieces, self.next)?;
        let len = run.min(want);
        if len == 0 {
            return None;
        }
        let slot = self.next;
        self.next = slot.checked_add(len)?;
        Some((slot, len))
    }

    /// How many slots were taken.
    pub fn used(&self) -> u64 {
        self.next
    }
}
