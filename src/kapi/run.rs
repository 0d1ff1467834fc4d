// SPDX-License-Identifier: GPL-2.0

//! Runs: batches of pages that are read from one device and written to another, with a bio and
//! everything else they need allocated beforehand.
//!
//! Source: `bio_init()`, `__bio_add_page()`.

use super::bdev::BlockDevice;
use super::bdev::DiskId;
use super::bio::Submitted;
use super::disk::Child;
use super::hook::submit_own;
use crate::ffi;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::page::Page;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Who is told that a run's I/O has ended.
pub(crate) trait RunOwner: Send + Sync + Sized + 'static {
    /// The read or write that was started last has ended: see [`Run::status`]. Any context.
    fn run_done(owner: Arc<Self>, run: Arc<Run<Self>>);
}

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the device into the pages.
    Read,
    /// From the pages to the device.
    Write,
}

/// What a run is to do.
#[derive(Clone, Copy)]
pub(crate) struct Io {
    /// Which way.
    pub(crate) direction: Direction,
    /// First sector on the device.
    pub(crate) sector: u64,
    /// First page of the run.
    pub(crate) page: usize,
    /// How much: a multiple of the device's logical block size.
    pub(crate) bytes: usize,
}

/// Some pages, and a bio for them. Its pages hold data from the end of a read until the next read.
///
/// # Invariants
///
/// While `busy`, `bio` and `vecs` belong to the block layer, which holds one reference to the run;
/// else they are unused.
pub(crate) struct Run<T: RunOwner> {
    /// The pages.
    pages: KVec<Page>,
    /// The bio.
    bio: UnsafeCell<bindings::bio>,
    /// Its vector: as many elements as there are pages.
    vecs: UnsafeCell<KVec<bindings::bio_vec>>,
    /// Whether a bio is on its way.
    busy: AtomicBool,
    /// To this disk it was submitted.
    disk: AtomicPtr<bindings::gendisk>,
    /// Status of the last one: 0 or a `BLK_STS_*`.
    status: AtomicU8,
    /// Who waits for it, from `Arc::into_raw`, while busy.
    owner: AtomicPtr<T>,
    /// Link of [`RunStack`], from `Arc::into_raw`.
    next: AtomicPtr<Run<T>>,
    /// Its place in the owner's table.
    index: usize,
}

// SAFETY: What isn't atomic is only touched by whoever holds `busy` (type invariant).
unsafe impl<T: RunOwner> Send for Run<T> {}
// SAFETY: As above.
unsafe impl<T: RunOwner> Sync for Run<T> {}

impl<T: RunOwner> Run<T> {
    /// A run of `pages` pages. ENOMEM. May sleep.
    pub(crate) fn new(pages: usize, index: usize) -> Result<Arc<Self>> {
        let mut list = KVec::with_capacity(pages, GFP_KERNEL)?;
        let mut vecs = KVec::with_capacity(pages, GFP_KERNEL)?;
        for _ in 0..pages {
            list.push(Page::alloc_page(GFP_KERNEL)?, GFP_KERNEL)?;
            vecs.push(bindings::bio_vec::default(), GFP_KERNEL)?;
        }
        // INVARIANT: Not busy, unused.
        let this = Self {
            pages: list,
            bio: UnsafeCell::new(bindings::bio::default()),
            vecs: UnsafeCell::new(vecs),
            busy: AtomicBool::new(false),
            disk: AtomicPtr::new(core::ptr::null_mut()),
            status: AtomicU8::new(0),
            owner: AtomicPtr::new(core::ptr::null_mut()),
            next: AtomicPtr::new(core::ptr::null_mut()),
            index,
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// Its place in the owner's table.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// The data of its page `n`.
    pub(super) fn page(&self, n: usize) -> Option<*const c_void> {
        let page = self.pages.get(n)?;
        // SAFETY: The page is ours and mapped (x86-64 has no high memory).
        Some(unsafe { ffi::bdsnap_page_address(page.as_ptr()) }.cast_const())
    }

    /// Which of the first 64 pages that hold `bytes` bytes of data are all zeros there: one bit each.
    pub(crate) fn zeros(&self, bytes: usize) -> u64 {
        let mut zeros = 0;
        for (n, page) in self.pages.iter().take(u64::BITS as usize).enumerate() {
            let len = bytes.saturating_sub(n * PAGE_SIZE).min(PAGE_SIZE);
            // SAFETY: The page is ours and mapped (x86-64 has no high memory), and has so many bytes.
            let is_zero =
                unsafe { ffi::bdsnap_is_zero(ffi::bdsnap_page_address(page.as_ptr()), len) };
            zeros |= u64::from(len > 0 && is_zero) << n;
        }
        zeros
    }

    /// Ends an I/O well that was none: its data has been copied.
    pub(crate) fn copied(this: Arc<Self>, owner: Arc<T>) {
        this.status.store(0, Ordering::Release);
        T::run_done(owner, this);
    }

    /// Whether the last I/O went well.
    pub(crate) fn status(&self) -> Result {
        match self.status.load(Ordering::Acquire) {
            0 => Ok(()),
            _ => Err(EIO),
        }
    }

    /// Starts reading or writing. The owner is told the end; it must keep `dev` alive until then.
    /// EINVAL: more than the pages hold, or nothing; EBUSY: I/O is on its way. May sleep.
    pub(crate) fn start(this: Arc<Self>, owner: Arc<T>, dev: &BlockDevice, io: Io) -> Result {
        let room = this
            .pages
            .len()
            .saturating_sub(io.page)
            .saturating_mul(PAGE_SIZE);
        if io.bytes == 0 || io.bytes > room {
            return Err(EINVAL);
        }
        let op = match io.direction {
            Direction::Read => bindings::req_op_REQ_OP_READ | ffi::BDSNAP_REQ_SYNC,
            Direction::Write => bindings::req_op_REQ_OP_WRITE,
        };
        if this.busy.swap(true, Ordering::AcqRel) {
            return Err(EBUSY);
        }
        this.owner
            .store(Arc::into_raw(owner).cast_mut(), Ordering::Relaxed);
        let bio = this.bio.get();
        // SAFETY: We have just become `busy`, so bio and vector are ours (type invariant). The
        // vector has an element for each page, and the pages live as long as the run, of which
        // the bio gets a reference. `dev` is valid now, and whoever starts I/O keeps it so.
        unsafe {
            let vecs = &mut *this.vecs.get();
            this.disk.store((*dev.as_ptr()).bd_disk, Ordering::Relaxed);
            bindings::bio_init(bio, dev.as_ptr(), vecs.as_mut_ptr(), vecs.len() as u16, op);
            (*bio).bi_iter.bi_sector = io.sector;
            let mut left = io.bytes;
            for page in this.pages.iter().skip(io.page) {
                let len = left.min(PAGE_SIZE);
                if len == 0 {
                    break;
                }
                bindings::__bio_add_page(bio, page.as_ptr(), len as u32, 0);
                left -= len;
            }
            (*bio).bi_end_io = Some(run_end::<T>);
            (*bio).bi_private = Arc::into_raw(this).cast_mut().cast();
            submit_own(bio);
        }
        Ok(())
    }

    /// Copies `bytes` bytes from byte `from` of the run's data into a child's data, from its
    /// byte `skip` on. The caller knows that the data is there and stays (a granule "in memory").
    pub(crate) fn fill(&self, child: &mut Child, skip: u32, from: usize, bytes: usize) {
        let mut skip = skip;
        let mut at = from;
        let end = from.saturating_add(bytes);
        while at < end {
            let Some(page) = self.pages.get(at / PAGE_SIZE) else {
                return;
            };
            let offset = at % PAGE_SIZE;
            let len = (PAGE_SIZE - offset).min(end - at);
            // SAFETY: The page is ours and mapped (x86-64 has no high memory); offset and length
            // stay inside it, and the child's bio is owned by the child.
            unsafe {
                let src = ffi::bdsnap_page_address(page.as_ptr())
                    .cast::<u8>()
                    .add(offset);
                ffi::bdsnap_bio_fill(child.as_ptr(), skip, src.cast(), len as u32);
            }
            at += len;
            skip = skip.saturating_add(len as u32);
        }
    }
}

/// Whether this is the bio of a run of such an owner.
#[inline]
pub(super) fn is_run<T: RunOwner>(bio: &Submitted<'_>) -> bool {
    // SAFETY: The bio is valid while it is being submitted.
    let end_io = unsafe { (*bio.as_ptr()).bi_end_io };
    end_io.is_some_and(|f| f as usize == run_end::<T> as *const () as usize)
}

/// Whether this is the bio of a run of such an owner, on the disk that it was submitted to: on another
/// one, which a driver has sent it on to, it is a write like others.
#[inline]
pub(super) fn is_own<T: RunOwner>(bio: &Submitted<'_>) -> bool {
    if !is_run::<T>(bio) {
        return false;
    }
    // SAFETY: A bio that ends with this function refers to its run, which lives until it has ended.
    let run = unsafe { &*(*bio.as_ptr()).bi_private.cast::<Run<T>>() };
    bio.disk() == DiskId::of_disk(run.disk.load(Ordering::Relaxed))
}

/// The end of a run's bio. Any context.
///
/// # Safety
///
/// Called by the block layer with the bio of a busy run.
unsafe extern "C" fn run_end<T: RunOwner>(bio: *mut bindings::bio) {
    // SAFETY: `bi_private` is the reference that `start()` gave to the bio; the owner too.
    let (run, owner) = unsafe {
        let run = Arc::from_raw((*bio).bi_private.cast::<Run<T>>());
        let owner = run.owner.swap(core::ptr::null_mut(), Ordering::Relaxed);
        run.status.store((*bio).bi_status, Ordering::Release);
        bindings::bio_uninit(bio);
        (run, Arc::from_raw(owner))
    };
    // INVARIANT: The bio has ended: nobody uses bio and vector now.
    run.busy.store(false, Ordering::Release);
    T::run_done(owner, run);
}

/// Runs that have ended: pushed in any context, taken in one go.
///
/// # Invariants
///
/// `head` is null or a run from `Arc::into_raw`, linked to more of them by `next`.
pub(crate) struct RunStack<T: RunOwner> {
    head: AtomicPtr<Run<T>>,
}

impl<T: RunOwner> RunStack<T> {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            head: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// Adds one. Any context. A run is on one stack at most.
    pub(crate) fn push(&self, run: Arc<Run<T>>) {
        let raw = Arc::into_raw(run).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: `raw` is valid, we own a reference.
            unsafe { (*raw).next.store(head, Ordering::Relaxed) };
            match self
                .head
                .compare_exchange_weak(head, raw, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes all, in the order in which they were pushed.
    pub(crate) fn take_all(&self) -> TakenRuns<T> {
        let mut last = self.head.swap(core::ptr::null_mut(), Ordering::AcqRel);
        let mut first = core::ptr::null_mut();
        while let Some(run) = NonNull::new(last) {
            // SAFETY: By the type invariant `run` is from `Arc::into_raw`, and its reference is ours.
            last = unsafe { run.as_ref().next.swap(first, Ordering::Relaxed) };
            first = run.as_ptr();
        }
        // INVARIANT: What was on the stack, linked the other way round.
        TakenRuns(first)
    }
}

impl<T: RunOwner> Drop for RunStack<T> {
    fn drop(&mut self) {
        for run in self.take_all() {
            drop(run);
        }
    }
}

/// Iterates over what was on a [`RunStack`].
///
/// # Invariants
///
/// As [`RunStack`].
pub(crate) struct TakenRuns<T: RunOwner>(*mut Run<T>);

impl<T: RunOwner> Iterator for TakenRuns<T> {
    type Item = Arc<Run<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        let raw = NonNull::new(self.0)?;
        // SAFETY: By the type invariant `raw` is from `Arc::into_raw`, and its reference is ours.
        let run = unsafe { Arc::from_raw(raw.as_ptr()) };
        self.0 = run.next.swap(core::ptr::null_mut(), Ordering::Relaxed);
        Some(run)
    }
}

impl<T: RunOwner> Drop for TakenRuns<T> {
    fn drop(&mut self) {
        for run in self.by_ref() {
            drop(run);
        }
    }
}

/// While it lives, bios of this task are collected, to be joined before they go to their devices
/// (`blk_start_plug()`).
pub(crate) fn plugged<R>(f: impl FnOnce() -> R) -> R {
    let mut plug = bindings::blk_plug::default();
    // SAFETY: The plug lives on this stack until it is finished below; `f` can't unwind.
    unsafe { bindings::blk_start_plug(&mut plug) };
    let result = f();
    // SAFETY: As above.
    unsafe { bindings::blk_finish_plug(&mut plug) };
    result
}
