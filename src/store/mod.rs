// SPDX-License-Identifier: GPL-2.0

//! Snapstores: where copied granules go.
//!
//! A store is made of portions, each on a block device or in memory. Granules get *slots* in them
//! (`bdsnap_logic::fill`). Portions stay as long as their store, so whoever holds it may read a slot
//! without a lock. What a slot had is released first, and then the slot is used again: who reads it all
//! the while looks afterwards whether what he was reading has been released.

mod portion;

use crate::kapi::abi;
use crate::kapi::abi::Refused;
use crate::kapi::bdev::BlockDevice;
use crate::kapi::bdev::Dev;
use crate::kapi::pages::Pages;
use crate::kapi::slot;
use crate::kapi::slot::BitPage;
use crate::kapi::slot::Slot;
use crate::kapi::time;
use crate::tracker;
use bdsnap_logic::extent;
use bdsnap_logic::extent::Cursor;
use bdsnap_logic::fill;
use bdsnap_logic::fill::Fill;
use bdsnap_logic::fill::Gap;
use bdsnap_logic::fill::Returned;
use bdsnap_logic::stretch;
use bdsnap_logic::stretch::Growth;
use bdsnap_logic::stretch::Rate;
use bdsnap_logic::stretch::Room;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;
use kernel::new_spinlock;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::SpinLock;
use portion::Medium;
pub(crate) use portion::Place;
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
    Memory(Pages),
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
    /// Slots that were taken and not used.
    returned: Returned<KVec<Gap>>,
    /// How many slots have been released: [`Portion::released`] of its portions.
    released: u64,
    /// Where the next one of these is looked for: a portion, and a place in it.
    hint: (usize, u64),
}

/// Where a slot is, and how many follow it there, itself included.
pub(crate) enum Site<'a> {
    /// On a device, from this sector on.
    Device(&'a BlockDevice, u64, u64),
    /// In memory, from this byte on.
    Memory(&'a Pages, u64, u64),
}

/// Nanoseconds in a millisecond.
const MS: u64 = 1_000_000;
/// So long a write waits for a portion that has been asked for, if somebody serves stores.
const PORTION_NS: u64 = abi::BDSNAP_PORTION_MS as u64 * MS;
/// So long nothing is told again of a store that is low.
const TELL_AGAIN_NS: u64 = 1000 * MS;
/// The most that is kept back for the writes without which no portion comes, bytes.
const SPARE: u64 = 64 << 20;

/// The smallest portion that is worth asking for, bytes.
const LEAST: u64 = 1 << 20;

/// So long at most a write waits for what others are reading to be zeros, nanoseconds.
const UNREAD_NS: u64 = 2_000_000_000;

/// The slots of so much room, as a shift of bytes; 0: it isn't worth asking for.
fn worth_it(room: u64, shift: u32) -> u64 {
    if room < LEAST {
        0
    } else {
        room >> shift
    }
}

/// Whether somebody serves stores that may grow.
static SERVED: AtomicBool = AtomicBool::new(false);

/// Says whether somebody serves stores that may grow.
pub(crate) fn set_served(served: bool) {
    SERVED.store(served, Ordering::Relaxed);
}

/// What becomes of a store that runs low.
#[derive(Clone, Copy, Default)]
pub(crate) struct Policy {
    /// The most bytes of portions; 0: those that there are.
    pub(crate) limit: u64,
    /// The least that is asked for, bytes.
    pub(crate) portion: u64,
    /// How long writes wait for a portion where none can be expected, milliseconds.
    pub(crate) hold_ms: u32,
}

/// How a store fills up.
struct Shelf {
    /// Its lanes; has room for BDSNAP_MAX_LANES.
    lanes: KVec<Lane>,
    /// How fast.
    rate: Rate,
    /// How it may grow.
    growth: Growth,
    /// Bytes of all portions, those included that can't be used.
    taken: u64,
    /// The most that these may be; 0: those that there are.
    limit: u64,
    /// See [`Policy`].
    hold_ms: u32,
    /// Whether somebody waits for a portion.
    is_waited_for: bool,
    /// When the last portion came.
    added: u64,
    /// When it was told that it is low; 0: never.
    told: u64,
    /// Slots taken for what is still being read: it may be zeros.
    unread: u64,
}

/// What came of asking a store for slots.
pub(crate) enum Taken {
    /// The first of some side by side, and how many.
    Slots(u64, u64),
    /// There may be some later: a portion may come.
    Later,
    /// There may be some soon: what others have taken may not be used.
    Soon,
    /// It is full.
    Full,
}

/// How things stand with a store, in bytes.
pub(crate) struct Outlook {
    /// The most that it may have.
    pub(crate) limit: u64,
    /// How much more is wanted now.
    pub(crate) wanted: u64,
    /// Used a second.
    pub(crate) rate: u64,
    /// When it will be full, in seconds, growing included; None: it is not being used.
    pub(crate) seconds: Option<u64>,
    /// Whether writes wait for a portion.
    pub(crate) is_waited_for: bool,
    /// How long they may.
    pub(crate) hold_ms: u32,
}

/// A store.
#[pin_data(PinnedDrop)]
pub(crate) struct Store {
    /// Sectors in a granule, as a shift.
    shift: u32,
    /// Granules that are copied together, a power of two.
    run: u64,
    /// The portions, in the order in which they came.
    portions: KVVec<Slot<Portion>>,
    /// How many there are.
    count: AtomicUsize,
    /// Whether it is low, and that has not been told.
    news: AtomicBool,
    /// How they are filled.
    #[pin]
    shelf: SpinLock<Shelf>,
}

impl Store {
    /// An empty one; `shift` is sectors in a granule, `run` granules that are copied together, a power
    /// of two. ENOMEM. Sleeps.
    pub(crate) fn new(shift: u32, run: u64) -> Result<Arc<Self>> {
        let portions = slot::slots(abi::BDSNAP_MAX_PORTIONS as usize)?;
        let shelf = Shelf {
            lanes: KVec::with_capacity(abi::BDSNAP_MAX_LANES as usize, GFP_KERNEL)?,
            rate: Rate::default(),
            growth: Growth::default(),
            taken: 0,
            limit: 0,
            hold_ms: 0,
            is_waited_for: false,
            added: 0,
            told: 0,
            unread: 0,
        };
        Arc::pin_init(
            pin_init!(Self {
                shift,
                run,
                portions,
                count: AtomicUsize::new(0),
                news: AtomicBool::new(false),
                shelf <- new_spinlock!(shelf),
            }),
            GFP_KERNEL,
        )
    }

    /// Bytes of a granule, as a shift.
    fn byte_shift(&self) -> u32 {
        self.shift + SECTOR_SHIFT
    }

    /// Sets what becomes of it when it runs low. EINVAL: the limit is below what there is.
    pub(crate) fn set_policy(&self, policy: Policy) -> Result {
        let shift = self.byte_shift();
        let mut shelf = self.shelf.lock();
        let more = match policy.limit {
            0 => 0,
            limit => limit.checked_sub(shelf.taken).ok_or(EINVAL)?,
        };
        shelf.limit = policy.limit;
        shelf.hold_ms = policy.hold_ms;
        shelf.growth = Growth {
            room: worth_it(more, shift),
            portion: policy.portion >> shift,
            spare: SPARE >> shift,
        };
        Ok(())
    }

    /// Adds a portion, as BDSNAP_IOC_STORE_ADD says, if `fits` says so of it; returns how many extents
    /// were mapped. One at a time (the caller's lock). Sleeps.
    pub(crate) fn add(
        &self,
        source: Source,
        fits: impl FnOnce(&mut New) -> Result<(), Refused>,
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
            Source::Memory(pages) => Portion::of_memory(self.shift, pages)?,
        };
        let mut new = New {
            portion,
            shift: self.shift,
        };
        fits(&mut new)?;
        let portion = new.portion;
        let (dev, slots, extents) = (
            portion.device().map(BlockDevice::dev),
            portion.slots(),
            portion.extents,
        );
        let bytes = portion.bytes;
        let mut lane = Lane {
            dev,
            fill: Fill::default(),
            portion: index,
            cursor: Cursor::new(),
            returned: Returned::new(KVec::from_elem(Gap::default(), fill::GAPS, GFP_KERNEL)?),
            released: 0,
            hint: (0, 0),
        };
        lane.fill.total = slots;
        let boxed = KBox::new(portion, GFP_KERNEL)?;
        // Before anything is written there.
        mark_changed(&boxed);
        let mut shelf = self.shelf.lock();
        let known = shelf.lanes.iter().position(|l| l.dev == dev);
        let has_room = known.is_some() || shelf.lanes.len() < shelf.lanes.capacity();
        if !has_room {
            // What can't be added is freed only now: that may sleep.
            drop(shelf);
            return Err(ENOSPC.into());
        }
        place.put(Some(boxed));
        match known.and_then(|n| shelf.lanes.get_mut(n)) {
            Some(known) => known.fill.total = known.fill.total.saturating_add(slots),
            None => {
                let _ = shelf.lanes.push_within_capacity(lane);
            }
        }
        shelf.taken = shelf.taken.saturating_add(bytes);
        let shift = self.byte_shift();
        let room = (shelf.growth.room << shift).saturating_sub(bytes);
        // (The last place for a portion is taken.)
        let is_last = index + 1 >= self.portions.len();
        shelf.growth.room = if is_last { 0 } else { worth_it(room, shift) };
        shelf.is_waited_for = false;
        shelf.added = time::monotonic_ns();
        shelf.told = 0;
        drop(shelf);
        self.count.store(index + 1, Ordering::Release);
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

    /// How memory for I/O on all of its devices must be aligned: a mask, of bytes.
    pub(crate) fn dma_alignment(&self) -> u32 {
        let devices = self.portions().filter_map(Portion::device);
        devices.map(BlockDevice::dma_alignment).max().unwrap_or(0)
    }

    /// Sectors in a granule, as a shift.
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// How many granules to copy together: the run size, or one where there is little room left.
    pub(crate) fn run(&self) -> u64 {
        if self.run == 1 {
            return 1;
        }
        let shelf = self.shelf.lock();
        let fill = shelf.fill();
        let usable = fill.total.saturating_sub(shelf.growth.reserve(fill.total));
        if fill.used > usable / 4 * 3 {
            1
        } else {
            self.run
        }
    }

    /// Bytes that are copied together.
    pub(crate) fn run_bytes(&self) -> u64 {
        self.run << self.byte_shift()
    }

    /// How full it is, in slots.
    pub(crate) fn fill(&self) -> Fill {
        self.shelf.lock().fill()
    }

    /// How things stand.
    pub(crate) fn outlook(&self) -> Outlook {
        let shift = self.byte_shift();
        let shelf = self.shelf.lock();
        let (fill, rate) = (shelf.fill(), shelf.rate.at(time::monotonic_ns()));
        let growth = shelf.growth;
        let limit = match shelf.limit {
            0 => fill.total << shift,
            limit => limit,
        };
        // So that there are places for all that may come.
        let left = self.portions.len() - self.count.load(Ordering::Relaxed);
        let wanted = match growth.wanted(fill, rate) {
            0 => 0,
            wanted => wanted.max(growth.room.div_ceil(left.max(1) as u64)),
        };
        Outlook {
            limit,
            wanted: wanted << shift,
            rate: rate << shift,
            seconds: growth.seconds_left(fill, rate),
            is_waited_for: shelf.is_waited_for,
            hold_ms: shelf.hold_ms,
        }
    }

    /// Slots that are not used, those that are still to come included.
    pub(crate) fn slots_left(&self) -> u64 {
        let shelf = self.shelf.lock();
        let fill = shelf.fill();
        let free = fill.total.saturating_sub(fill.used);
        let free = free.saturating_add(shelf.unread);
        free.saturating_add(shelf.growth.room)
    }

    /// Bytes that portions may have that are still to come.
    pub(crate) fn room(&self) -> u64 {
        self.shelf.lock().growth.room << self.byte_shift()
    }

    /// Whether it is low and nobody has been told.
    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed)
    }

    /// In how many seconds it will be full, if that is to be told: once.
    pub(crate) fn take_news(&self) -> Option<u64> {
        if !self.news.swap(false, Ordering::Relaxed) {
            return None;
        }
        Some(self.outlook().seconds.unwrap_or(u64::MAX))
    }

    /// Takes up to `want` slots that lie side by side. `urgent`: also those that are kept back;
    /// `hurried`: this can't wait for more. `since`: the caller's own, for this store only: since when it
    /// gets none for writes that are not urgent, 0: it does.
    pub(crate) fn take(&self, want: u64, urgent: bool, hurried: bool, since: &AtomicU64) -> Taken {
        let now = time::monotonic_ns();
        let mut guard = self.shelf.lock();
        let shelf = &mut *guard;
        let fill = shelf.fill();
        let short_since = match since.load(Ordering::Relaxed) {
            0 => now,
            since => since,
        };
        let patient = !hurried && shelf.is_patient(short_since, now);
        let reserve = shelf.growth.reserve(fill.total);
        let taken = match stretch::room(fill, reserve, urgent, patient) {
            Room::Some(most) => match self.take_from(&mut shelf.lanes, want.min(most)) {
                Some((slot, len)) => {
                    shelf.rate.add(now, len);
                    shelf.unread = shelf.unread.saturating_add(len);
                    if !urgent && patient {
                        // (Patience that has come to an end comes back with a portion, or when nothing
                        // waits any more.)
                        since.store(0, Ordering::Relaxed);
                        shelf.is_waited_for = false;
                    }
                    Taken::Slots(slot, len)
                }
                None => Taken::Full,
            },
            Room::Later => {
                since.store(short_since, Ordering::Relaxed);
                shelf.is_waited_for = true;
                Taken::Later
            }
            Room::Full => {
                if shelf.unread > 0 && now.saturating_sub(short_since) < UNREAD_NS {
                    since.store(short_since, Ordering::Relaxed);
                    Taken::Soon
                } else {
                    Taken::Full
                }
            }
        };
        let (rate, since) = (shelf.rate.at(now), now.saturating_sub(shelf.told));
        let is_old = shelf.told == 0 || since >= TELL_AGAIN_NS;
        if is_old && shelf.growth.is_low(shelf.fill(), rate) {
            shelf.told = now;
            self.news.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// What was to go to so many slots that were taken has been read; those that it does not need have been
    /// given back.
    pub(crate) fn was_read(&self, len: u64) {
        let mut shelf = self.shelf.lock();
        shelf.unread = shelf.unread.saturating_sub(len);
    }

    /// Gives back slots that were taken, and to which nothing was written nor will be.
    pub(crate) fn give_back(&self, slot: u64, len: u64) {
        let (portion, _) = fill::place(slot);
        let portion = self.portions.get(portion).and_then(Slot::get);
        let Some(portion) = portion.filter(|_| len > 0) else {
            return;
        };
        let dev = portion.device().map(BlockDevice::dev);
        let mut shelf = self.shelf.lock();
        let Some(lane) = shelf.lanes.iter_mut().find(|l| l.dev == dev) else {
            return;
        };
        if lane.returned.put(slot, len) {
            lane.fill.used = lane.fill.used.saturating_sub(len);
            shelf.rate.undo(len);
        }
    }

    /// Makes sure that [`Store::release`] can be called for slots, with memory from a stock. ENOMEM: it is
    /// out; EINVAL: there are none such. Any context.
    pub(crate) fn ensure_release(
        &self,
        slot: u64,
        len: u64,
        stock: &mut KVec<KBox<BitPage>>,
    ) -> Result {
        let (portion, place) = fill::place(slot);
        let portion = self.portions.get(portion).and_then(Slot::get);
        let places = Span::of_len(place, len).ok_or(EINVAL)?;
        portion.ok_or(EINVAL)?.released.ensure_from(places, stock)
    }

    /// Gives back slots that have been in use: nobody is writing there, or will look there for what they
    /// had. Any context.
    pub(crate) fn release(&self, slot: u64, len: u64) {
        let (portion, place) = fill::place(slot);
        let portion = self.portions.get(portion).and_then(Slot::get);
        let (Some(portion), Some(places)) = (portion, Span::of_len(place, len)) else {
            return;
        };
        let dev = portion.device().map(BlockDevice::dev);
        let mut shelf = self.shelf.lock();
        if let Some(lane) = shelf.lanes.iter_mut().find(|l| l.dev == dev) {
            portion.released.set(places);
            lane.released = lane.released.saturating_add(len);
            lane.fill.used = lane.fill.used.saturating_sub(len);
        }
    }

    /// Takes up to `want` slots side by side of those that have been released in a lane.
    fn take_released(&self, lane: &mut Lane, want: u64) -> Option<(u64, u64)> {
        if lane.released == 0 || want == 0 {
            return None;
        }
        // From the hint on, and around to it again.
        let count = self.count.load(Ordering::Acquire).max(1);
        let (first, at) = lane.hint;
        for step in 0..=count {
            let index = (first + step) % count;
            let portion = self.portions.get(index).and_then(Slot::get);
            let dev = portion.map(|p| p.device().map(BlockDevice::dev));
            let Some(portion) = portion.filter(|_| dev == Some(lane.dev)) else {
                continue;
            };
            let start = if step == 0 { at } else { 0 };
            let rest = Span::new(start, portion.slots()).unwrap_or(Span::EMPTY);
            let Some(place) = portion.released.first_set(rest) else {
                continue;
            };
            let (_, run) = extent::locate(&portion.pieces, place, self.shift)?;
            let most = Span::of_len(place, want.min(run)).unwrap_or(Span::EMPTY);
            let end = portion.released.first_clear(most).unwrap_or(most.end());
            let taken = Span::new(place, end).unwrap_or(Span::EMPTY);
            portion.released.clear(taken);
            lane.hint = (index, end);
            lane.released = lane.released.saturating_sub(taken.len());
            lane.fill.used = lane.fill.used.saturating_add(taken.len());
            return Some((fill::slot(index, place)?, taken.len()));
        }
        None
    }

    /// Takes up to `want` slots of the emptiest lane.
    fn take_from(&self, lanes: &mut [Lane], want: u64) -> Option<(u64, u64)> {
        let index = fill::emptiest(lanes.iter().map(|l| l.fill))?;
        let lane = lanes.get_mut(index)?;
        let returned = lane.returned.total();
        let back = returned.saturating_add(lane.released);
        let is_last = lane.fill.used.saturating_add(back) >= lane.fill.total;
        let least = if is_last || lane.returned.is_crowded() {
            1
        } else {
            want
        };
        if let Some((slot, len)) = lane.returned.take(want, least) {
            let (portion, place) = fill::place(slot);
            let pieces = &self.portions.get(portion)?.get()?.pieces;
            let (_, run) = extent::locate(pieces, place, self.shift)?;
            let len = if run < len {
                lane.returned.put(slot.saturating_add(run), len - run);
                run
            } else {
                len
            };
            lane.fill.used = lane.fill.used.saturating_add(len);
            return Some((slot, len));
        }
        self.take_fresh(lane, want)
            .or_else(|| self.take_released(lane, want))
    }

    /// Takes up to `want` slots of a lane that have never been taken.
    fn take_fresh(&self, lane: &mut Lane, want: u64) -> Option<(u64, u64)> {
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

    /// The places on disks of its portions.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Arc<Place>> {
        self.portions().filter_map(Portion::place)
    }

    /// Marks its sectors as changed in the map of every origin they lie on: what images show
    /// there changes when a portion comes, and when it goes.
    pub(crate) fn mark_changed(&self) {
        self.portions().for_each(mark_changed);
    }
}

impl Shelf {
    /// How full it is.
    fn fill(&self) -> Fill {
        let mut sum = Fill::default();
        for lane in self.lanes.iter() {
            sum.used = sum.used.saturating_add(lane.fill.used);
            sum.total = sum.total.saturating_add(lane.fill.total);
        }
        sum
    }

    /// Whether a write that has found no room since `since` may wait for a portion (any longer).
    fn is_patient(&self, since: u64, now: u64) -> bool {
        let hold = u64::from(self.hold_ms) * MS;
        let comes = self.growth.may_grow() && SERVED.load(Ordering::Relaxed);
        let limit = if comes { hold.max(PORTION_NS) } else { hold };
        let waited = now.saturating_sub(since.max(self.added));
        waited < limit
    }
}

/// A portion that is about to be added.
pub(crate) struct New {
    portion: Portion,
    shift: u32,
}

impl New {
    /// Its device; None: it is memory.
    pub(crate) fn device(&self) -> Option<&BlockDevice> {
        self.portion.device()
    }

    /// Whether a file system gave it its blocks.
    pub(crate) fn is_file(&self) -> bool {
        self.portion.is_file()
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.portion.bytes
    }

    /// Where on a disk it is. None: it is memory.
    pub(crate) fn place(&self) -> Option<&Arc<Place>> {
        self.portion.place()
    }

    /// Leaves only those of its sectors in use that `clean` finds in a span of them: the first part
    /// that may be used. Where nothing is left: EBUSY, cause STORE_NEEDED. ENOMEM. Sleeps.
    pub(crate) fn retain(
        &mut self,
        clean: impl Fn(Span<Sectors>) -> Option<Span<Sectors>>,
    ) -> Result<(), Refused> {
        self.portion.retain(self.shift, clean)
    }
}

/// Marks a portion's sectors as changed.
fn mark_changed(portion: &Portion) {
    if let Some(place) = portion.place() {
        let spans = place.spans.iter();
        spans.for_each(|span| tracker::mark_on_disk(place.disk, *span));
    }
}

#[pinned_drop]
impl PinnedDrop for Store {
    fn drop(self: Pin<&mut Self>) {
        // In this order: a cut that comes in between either sees it, or is followed by the marks.
        self.places().for_each(|place| place.end());
        self.mark_changed();
    }
}
