// SPDX-License-Identifier: GPL-2.0

//! Images: read-only disks that show a version.
//!
//! A read is split by where its granules are. What is read from the origin is read in hope: when
//! it has come, and a version has got data of those granules meanwhile, it may be too new, and that
//! part is read again from where it is now. A write is let go only after its granules' bits are
//! set, so bits that are still clear prove the data old. Writers never wait for readers. In the same
//! way a part is read again of which something has been released meanwhile: it may have been
//! overwritten, on the origin or in the store.

use crate::cow;
use crate::cow::Found;
use crate::cow::Version;
use crate::kapi::abi::ModuleRef;
use crate::kapi::bdev::Dev;
use crate::kapi::bdev::NAME_LEN;
use crate::kapi::disk::Cache;
use crate::kapi::disk::Child;
use crate::kapi::disk::ChildDone;
use crate::kapi::disk::Disk;
use crate::kapi::disk::DiskOps;
use crate::kapi::disk::Parent;
use crate::kapi::noio;
use crate::kapi::queue::OwnedQueue;
use crate::kapi::time;
use crate::store::Site;
use crate::store::Store;
use crate::tracker::Tracker;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use core::sync::atomic::fence;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;
use kernel::new_work;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::workqueue::impl_has_work;
use kernel::workqueue::Work;
use kernel::workqueue::WorkItem;

/// What the disk of an image shows.
pub(crate) struct Shown {
    /// The origin.
    tracker: Arc<Tracker>,
    /// The version of it.
    version: Arc<Version>,
    /// Where reads are repeated.
    queue: Arc<OwnedQueue>,
    /// Whether it is about to go: nobody may open it any more.
    closing: AtomicBool,
    /// Reads on their way.
    reading: Arc<AtomicUsize>,
    /// Somebody may have it open after the last snapshot has gone.
    _module: ModuleRef,
}

/// An image: the disk, and what it shows.
pub(crate) struct Image {
    /// The disk; None while it is being removed.
    disk: Option<Disk<Shown>>,
    /// Its name.
    pub(crate) name: [u8; NAME_LEN],
    /// Its number.
    pub(crate) dev: Dev,
    /// See [`Image::dma_alignment`].
    dma_alignment: u32,
    /// What it shows.
    shown: Arc<Shown>,
}

impl Image {
    /// Makes the disk of a version. ENOMEM, and errors of adding a disk. May sleep.
    pub(crate) fn new(
        tracker: &Arc<Tracker>,
        version: &Arc<Version>,
        name: [u8; NAME_LEN],
        queue: Arc<OwnedQueue>,
    ) -> Result<Self> {
        let shown = Arc::new(
            Shown {
                tracker: tracker.clone(),
                version: version.clone(),
                queue,
                closing: AtomicBool::new(false),
                reading: Arc::new(AtomicUsize::new(0), GFP_KERNEL)?,
                _module: ModuleRef::get()?,
            },
            GFP_KERNEL,
        )?;
        let store = version.store().map_or(0, |s| s.dma_alignment());
        let dma_alignment = store.max(tracker.device.dma_alignment());
        let disk = Disk::add(
            shown.clone(),
            &name,
            version.sectors(),
            tracker.device.logical_block(),
            tracker.device.physical_block(),
            dma_alignment,
        )?;
        Ok(Self {
            dma_alignment,
            dev: disk.dev()?,
            disk: Some(disk),
            name,
            shown,
        })
    }

    /// The version that it shows.
    pub(crate) fn version(&self) -> &Arc<Version> {
        &self.shown.version
    }

    /// Its origin.
    pub(crate) fn tracker(&self) -> &Arc<Tracker> {
        &self.shown.tracker
    }

    /// How memory for reads must be aligned, so that they can be passed on: a mask, of bytes.
    pub(crate) fn dma_alignment(&self) -> u32 {
        self.dma_alignment
    }

    /// How many have it open.
    pub(crate) fn openers(&self) -> u32 {
        self.disk.as_ref().map_or(0, Disk::openers)
    }

    /// Whether a read is on its way.
    pub(crate) fn is_being_read(&self) -> bool {
        self.shown.reading.load(Ordering::Acquire) > 0
    }

    /// What releases parts of it; keeps its version from going. None: it goes already.
    pub(crate) fn releaser(&self) -> Option<Releaser> {
        let cache = self.disk.as_ref()?.cache();
        self.shown.reading.fetch_add(1, Ordering::AcqRel);
        Some(Releaser {
            cache,
            shown: self.shown.clone(),
            _reading: Reading(self.shown.reading.clone()),
        })
    }

    /// Lets nobody read it any more: who has it open gets EIO. Waits for reads that are on their way;
    /// sleeps. Returns it where somebody has it open: were it removed now, they would find it at its end,
    /// and a copy of it that is under way would seem to be complete.
    pub(crate) fn retire(self) -> Option<Self> {
        self.close(true);
        self.shown.version.close();
        // A read counts itself before it looks whether the version is live.
        fence(Ordering::SeqCst);
        self.wait_for_reads();
        (self.openers() > 0).then_some(self)
    }

    /// Waits for reads that are on their way. Sleeps.
    fn wait_for_reads(&self) {
        while self.is_being_read() {
            time::sleep_us(200);
        }
    }

    /// Lets nobody open it any more; takes that back.
    pub(crate) fn close(&self, closing: bool) {
        self.shown.closing.store(closing, Ordering::SeqCst);
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        self.close(true);
        // From here on nobody can start a read.
        self.disk = None;
        self.wait_for_reads();
    }
}

/// Releases parts of an image, whose version does not go as long as this is there.
pub(crate) struct Releaser {
    /// What has been read of it.
    cache: Cache,
    /// What it shows.
    shown: Arc<Shown>,
    /// Counted as if it were a read; dropped last.
    _reading: Reading,
}

impl Releaser {
    /// Sectors of the image.
    pub(crate) fn sectors(&self) -> u64 {
        self.shown.version.sectors()
    }

    /// See [`cow::release`]; what is read from then on is zeros.
    pub(crate) fn release(&self, sectors: Span<Sectors>) -> Result {
        let result = cow::release(&self.shown.tracker, &self.shown.version, sectors);
        self.cache.forget(sectors.start(), sectors.len());
        result
    }
}

/// Counts a read for as long as it lives.
struct Reading(Arc<AtomicUsize>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// A read on its way. When the last of its pieces is done, its fields are dropped in their order:
/// the bio ends, and only then is the read not counted any more.
struct Read {
    /// The bio.
    parent: Parent,
    /// What is read. Never the last reference: who counts us down to zero holds one.
    shown: Arc<Shown>,
    /// Counts it.
    _reading: Reading,
}

/// A piece of a read that is on its way.
#[pin_data]
struct Piece {
    /// The store that it is read from; None: the origin. Dropped before the read is not counted any
    /// more.
    store: Option<Arc<Store>>,
    /// Whether it is over, and only to be dropped where one may sleep.
    is_over: AtomicBool,
    /// The read.
    read: Arc<Read>,
    /// The granules of the image that it touches.
    granules: Span<Granules>,
    /// The sectors of the image that it is.
    sectors: Span<Sectors>,
    /// Reads it again.
    #[pin]
    again: Work<Piece>,
}

impl_has_work! {
    impl HasWork<Piece> for Piece { self.again }
}

impl WorkItem for Piece {
    type Pointer = Pin<KBox<Piece>>;

    fn run(this: Pin<KBox<Piece>>) {
        let _noio = noio::Scope::enter();
        let (read, sectors) = (this.read.clone(), this.sectors);
        let is_over = this.is_over.load(Ordering::Relaxed);
        drop(this);
        if !is_over {
            resolve(&read, sectors);
        }
    }
}

impl DiskOps for Shown {
    fn open(this: ArcBorrow<'_, Self>) -> Result {
        if this.closing.load(Ordering::SeqCst) {
            return Err(ENODEV);
        }
        Ok(())
    }

    fn closed(this: ArcBorrow<'_, Self>) {
        if this.closing.load(Ordering::SeqCst) {
            this.tracker.has_remains();
        }
    }

    fn read(this: ArcBorrow<'_, Self>, parent: Parent) {
        // What I/O were started for memory would wait on this task's own list of bios.
        let _noio = noio::Scope::enter();
        if !this.version.is_live() {
            // Not counted: who waits for reads shall not wait for more and more of these.
            return parent.fail();
        }
        this.reading.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let reading = Reading(this.reading.clone());
        let sectors = Span::of_len(parent.sector(), parent.sectors()).unwrap_or(Span::EMPTY);
        if parent.is_discard() {
            discard(&this, &parent, sectors);
            drop(parent);
            drop(reading);
            return;
        }
        let inside = sectors.end() <= this.version.sectors();
        if !inside || !this.version.is_live() {
            parent.fail();
            drop(parent);
            drop(reading);
            return;
        }
        let read = Read {
            parent,
            shown: this.into(),
            _reading: reading,
        };
        // Where there is no memory, `read` is dropped: without an error recorded it would end
        // well, with nothing read.
        let slot = kernel::sync::UniqueArc::<Read>::new_uninit(GFP_KERNEL);
        match slot {
            Ok(slot) => resolve(&slot.write(read).into(), sectors),
            Err(_) => read.parent.fail(),
        }
    }
}

/// Sees to a discard: releases what it is of.
fn discard(shown: &Shown, parent: &Parent, sectors: Span<Sectors>) {
    let inside = sectors.end() <= shown.version.sectors();
    if !inside || cow::release(&shown.tracker, &shown.version, sectors).is_err() {
        parent.fail();
    }
}

/// Reads sectors of an image from where they are. Failures are recorded in the read.
fn resolve(read: &Arc<Read>, sectors: Span<Sectors>) {
    let version = &*read.shown.version;
    let mut rest = sectors;
    while !rest.is_empty() {
        let granules = rest.outward::<Granules>(version.shift());
        // Made before the chain is locked: nobody who copies waits for our memory.
        let Ok(mut child) = child(read, rest) else {
            return read.parent.fail();
        };
        let chain = read.shown.tracker.lock_chain();
        // (It lets writes pass that it would have needed copied, once it has failed: what is found then may
        // be newer.)
        if !version.is_live() {
            return read.parent.fail();
        }
        let (found, upto) = chain.locate(version, granules);
        // Slots that follow each other need not lie side by side on the device.
        let upto = match &found {
            Found::Stored(store, slot) => match store.site(*slot) {
                Some(Site::Device(.., run) | Site::Memory(.., run)) => {
                    upto.min(granules.start().saturating_add(run))
                }
                None => return read.parent.fail(),
            },
            _ => upto,
        };
        let some = Span::new(granules.start(), upto).unwrap_or(granules);
        let (part, others) = rest.split_at(version.sectors_of(some).end());
        if part.is_empty() {
            read.parent.fail();
            return;
        }
        child.shorten(part.len());
        let skipped = part.start() - version.sectors_of(some).start();
        // What is in memory stays there only while the chain is locked.
        if let Found::Memory(run, page) = &found {
            let from = (*page << version.shift()).saturating_add(skipped);
            let bytes = (part.len() as usize) << SECTOR_SHIFT;
            run.fill(&mut child, 0, (from as usize) << SECTOR_SHIFT, bytes);
        }
        drop(chain);
        match found {
            Found::Memory(..) => (),
            Found::Zeros => child.zero(),
            Found::Unreadable => read.parent.fail(),
            Found::Origin => fetch(read, child, part, None, part.start()),
            Found::Stored(store, slot) => match store.site(slot) {
                Some(Site::Memory(pages, at, _)) => {
                    let at = at.saturating_add(skipped << SECTOR_SHIFT);
                    pages.fill(&mut child, at, (part.len() as usize) << SECTOR_SHIFT);
                    if version.has_released(part.outward(version.shift())) {
                        // There may have been something else by then.
                        continue;
                    }
                }
                Some(Site::Device(_, sector, _)) => {
                    let from = Some((store.clone(), slot));
                    fetch(read, child, part, from, sector.saturating_add(skipped));
                }
                None => read.parent.fail(),
            },
        }
        rest = others;
    }
}

/// A child for some sectors of a read.
fn child(read: &Read, part: Span<Sectors>) -> Result<Child> {
    Child::of(
        &read.parent,
        part.start() - read.parent.sector(),
        part.len(),
    )
}

/// Starts to read a part from `sector` of the device of a store's slot, or of the origin.
fn fetch(
    read: &Arc<Read>,
    child: Child,
    part: Span<Sectors>,
    from: Option<(Arc<Store>, u64)>,
    sector: u64,
) {
    let store = from.as_ref().map(|(store, _)| store.clone());
    let piece = KBox::pin_init(
        pin_init!(Piece {
            read: read.clone(),
            granules: part.outward(read.shown.version.shift()),
            sectors: part,
            store,
            is_over: AtomicBool::new(false),
            again <- new_work!("bdsnap::read_again"),
        }),
        GFP_KERNEL,
    );
    let Ok(piece) = piece else {
        read.parent.fail();
        return;
    };
    let device = match from.as_ref().map(|(store, slot)| store.site(*slot)) {
        None => &read.shown.tracker.device,
        Some(Some(Site::Device(device, ..))) => device,
        Some(_) => return read.parent.fail(),
    };
    child.submit(device, sector, piece);
}

impl ChildDone for Piece {
    fn child_done(mut this: Pin<KBox<Self>>, status: Result) {
        let shown = &this.read.shown;
        let is_from_origin = this.store.is_none();
        let moved = || {
            let guard = rcu::read_lock();
            let versions = shown.tracker.versions.read(&guard);
            versions.is_none_or(|v| v.superseded(&shown.version, this.granules))
        };
        // In this order: a copy may be released in between, and then only the second look tells.
        if is_from_origin && moved() || shown.version.has_released(this.granules) {
            // Even an error counts only if the data should still be there.
            let queue = shown.queue.clone();
            queue.queue().enqueue::<_, 0>(this);
            return;
        }
        if is_from_origin {
            // (Where it has another medium, the version fails now.)
            shown.tracker.has_medium();
        }
        // One that has failed, or is being deleted, protects nothing any more.
        if !this.read.shown.version.is_live() || status.is_err() {
            this.read.parent.fail();
        }
        let store = this.as_mut().project().store.take();
        if let Some(last) = store.and_then(Arc::into_unique_or_drop) {
            // Nobody else holds the store any more, which can't be dropped here.
            *this.as_mut().project().store = Some(last.into());
            this.is_over.store(true, Ordering::Relaxed);
            let queue = this.read.shown.queue.clone();
            queue.queue().enqueue::<_, 0>(this);
        }
    }
}
