// SPDX-License-Identifier: GPL-2.0

//! Snapstores: where copied granules go.
//!
//! A store is made of portions, each on a block device or in memory. Granules get *slots* in them
//! (`bdsnap_logic::fill`). Slots are given out once and never reused, and portions stay as long as
//! their store, so whoever holds it may read a slot without a lock.

mod portion;

use crate::kapi::abi;
use crate::kapi::abi::Refused;
use crate::kapi::bdev::BlockDevice;
use crate::kapi::bdev::Dev;
use crate::kapi::bdev::DiskId;
use crate::kapi::pages::Pages;
use crate::kapi::slot;
use crate::kapi::slot::Slot;
use crate::tracker;
use bdsnap_logic::extent;
use bdsnap_logic::extent::Cursor;
use bdsnap_logic::fill;
use bdsnap_logic::fill::Fill;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;
use kernel::new_spinlock;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::SpinLock;
use portion::Medium;
use portion::Portion;

/// What a portion is to be made of.
pub(crate) enum Source {
    /// The blocks of a file; its mapping goes into a user's buffer with room for so many `struct
    /// fiemap_extent`.
    File {
        /// Descriptor of the calling process.
        fd: i32,
        /// The buffer.
        buffer: u64,
        /// Its room.
        room: u32,
    },
    /// A range of a device.
    Device {
        /// The device.
        dev: Dev,
        /// Byte where the range begins.
        offset: u64,
        /// Bytes; 0: to the end.
        length: u64,
    },
    /// Memory.
    Memory {
        /// Bytes.
        length: u64,
    },
}

/// The portions on one device, or in memory.
struct Lane {
    /// The device; None: memory.
    dev: Option<Dev>,
    /// How full it is.
    fill: Fill,
    /// The portion that is being filled.
    portion: usize,
    /// How far that is.
    cursor: Cursor,
}

/// Where a slot is, and how many follow it there, itself included.
pub(crate) enum Site<'a> {
    /// On a device, from this sector on.
    Device(&'a BlockDevice, u64, u64),
    /// In memory, from this byte on.
    Memory(&'a Pages, u64, u64),
}

/// A store.
#[pin_data(PinnedDrop)]
pub(crate) struct Store {
    /// Sectors in a granule, as a shift.
    shift: u32,
    /// The portions, in the order in which they came.
    portions: KVVec<Slot<Portion>>,
    /// How many there are.
    count: AtomicUsize,
    /// How they are filled; has room for BDSNAP_MAX_LANES.
    #[pin]
    lanes: SpinLock<KVec<Lane>>,
}

impl Store {
    /// An empty one; `shift` is sectors in a granule. ENOMEM. Sleeps.
    pub(crate) fn new(shift: u32) -> Result<Arc<Self>> {
        let portions = slot::slots(abi::BDSNAP_MAX_PORTIONS as usize)?;
        let lanes = KVec::with_capacity(abi::BDSNAP_MAX_LANES as usize, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                shift,
                portions,
                count: AtomicUsize::new(0),
                lanes <- new_spinlock!(lanes),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a portion, as BDSNAP_IOC_STORE_ADD says, if `fits` says so of it; returns how many extents
    /// were mapped. One at a time (the caller's lock). Sleeps.
    pub(crate) fn add(
        &self,
        source: Source,
        fits: impl FnOnce(&New<'_>) -> Result<(), Refused>,
    ) -> Result<u32, Refused> {
        let index = self.count.load(Ordering::Relaxed);
        let place = self.portions.get(index).ok_or(ENOSPC)?;
        let portion = match source {
            Source::File { fd, buffer, room } => Portion::of_file(fd, self.shift, buffer, room)?,
            Source::Device {
                dev,
                offset,
                length,
            } => Portion::of_device(dev, self.shift, offset, length)?,
            Source::Memory { length } => Portion::of_memory(self.shift, length)?,
        };
        fits(&New(&portion))?;
        let (dev, slots, extents) = (
            portion.device().map(BlockDevice::dev),
            portion.slots(),
            portion.extents,
        );
        let mut lane = Lane {
            dev,
            fill: Fill::default(),
            portion: index,
            cursor: Cursor::new(),
        };
        lane.fill.total = slots;
        let boxed = KBox::new(portion, GFP_KERNEL)?;
        let mut lanes = self.lanes.lock();
        let known = lanes.iter().position(|l| l.dev == dev);
        let has_room = known.is_some() || lanes.len() < lanes.capacity();
        if !has_room {
            // What can't be added is freed only now: that may sleep.
            drop(lanes);
            return Err(ENOSPC.into());
        }
        place.put(Some(boxed));
        match known.and_then(|n| lanes.get_mut(n)) {
            Some(known) => known.fill.total = known.fill.total.saturating_add(slots),
            None => {
                let _ = lanes.push_within_capacity(lane);
            }
        }
        drop(lanes);
        self.count.store(index + 1, Ordering::Release);
        if let Some(portion) = place.get() {
            mark_changed(portion);
        }
        Ok(extents)
    }

    /// Its portions.
    fn portions(&self) -> impl Iterator<Item = &Portion> {
        let count = self.count.load(Ordering::Acquire);
        self.portions.iter().take(count).filter_map(Slot::get)
    }

    /// The device of its first portion that is on one.
    pub(crate) fn device(&self) -> Option<&BlockDevice> {
        self.portions().find_map(Portion::device)
    }

    /// The largest logical blocks of its devices, in bytes.
    pub(crate) fn logical_block(&self) -> u32 {
        let blocks = self.portions().filter_map(Portion::device);
        blocks.map(BlockDevice::logical_block).max().unwrap_or(0)
    }

    /// Sectors in a granule, as a shift.
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// How full it is, in slots.
    pub(crate) fn fill(&self) -> Fill {
        let mut sum = Fill::default();
        for lane in self.lanes.lock().iter() {
            sum.used = sum.used.saturating_add(lane.fill.used);
            sum.total = sum.total.saturating_add(lane.fill.total);
        }
        sum
    }

    /// Takes up to `want` slots that lie side by side: the first, and how many. None: it is full.
    pub(crate) fn take(&self, want: u64) -> Option<(u64, u64)> {
        let mut lanes = self.lanes.lock();
        let index = fill::emptiest(lanes.iter().map(|l| l.fill))?;
        let lane = lanes.get_mut(index)?;
        loop {
            let portion = self.portions.get(lane.portion)?.get()?;
            if let Some((place, len)) = lane.cursor.take(&portion.pieces, want) {
                lane.fill.used = lane.fill.used.saturating_add(len);
                return Some((fill::slot(lane.portion, place)?, len));
            }
            // Full: the next one of this lane.
            let of_lane = |p: &Slot<Portion>| {
                let portion = p.get()?;
                Some(portion.device().map(BlockDevice::dev) == lane.dev)
            };
            let next = lane.portion.checked_add(1)?;
            let ahead = self.portions.get(next..)?.iter();
            let step = ahead.map_while(of_lane).position(|is| is)?;
            lane.portion = next.checked_add(step)?;
            lane.cursor = Cursor::new();
        }
    }

    /// Where a slot is.
    pub(crate) fn site(&self, slot: u64) -> Option<Site<'_>> {
        let (portion, place) = fill::place(slot);
        let portion = self.portions.get(portion)?.get()?;
        let (sector, run) = extent::locate(&portion.pieces, place, self.shift)?;
        Some(match &portion.medium {
            Medium::Device { device, .. } => Site::Device(device, sector, run),
            Medium::Memory(pages) => Site::Memory(pages, sector.checked_shl(SECTOR_SHIFT)?, run),
        })
    }

    /// The sectors of a disk that are its own.
    pub(crate) fn on_disk(&self, disk: DiskId) -> impl Iterator<Item = Span<Sectors>> + '_ {
        let there = move |portion| on_disk(portion, disk);
        self.portions().flat_map(there)
    }

    /// Marks its sectors as changed in the map of every origin they lie on: what images show
    /// there changes when a portion comes, and when it goes.
    pub(crate) fn mark_changed(&self) {
        self.portions().for_each(mark_changed);
    }
}

/// A portion that is about to be added.
pub(crate) struct New<'a>(&'a Portion);

impl New<'_> {
    /// Its device; None: it is memory.
    pub(crate) fn device(&self) -> Option<&BlockDevice> {
        self.0.device()
    }

    /// Whether a file system gave it its blocks.
    pub(crate) fn is_file(&self) -> bool {
        self.0.is_file()
    }

    /// The sectors of its disk that it takes.
    pub(crate) fn on_disk(&self) -> impl Iterator<Item = Span<Sectors>> + '_ {
        let there = self.0.on_disk().map(|(_, spans)| spans);
        there.into_iter().flatten()
    }
}

/// The sectors of a disk that a portion takes.
fn on_disk(portion: &Portion, disk: DiskId) -> impl Iterator<Item = Span<Sectors>> + '_ {
    let there = portion.on_disk().filter(|(on, _)| *on == disk);
    there.map(|(_, spans)| spans).into_iter().flatten()
}

/// Marks a portion's sectors as changed.
fn mark_changed(portion: &Portion) {
    if let Some((disk, spans)) = portion.on_disk() {
        spans.for_each(|span| tracker::mark_on_disk(disk, span));
    }
}

#[pinned_drop]
impl PinnedDrop for Store {
    fn drop(self: Pin<&mut Self>) {
        self.mark_changed();
    }
}
