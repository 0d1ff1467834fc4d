// SPDX-License-Identifier: GPL-2.0

//! Portions of a store: the extents of a file, a range of a device, memory.

use crate::cow::Bits;
use crate::kapi::abi;
use crate::kapi::abi::Refused;
use crate::kapi::bdev::BlockDevice;
use crate::kapi::bdev::Dev;
use crate::kapi::bdev::DiskId;
use crate::kapi::file::BlockFile;
use crate::kapi::file::PinnedFile;
use crate::kapi::pages::Pages;
use bdsnap_logic::extent;
use bdsnap_logic::extent::Piece;
use bdsnap_logic::extent::RawExtent;
use bdsnap_logic::extent::Refusal;
use bdsnap_logic::fill;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Bytes at the beginning of a device where it may say what it is.
const LABELS: u64 = 1 << 20;

/// File systems whose files may be used by their blocks.
const FILE_SYSTEMS: [&CStr; 2] = [c"ext4", c"xfs"];

/// The same, but they have no FIEMAP, and are asked cluster by cluster.
const WITHOUT_FIEMAP: [&CStr; 3] = [c"vfat", c"msdos", c"exfat"];

/// The sectors that a portion takes. Whoever keeps it knows for how long: the store of a snapshot that
/// is deleted lives on while others use slots of it.
pub(crate) struct Place {
    /// The disk.
    pub(crate) disk: DiskId,
    /// Sectors of the disk.
    pub(crate) spans: KVVec<Span<Sectors>>,
    /// Whether they are given back.
    gone: AtomicBool,
}

impl Place {
    /// Of sectors of a device. ENOMEM. May sleep.
    fn new(device: &BlockDevice, mut spans: KVVec<Span<Sectors>>) -> Result<Arc<Self>> {
        let start = device.start_sector();
        for span in spans.iter_mut() {
            let first = start.checked_add(span.start()).ok_or(EINVAL)?;
            *span = Span::of_len(first, span.len()).ok_or(EINVAL)?;
        }
        let place = Self {
            disk: device.disk(),
            spans,
            gone: AtomicBool::new(false),
        };
        Ok(Arc::new(place, GFP_KERNEL)?)
    }

    /// Whether its sectors are given back.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// They are about to be given back.
    pub(super) fn end(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    /// Whether it has any of these sectors of a disk.
    pub(crate) fn overlaps(&self, disk: DiskId, span: Span<Sectors>) -> bool {
        self.disk == disk && self.spans.iter().any(|own| own.overlaps(span))
    }
}

/// Where a portion is.
pub(super) enum Medium {
    /// On a device.
    Device {
        /// The device.
        device: BlockDevice,
        /// The portion's sectors.
        place: Arc<Place>,
        /// Keeps the blocks where they are; None: it is a range of the device.
        file: Option<PinnedFile>,
    },
    /// In memory.
    Memory(Pages),
}

/// A portion.
pub(super) struct Portion {
    /// Where it is.
    pub(super) medium: Medium,
    /// Its slots' places: on the device, or in bytes of memory as if they were sectors.
    pub(super) pieces: KVVec<Piece>,
    /// Slots that were in use and have been released; under the store's lock, but for memory for them.
    pub(super) released: Bits,
    /// How many extents were mapped.
    pub(super) extents: u32,
    /// Bytes that it takes, those included that can't be used.
    pub(super) bytes: u64,
}

impl Portion {
    /// Of the file `fd`. `buffer` is a user's, with room for `room` `struct fiemap_extent`; `shift`
    /// is sectors in a granule. Sleeps.
    pub(super) fn of_file(fd: i32, shift: u32, buffer: u64, room: u32) -> Result<Self, Refused> {
        let file = BlockFile::get(fd).map_err(|e| {
            let cause = if e == EBADF {
                0
            } else {
                abi::BDSNAP_CAUSE_STORE_FILE
            };
            Refused::new(e, cause)
        })?;
        let has_fiemap = FILE_SYSTEMS.iter().any(|fs| file.is_on(fs)) && !file.is_realtime();
        if !has_fiemap && !WITHOUT_FIEMAP.iter().any(|fs| file.is_on(fs)) {
            return Err(Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_STORE_FS));
        }
        let device = file
            .device()
            .map_err(|_| Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_STORE_FS))?;
        let pinned = file.pin().map_err(|e| {
            let cause = if e == EBUSY {
                abi::BDSNAP_CAUSE_STORE_BUSY
            } else {
                0
            };
            Refused::new(e, cause)
        })?;
        let len = pinned.len();
        if len == 0 {
            return Err(Refused::new(EINVAL, abi::BDSNAP_CAUSE_STORE_SMALL));
        }
        let mut extents = if has_fiemap {
            read_extents(buffer, pinned.fiemap(len, buffer, room)?)?
        } else {
            ask_extents(&pinned, len, room)?
        };
        let mapped = extents.len() as u32;
        let device_len = device.sectors() << SECTOR_SHIFT;
        extent::check(&mut extents, len, device_len, device.logical_block())
            .map_err(|refusal| refused(refusal, mapped == room))?;
        let spans = spans_of(&extents)?;
        trim(&mut extents, device.start_sector(), shift);
        let pieces = pieces_of(&extents, shift)?;
        Self {
            medium: Medium::Device {
                place: Place::new(&device, spans)?,
                device,
                file: Some(pinned),
            },
            released: Bits::new(extent::total(&pieces))?,
            pieces,
            extents: mapped,
            bytes: len,
        }
        .checked()
    }

    /// Of `len` bytes of a device from byte `offset` on; `len` 0: to its end. Sleeps.
    pub(super) fn of_device(dev: Dev, shift: u32, offset: u64, len: u64) -> Result<Self, Refused> {
        let refused = |e| match e {
            EBUSY => Refused::new(e, abi::BDSNAP_CAUSE_STORE_BUSY),
            EROFS | EACCES | EPERM => Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_STORE_DEVICE),
            e => e.into(),
        };
        let device = BlockDevice::claim(dev).map_err(refused)?;
        if device.is_zoned() || device.is_read_only() {
            return Err(Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_STORE_DEVICE));
        }
        let all = device.sectors() << SECTOR_SHIFT;
        let granule = 1u64 << (shift + SECTOR_SHIFT);
        let len = match len {
            // (offset is in the range where it is checked)
            0 => all.saturating_sub(offset) & !(granule - 1),
            len => len,
        };
        let range_ok = offset.checked_add(len).is_some_and(|end| end <= all)
            && (offset | len) & (granule - 1) == 0;
        let span = Span::from_bytes_exact(offset, len).filter(|_| range_ok);
        let span = span.ok_or(Refused::new(EINVAL, abi::BDSNAP_CAUSE_STORE_RANGE))?;
        // Nothing of an origin is put where tools look for what a device is: it would be taken for a
        // second one of the origin's file system.
        let begin = offset.max(LABELS);
        let mut extents = [RawExtent {
            logical: 0,
            physical: begin,
            length: offset.saturating_add(len).saturating_sub(begin),
            flags: 0,
        }];
        trim(&mut extents, device.start_sector(), shift);
        let pieces = pieces_of(&extents, shift)?;
        let mut spans = KVVec::with_capacity(1, GFP_KERNEL)?;
        spans.push(span, GFP_KERNEL)?;
        Self {
            medium: Medium::Device {
                place: Place::new(&device, spans)?,
                device,
                file: None,
            },
            released: Bits::new(extent::total(&pieces))?,
            pieces,
            extents: 0,
            bytes: len,
        }
        .checked()
    }

    /// Of memory. Sleeps.
    pub(super) fn of_memory(shift: u32, memory: Pages) -> Result<Self, Refused> {
        let granule = 1u64 << (shift + SECTOR_SHIFT);
        let len = memory.bytes() & !(granule - 1);
        let extents = [RawExtent {
            logical: 0,
            physical: 0,
            length: len,
            flags: 0,
        }];
        let pieces = pieces_of(&extents, shift)?;
        Self {
            medium: Medium::Memory(memory),
            released: Bits::new(extent::total(&pieces))?,
            pieces,
            extents: 0,
            bytes: len,
        }
        .checked()
    }

    /// If it has a slot, and no more than can be counted.
    fn checked(self) -> Result<Self, Refused> {
        match self.slots() {
            0 => Err(Refused::new(EINVAL, abi::BDSNAP_CAUSE_STORE_SMALL)),
            n if n >= fill::PORTION_SLOTS => Err(EINVAL.into()),
            _ => Ok(self),
        }
    }

    /// Leaves only the slots that lie on sectors of the disk that `clean` names: of a span, the first
    /// part that may be used. ENOMEM; EBUSY: none is left. Sleeps.
    pub(super) fn retain(
        &mut self,
        shift: u32,
        clean: impl Fn(Span<Sectors>) -> Option<Span<Sectors>>,
    ) -> Result<(), Refused> {
        let Medium::Device { device, .. } = &self.medium else {
            return Ok(());
        };
        let start = device.start_sector();
        let mut pieces: KVVec<Piece> = KVVec::new();
        for piece in self.pieces.iter() {
            let sectors = Span::of_len(start.saturating_add(piece.sector), piece.granules << shift);
            let mut rest = sectors.ok_or(EINVAL)?;
            while let Some(part) = clean(rest) {
                let mut granules = part.start()..part.end();
                // Whole granules only, on the grid of the piece.
                let into = granules
                    .start
                    .saturating_sub(start.saturating_add(piece.sector));
                let skip = into.next_multiple_of(1 << shift).saturating_sub(into);
                granules.start = granules.start.saturating_add(skip);
                let count = granules.end.saturating_sub(granules.start) >> shift;
                if count > 0 {
                    let new = Piece {
                        sector: granules.start.saturating_sub(start),
                        slot: extent::total(&pieces),
                        granules: count,
                    };
                    match pieces
                        .last_mut()
                        .map(|last| (extent::join(last, &new, shift), last))
                    {
                        Some((Some(joined), last)) => *last = joined,
                        _ => pieces.push(new, GFP_KERNEL)?,
                    }
                }
                (_, rest) = rest.split_at(part.end());
            }
        }
        if pieces.is_empty() {
            return Err(Refused::new(EBUSY, abi::BDSNAP_CAUSE_STORE_NEEDED));
        }
        self.pieces = pieces;
        Ok(())
    }

    /// How many slots it has.
    pub(super) fn slots(&self) -> u64 {
        extent::total(&self.pieces)
    }

    /// Its device; None: it is memory.
    pub(super) fn device(&self) -> Option<&BlockDevice> {
        match &self.medium {
            Medium::Device { device, .. } => Some(device),
            Medium::Memory(_) => None,
        }
    }

    /// Whether a file system gave it its blocks.
    pub(super) fn is_file(&self) -> bool {
        matches!(&self.medium, Medium::Device { file: Some(_), .. })
    }

    /// Its place on a disk. None: it is memory.
    pub(super) fn place(&self) -> Option<&Arc<Place>> {
        match &self.medium {
            Medium::Device { place, .. } => Some(place),
            Medium::Memory(_) => None,
        }
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        if let Some(place) = self.place() {
            place.end();
        }
    }
}

/// Copies the mapping in, once.
fn read_extents(buffer: u64, count: u32) -> Result<KVVec<RawExtent>> {
    let user = abi::read_array::<abi::fiemap_extent>(buffer, count as usize)?;
    let mut extents = KVVec::with_capacity(user.len(), GFP_KERNEL)?;
    for e in user.iter() {
        let raw = RawExtent {
            logical: e.fe_logical,
            physical: e.fe_physical,
            length: e.fe_length,
            flags: e.fe_flags,
        };
        extents.push(raw, GFP_KERNEL)?;
    }
    Ok(extents)
}

/// Asks for the mapping of `len` bytes of a file run by run: at most `room` of them. Sleeps.
fn ask_extents(file: &PinnedFile, len: u64, room: u32) -> Result<KVVec<RawExtent>, Refused> {
    let mut extents: KVVec<RawExtent> = KVVec::new();
    let mut logical = 0;
    while logical < len {
        if extents.len() >= room as usize {
            return Err(refused(Refusal::TooMany, true));
        }
        let (physical, length) = file.run(logical, len).map_err(|e| match e {
            ENODATA => refused(Refusal::Hole, false),
            EOPNOTSUPP => Refused::new(e, abi::BDSNAP_CAUSE_STORE_FS),
            e => e.into(),
        })?;
        let is_last = logical.saturating_add(length) >= len;
        let extent = RawExtent {
            logical,
            physical,
            length,
            flags: if is_last { extent::FLAG_LAST } else { 0 },
        };
        extents.push(extent, GFP_KERNEL)?;
        logical = logical.saturating_add(length);
    }
    Ok(extents)
}

/// The sectors of a checked list of extents.
fn spans_of(extents: &[RawExtent]) -> Result<KVVec<Span<Sectors>>> {
    let mut spans = KVVec::with_capacity(extents.len(), GFP_KERNEL)?;
    for e in extents {
        let span = Span::from_bytes_exact(e.physical, e.length).ok_or(EINVAL)?;
        spans.push(span, GFP_KERNEL)?;
    }
    Ok(spans)
}

/// Takes a granule off both ends of extents that don't consist of whole granules, of the device or
/// of the disk (`start` is where the device begins there): what is written to the store must only
/// touch granules that are the store's alone, of whatever origin.
fn trim(extents: &mut [RawExtent], start: u64, shift: u32) {
    let granule = 1u64 << (shift + SECTOR_SHIFT);
    let offset = (start << SECTOR_SHIFT) % granule;
    for e in extents {
        if offset == 0 && e.physical % granule == 0 && e.length % granule == 0 {
            continue;
        }
        e.physical = e.physical.saturating_add(granule);
        e.length = e.length.saturating_sub(2 * granule);
    }
}

/// The pieces of a checked list of extents.
fn pieces_of(extents: &[RawExtent], shift: u32) -> Result<KVVec<Piece>> {
    let mut pieces: KVVec<Piece> = KVVec::with_capacity(extents.len(), GFP_KERNEL)?;
    for e in extents {
        let Some(piece) = extent::piece(e, shift, extent::total(&pieces)) else {
            continue;
        };
        match pieces.last_mut() {
            Some(last) => match extent::join(last, &piece, shift) {
                Some(joined) => *last = joined,
                None => pieces.push(piece, GFP_KERNEL)?,
            },
            None => pieces.push(piece, GFP_KERNEL)?,
        }
    }
    Ok(pieces)
}

/// What a refused list of extents means for the user.
fn refused(refusal: Refusal, buffer_full: bool) -> Refused {
    let fragmented = matches!(refusal, Refusal::TooMany)
        || (buffer_full && matches!(refusal, Refusal::Unfinished | Refusal::Short));
    if fragmented {
        Refused::new(ENOSPC, abi::BDSNAP_CAUSE_STORE_FRAGMENTED)
    } else {
        Refused::new(EINVAL, abi::BDSNAP_CAUSE_STORE_EXTENTS)
    }
}
