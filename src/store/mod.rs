// SPDX-License-Identifier: GPL-2.0

//! Snapstores: where copied granules go.
//!
//! A store is a list of pieces of a block device, here the extents of a pinned file. Granules get
//! *slots*: consecutive numbers over all pieces. Slots are given out once and never reused, so
//! whoever holds the store may read a slot without a lock.

use crate::kapi::abi;
use crate::kapi::abi::Refused;
use crate::kapi::bdev::BlockDevice;
use crate::kapi::bdev::DiskId;
use crate::kapi::file::BlockFile;
use crate::kapi::file::PinnedFile;
use crate::tracker;
use bdsnap_logic::extent;
use bdsnap_logic::extent::Cursor;
use bdsnap_logic::extent::Piece;
use bdsnap_logic::extent::RawExtent;
use bdsnap_logic::extent::Refusal;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use kernel::new_spinlock;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::SpinLock;

/// File systems whose files may be used by their blocks.
const FILE_SYSTEMS: [&CStr; 2] = [c"ext4", c"xfs"];

/// A store, fixed in size, on one device.
#[pin_data(PinnedDrop)]
pub(crate) struct Store {
    /// The device.
    device: BlockDevice,
    /// Keeps the blocks where they are.
    _file: PinnedFile,
    /// The sectors of the device that are its own.
    spans: KVVec<Span<Sectors>>,
    /// The pieces, by slot.
    pieces: KVVec<Piece>,
    /// Sectors in a granule, as a shift.
    shift: u32,
    /// All slots.
    slots: u64,
    /// The next free slot.
    #[pin]
    next: SpinLock<Cursor>,
}

/// What a caller learns of a new store.
pub(crate) struct Made {
    /// The store.
    pub(crate) store: Arc<Store>,
    /// How many extents were mapped.
    pub(crate) extents: u32,
}

impl Store {
    /// Makes a store of the file `fd`, as BDSNAP_IOC_STORE_FILE says. `buffer` is a user's, with
    /// room for `room` `struct fiemap_extent`; `shift` is sectors in a granule. Sleeps.
    pub(crate) fn of_file(fd: i32, shift: u32, buffer: u64, room: u32) -> Result<Made, Refused> {
        let file = BlockFile::get(fd).map_err(|e| {
            let cause = if e == EBADF {
                0
            } else {
                abi::BDSNAP_CAUSE_STORE_FILE
            };
            Refused::new(e, cause)
        })?;
        let allowed = FILE_SYSTEMS.iter().any(|fs| file.is_on(fs)) && !file.is_realtime();
        if !allowed {
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
        let mapped = pinned.fiemap(len, buffer, room)?;
        let mut extents = read_extents(buffer, mapped)?;
        let device_len = device.sectors() << SECTOR_SHIFT;
        extent::check(&mut extents, len, device_len, device.logical_block())
            .map_err(|refusal| refused(refusal, mapped == room))?;
        let spans = spans_of(&extents)?;
        trim(&mut extents, device.start_sector(), shift);
        let pieces = pieces_of(&extents, shift)?;
        let slots = extent::total(&pieces);
        if slots == 0 {
            return Err(Refused::new(EINVAL, abi::BDSNAP_CAUSE_STORE_SMALL));
        }
        let store = Arc::pin_init(
            pin_init!(Self {
                device,
                _file: pinned,
                spans,
                pieces,
                shift,
                slots,
                next <- new_spinlock!(Cursor::new()),
            }),
            GFP_KERNEL,
        )?;
        store.mark_changed();
        Ok(Made {
            store,
            extents: mapped,
        })
    }

    /// The device that holds it.
    pub(crate) fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// Sectors in a granule, as a shift.
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// All its slots.
    pub(crate) fn slots(&self) -> u64 {
        self.slots
    }

    /// How many slots have been given out.
    pub(crate) fn used(&self) -> u64 {
        self.next.lock().used()
    }

    /// Takes up to `want` slots that lie side by side on the device: the first, and how many.
    /// None: it is full.
    pub(crate) fn take(&self, want: u64) -> Option<(u64, u64)> {
        self.next.lock().take(&self.pieces, want)
    }

    /// Where a slot is on the device: its first sector, and how many slots follow there.
    pub(crate) fn locate(&self, slot: u64) -> Option<(u64, u64)> {
        extent::locate(&self.pieces, slot, self.shift)
    }

    /// Its disk.
    pub(crate) fn disk(&self) -> DiskId {
        self.device.disk()
    }

    /// The sectors of its disk that it consists of.
    pub(crate) fn on_disk(&self) -> impl Iterator<Item = Span<Sectors>> + '_ {
        let start = self.device.start_sector();
        let on_disk = move |span: &Span<Sectors>| {
            let first = start.checked_add(span.start())?;
            Span::of_len(first, span.len())
        };
        self.spans.iter().filter_map(on_disk)
    }

    /// Marks its sectors as changed in the map of every origin they lie on: what images show
    /// there changes when a store comes, and when it goes.
    pub(crate) fn mark_changed(&self) {
        for span in self.on_disk() {
            tracker::mark_on_disk(self.disk(), span);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Store {
    fn drop(self: Pin<&mut Self>) {
        self.mark_changed();
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
