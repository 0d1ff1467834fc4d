// SPDX-License-Identifier: GPL-2.0

//! The gate of an origin and its count of writes in flight.
//!
//! Each write is counted from the moment it passes the gate until it *completes*: its completion
//! is wrapped. The order that makes a closed and drained gate mean "no write in flight":
//! a writer counts itself, full barrier, looks at the gate; the closer closes the gate, full
//! barrier, sums the counts.

use super::bio::Parked;
use super::bio::Submitted;
use crate::ffi;
use bdsnap_logic::kind::Change;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::ptr::NonNull;
use core::sync::atomic::compiler_fence;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicIsize;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Wraps in reserve for each origin: so many writes can be in flight when memory is out.
const RESERVE: c_int = 256;

/// What stands in a bio's `bi_private` while it is in flight.
///
/// # Invariants
///
/// `inflight` is valid as long as the wrap exists: the count that the wrap stands for keeps
/// [`Inflight`] from being dropped.
struct Wrap {
    /// The bio.
    bio: *mut bindings::bio,
    /// Its own completion.
    end_io: bindings::bio_end_io_t,
    /// Its own `bi_private`.
    private: *mut c_void,
    /// Where it is counted.
    inflight: *const Inflight,
    /// Link of [`HeldList`].
    next: *mut Wrap,
    /// The origin's sectors that it changes.
    span: Span<Sectors>,
    /// How it changes them.
    change: Change,
    /// How far its old data has been seen to.
    cursor: u64,
    /// Whether it is from the pool, and not straight from the cache.
    pooled: bool,
}

/// A counter on a cache line of its own.
#[repr(align(64))]
struct Count(AtomicIsize);

/// Who is told how counted writes end.
pub(crate) trait Watch: Send + Sync {
    /// A write to `span` of the origin has ended, well (`ok`) or not, and is still counted: when
    /// nothing is in flight, this was called for all. Any context; must not sleep.
    fn ended(&self, change: Change, span: Span<Sectors>, ok: bool);
}

/// The gate and the count. Pinned by use: it must stay where it is while writes are in flight,
/// which is why it hands out boxes only.
pub(crate) struct Inflight {
    /// One count a CPU; only the sum means anything.
    cpus: KVec<Count>,
    /// Whether the gate is closed.
    closed: AtomicBool,
    /// Where wraps come from.
    cache: NonNull<bindings::kmem_cache>,
    /// The same with a reserve, for when there are none.
    pool: NonNull<bindings::mempool>,
    /// Is told of each end.
    watch: Arc<dyn Watch>,
}

// SAFETY: Counters, a flag and a mempool, all made for concurrent use.
unsafe impl Send for Inflight {}
// SAFETY: As above.
unsafe impl Sync for Inflight {}

/// What the gate says to a write.
pub(crate) enum Admission<'a> {
    /// It is closed.
    Closed,
    /// It is open, but there is no memory to count the write.
    Starved,
    /// It is open, and the write is counted.
    Admitted(Ticket<'a>),
}

impl Inflight {
    /// An open gate, nothing in flight. ENOMEM. May sleep.
    pub(crate) fn new(watch: Arc<dyn Watch>) -> Result<KBox<Self>> {
        let cpus = kernel::cpu::nr_cpu_ids() as usize;
        let mut counts = KVec::with_capacity(cpus, GFP_KERNEL)?;
        for _ in 0..cpus {
            counts.push(Count(AtomicIsize::new(0)), GFP_KERNEL)?;
        }
        let cache = NonNull::new(WRAPS.load(Ordering::Acquire)).ok_or(ENODEV)?;
        // SAFETY: The cache is valid while the module is loaded (see `Support`).
        let pool = unsafe { ffi::bdsnap_slab_pool(RESERVE, cache.as_ptr()) };
        let pool = NonNull::new(pool).ok_or(ENOMEM)?;
        let this = Self {
            cpus: counts,
            closed: AtomicBool::new(false),
            cache,
            pool,
            watch,
        };
        Ok(KBox::new(this, GFP_KERNEL)?)
    }

    /// The counter of this CPU (any would do).
    #[inline]
    fn count(&self) -> Option<&AtomicIsize> {
        // SAFETY: Reads a per-CPU number.
        let cpu = unsafe { ffi::bdsnap_cpu() } as usize;
        self.cpus
            .get(cpu)
            .or_else(|| self.cpus.first())
            .map(|c| &c.0)
    }

    /// One more or one less, with a full barrier.
    #[inline]
    fn add(&self, n: isize) {
        if let Some(count) = self.count() {
            count.fetch_add(n, Ordering::SeqCst);
        }
    }

    /// Asks the gate. Any context that may take memory with GFP_NOWAIT.
    #[inline]
    pub(crate) fn admit(&self) -> Admission<'_> {
        let Some(count) = self.count() else {
            return Admission::Starved;
        };
        count.fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            // On the same counter, whatever CPU this is now: see `is_drained()`.
            count.fetch_sub(1, Ordering::SeqCst);
            return Admission::Closed;
        }
        match self.take_wrap() {
            Some((wrap, pooled)) => Admission::Admitted(Ticket {
                wrap,
                pooled,
                inflight: self,
            }),
            None => {
                self.add(-1);
                Admission::Starved
            }
        }
    }

    /// Memory for a wrap, and whether it is from the pool. That is asked only when the cache has none:
    /// the way through it costs more.
    #[inline]
    fn take_wrap(&self) -> Option<(NonNull<Wrap>, bool)> {
        let flags = ffi::BDSNAP_GFP_NOWAIT;
        // As a mempool asks: the last pages of the system are for those who have no reserve.
        let modest = ffi::BDSNAP_GFP_MODEST;
        // SAFETY: The cache is valid as long as `self`.
        let wrap = unsafe { bindings::kmem_cache_alloc_noprof(self.cache.as_ptr(), modest) };
        if let Some(wrap) = NonNull::new(wrap) {
            return Some((wrap.cast(), false));
        }
        // SAFETY: The pool is valid as long as `self`.
        let wrap = unsafe { bindings::mempool_alloc_noprof(self.pool.as_ptr(), flags) };
        NonNull::new(wrap).map(|wrap| (wrap.cast(), true))
    }

    /// Gives it back.
    ///
    /// # Safety
    ///
    /// From [`Inflight::take_wrap`] of the same object, with its answer, and not used any more.
    #[inline]
    unsafe fn give_wrap(&self, wrap: *mut Wrap, pooled: bool) {
        // SAFETY: The caller's promise; cache and pool are valid as long as `self`.
        unsafe {
            if pooled {
                bindings::mempool_free(wrap.cast(), self.pool.as_ptr());
            } else {
                bindings::kmem_cache_free(self.cache.as_ptr(), wrap.cast());
            }
        }
    }

    /// Whether a wrap could be had at this moment.
    pub(crate) fn has_memory(&self) -> bool {
        let Some((wrap, pooled)) = self.take_wrap() else {
            return false;
        };
        // SAFETY: It was taken just now.
        unsafe { self.give_wrap(wrap.as_ptr(), pooled) };
        true
    }

    /// Whether this bio is counted here already: it comes back to the device on its way through a
    /// driver that submits the same bio again.
    #[inline]
    pub(crate) fn holds(&self, bio: &Submitted<'_>) -> bool {
        // SAFETY: The bio is valid while it is being submitted.
        let (mut end_io, mut private) =
            unsafe { ((*bio.as_ptr()).bi_end_io, (*bio.as_ptr()).bi_private) };
        while is_wrapped(end_io) {
            // SAFETY: Our completion stands there only together with a valid wrap.
            let wrap = unsafe { &*private.cast::<Wrap>() };
            if core::ptr::eq(wrap.inflight, self) {
                return true;
            }
            (end_io, private) = (wrap.end_io, wrap.private);
        }
        false
    }

    /// Closes the gate: no write that comes after this is admitted.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Opens it.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether no counted write is in flight. Final only once the gate is closed, or no writer
    /// can find the gate any more.
    ///
    /// A write that was admitted has its one seen by everybody who sees the gate closed, and its
    /// minus one at some later time, wherever. A writer that meets the closed gate adds and takes
    /// back on one and the same counter, so that it can only ever add to the sum and never hide
    /// somebody else's one.
    pub(crate) fn is_drained(&self) -> bool {
        let sum = |sum: isize, count: &Count| sum.wrapping_add(count.0.load(Ordering::SeqCst));
        self.cpus.iter().fold(0, sum) == 0
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        // What is wrapped refers to this object.
        while !self.is_drained() {
            super::time::sleep_us(1000);
        }
        // A completion lowers the count as the last thing it does with this object, under RCU
        // (see `end_io()`).
        kernel::sync::rcu::synchronize_rcu();
        // SAFETY: The pool is ours, and all its elements are back.
        unsafe { bindings::mempool_destroy(self.pool.as_ptr()) };
    }
}

/// Whether this completion is ours.
#[inline]
fn is_wrapped(end_io: bindings::bio_end_io_t) -> bool {
    end_io.is_some_and(|f| f as usize == end_io_wrapped as *const () as usize)
}

/// A write that the gate has admitted and counted: it must pass or be held. Dropped, it is not
/// counted any more.
///
/// # Invariants
///
/// `wrap` and `pooled` are from [`Inflight::take_wrap`] of `inflight`, which counts this write; the memory
/// is unused.
pub(crate) struct Ticket<'a> {
    wrap: NonNull<Wrap>,
    pooled: bool,
    inflight: &'a Inflight,
}

impl Ticket<'_> {
    /// Wraps the bio's completion; the wrap now stands for the count.
    #[inline]
    fn wrap(self, bio: *mut bindings::bio, change: Change, span: Span<Sectors>) -> NonNull<Wrap> {
        let wrap = self.wrap;
        // SAFETY: The bio is being submitted, so its fields are ours to change; the memory of the
        // wrap is unused, and large and aligned enough since its cache was made for `Wrap`.
        // INVARIANT: The ticket's count goes over to the wrap.
        unsafe {
            wrap.as_ptr().write(Wrap {
                bio,
                end_io: (*bio).bi_end_io,
                private: (*bio).bi_private,
                inflight: self.inflight,
                next: core::ptr::null_mut(),
                span,
                change,
                cursor: 0,
                pooled: self.pooled,
            });
            // Polled bios may keep other things in `bi_private`.
            (*bio).bi_opf &= !ffi::BDSNAP_REQ_POLLED;
            (*bio).bi_end_io = Some(end_io_wrapped);
            (*bio).bi_private = wrap.as_ptr().cast();
        }
        core::mem::forget(self);
        wrap
    }

    /// Lets the write go on; it is counted until it completes.
    #[inline]
    pub(crate) fn pass(self, bio: &mut Submitted<'_>, span: Span<Sectors>) {
        let change = bio.change();
        self.wrap(bio.as_ptr(), change, span);
    }

    /// Holds the write back; it is counted, held or not, until it completes.
    pub(crate) fn hold(self, bio: &mut Submitted<'_>, span: Span<Sectors>) -> Option<Held> {
        let change = bio.change();
        let parked = bio.take()?;
        // INVARIANT: The wrap of a bio that we took.
        Some(Held(self.wrap(parked.into_raw().as_ptr(), change, span)))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        // SAFETY: The type invariant.
        unsafe { self.inflight.give_wrap(self.wrap.as_ptr(), self.pooled) };
        self.inflight.add(-1);
    }
}

/// A counted write that is held back until its old data has been saved.
///
/// # Invariants
///
/// A valid wrap whose bio this owns.
#[must_use = "a held write that isn't let go hangs its writer"]
pub(crate) struct Held(NonNull<Wrap>);

// SAFETY: A bio can be submitted from any task.
unsafe impl Send for Held {}

impl Held {
    /// The origin's sectors that it changes.
    pub(crate) fn span(&self) -> Span<Sectors> {
        // SAFETY: Valid by the type invariant.
        unsafe { self.0.as_ref().span }
    }

    /// Whether a file system marked it as its metadata (`REQ_META`, `REQ_PRIO`).
    pub(crate) fn is_urgent(&self) -> bool {
        // SAFETY: Valid by the type invariant, and so is the bio, which is ours.
        let opf = unsafe { (*self.0.as_ref().bio).bi_opf };
        opf & ffi::BDSNAP_REQ_META != 0
    }

    /// How far its old data has been seen to, in whatever unit its holder counts.
    pub(crate) fn cursor(&self) -> u64 {
        // SAFETY: Valid by the type invariant.
        unsafe { self.0.as_ref().cursor }
    }

    /// Sets the cursor.
    pub(crate) fn set_cursor(&mut self, cursor: u64) {
        // SAFETY: Valid by the type invariant, and `&mut self` is exclusive.
        unsafe { self.0.as_mut().cursor = cursor };
    }

    /// Makes it an ordinary parked bio, ready to be submitted again: still counted, so it passes
    /// this gate untouched.
    pub(crate) fn release(self) -> Parked {
        // SAFETY: By the type invariant we own the bio; the wrap stays until it completes.
        unsafe { Parked::from_raw(NonNull::new_unchecked(self.0.as_ref().bio)) }
    }
}

/// Held writes, first in, first out: needs no memory.
///
/// # Invariants
///
/// `head` is null or the first of a list of owned wraps that ends at `tail`.
pub(crate) struct HeldList {
    head: *mut Wrap,
    tail: *mut Wrap,
}

// SAFETY: It owns its elements, which are `Send`.
unsafe impl Send for HeldList {}

impl HeldList {
    /// None held.
    pub(crate) const fn new() -> Self {
        // INVARIANT: Empty.
        Self {
            head: core::ptr::null_mut(),
            tail: core::ptr::null_mut(),
        }
    }

    /// Whether none is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds one at the end.
    pub(crate) fn push(&mut self, held: Held) {
        let wrap = held.0.as_ptr();
        // SAFETY: We own the wrap and, by the type invariant, the tail.
        unsafe {
            (*wrap).next = core::ptr::null_mut();
            if self.head.is_null() {
                self.head = wrap;
            } else {
                (*self.tail).next = wrap;
            }
        }
        // INVARIANT: `wrap` is owned and last.
        self.tail = wrap;
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<Held> {
        let wrap = NonNull::new(self.head)?;
        // SAFETY: By the type invariant an owned wrap.
        self.head = unsafe { wrap.as_ref().next };
        Some(Held(wrap))
    }

    /// Takes all.
    pub(crate) fn take_all(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }
}

/// The cache of wraps, while [`Support`] lives.
static WRAPS: AtomicPtr<bindings::kmem_cache> = AtomicPtr::new(core::ptr::null_mut());
/// The first element of what each CPU has to complete, while [`Support`] lives.
static ENDINGS: AtomicPtr<Ending> = AtomicPtr::new(core::ptr::null_mut());

/// What one CPU is completing: bounds the depth of completions that set off each other.
#[repr(align(64))]
struct Ending {
    /// Whether somebody on this CPU is working the list off.
    active: AtomicBool,
    /// Bios to be ended, linked by `bi_next`.
    list: AtomicPtr<bindings::bio>,
}

/// What all gates need: made before the first [`Inflight`], dropped after the last.
pub(crate) struct Support {
    /// The wraps.
    cache: NonNull<bindings::kmem_cache>,
    /// One an CPU.
    _endings: KVec<Ending>,
}

// SAFETY: A cache and atomics.
unsafe impl Send for Support {}
// SAFETY: As above.
unsafe impl Sync for Support {}

impl Support {
    /// Sets all up. ENOMEM. May sleep; once at a time.
    pub(crate) fn new() -> Result<Self> {
        let cpus = kernel::cpu::nr_cpu_ids() as usize;
        let mut endings = KVec::with_capacity(cpus, GFP_KERNEL)?;
        for _ in 0..cpus {
            let ending = Ending {
                active: AtomicBool::new(false),
                list: AtomicPtr::new(core::ptr::null_mut()),
            };
            endings.push(ending, GFP_KERNEL)?;
        }
        // SAFETY: The name is static, size and alignment are those of the type.
        let cache = unsafe {
            ffi::bdsnap_cache_create(
                c"bdsnap_wrap".as_char_ptr(),
                core::mem::size_of::<Wrap>() as u32,
                core::mem::align_of::<Wrap>() as u32,
            )
        };
        let cache = NonNull::new(cache).ok_or(ENOMEM)?;
        ENDINGS.store(endings.as_mut_ptr(), Ordering::Release);
        WRAPS.store(cache.as_ptr(), Ordering::Release);
        Ok(Self {
            cache,
            _endings: endings,
        })
    }
}

impl Drop for Support {
    fn drop(&mut self) {
        WRAPS.store(core::ptr::null_mut(), Ordering::Release);
        ENDINGS.store(core::ptr::null_mut(), Ordering::Release);
        // A completion may be in its last steps, with preemption off.
        kernel::sync::rcu::synchronize_rcu();
        // SAFETY: No gate exists any more, so no element is out.
        unsafe { bindings::kmem_cache_destroy(self.cache.as_ptr()) };
    }
}

/// The completion of a wrapped bio. Runs in any context.
///
/// # Safety
///
/// Called by the block layer, with a bio that [`Ticket::wrap`] wrapped.
unsafe extern "C" fn end_io_wrapped(bio: *mut bindings::bio) {
    // SAFETY: A bio that ends with this function has a wrap in `bi_private`; it is ours until it
    // is ended again below. The wrap keeps `inflight` alive until the count is lowered, and the
    // RCU section (which any context may enter) until after that, and the list of endings, too.
    unsafe {
        let guard = kernel::sync::rcu::read_lock();
        let wrap = (*bio).bi_private.cast::<Wrap>();
        let inflight = (*wrap).inflight;
        (*bio).bi_end_io = (*wrap).end_io;
        (*bio).bi_private = (*wrap).private;
        let ok = (*bio).bi_status == 0;
        (*inflight).watch.ended((*wrap).change, (*wrap).span, ok);
        let pooled = (*wrap).pooled;
        (*inflight).give_wrap(wrap, pooled);
        (*inflight).add(-1);
        end(bio);
        drop(guard);
    }
}

/// Ends a bio with `bio_endio()`, but never one inside another on the same CPU: a chain of bios
/// whose first was held back ends one by one here, not in the depth of the stack.
///
/// # Safety
///
/// `bio` is owned by the caller, complete, its completion restored.
unsafe fn end(bio: *mut bindings::bio) {
    // SAFETY: Matched by the release below.
    unsafe { ffi::bdsnap_cpu_hold() };
    // SAFETY: The array has an element for each possible CPU, and is there while wraps are.
    let ending = unsafe {
        &*ENDINGS
            .load(Ordering::Acquire)
            .add(ffi::bdsnap_cpu() as usize)
    };
    let mut own = Some(bio);
    if ending.active.load(Ordering::Relaxed) {
        // SAFETY: The bio is the caller's; its `bi_next` is free for use by whoever completes it.
        unsafe { push_ending(ending, bio) };
        own = None;
    }
    // Whoever is active on this CPU, below us in the stack, looks at the list after it has become
    // inactive. On a real-time kernel it may be a task that we have preempted, or that preempted us:
    // so it is asked again after the push. Two may be active then, which does no harm.
    compiler_fence(Ordering::SeqCst);
    while own.is_some()
        || !ending.active.load(Ordering::Relaxed) && !ending.list.load(Ordering::Acquire).is_null()
    {
        // Only this CPU writes it, and what interrupts us has put it back when it is over.
        ending.active.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if let Some(bio) = own.take() {
            // SAFETY: The bio is the caller's.
            unsafe { bindings::bio_endio(bio) };
        }
        let mut next = core::ptr::null_mut();
        if !ending.list.load(Ordering::Acquire).is_null() {
            next = ending.list.swap(core::ptr::null_mut(), Ordering::AcqRel);
        }
        while let Some(bio) = NonNull::new(next) {
            // SAFETY: A bio from the list is owned by the list, now by us.
            unsafe {
                next = (*bio.as_ptr()).bi_next;
                (*bio.as_ptr()).bi_next = core::ptr::null_mut();
                bindings::bio_endio(bio.as_ptr());
            }
        }
        compiler_fence(Ordering::SeqCst);
        ending.active.store(false, Ordering::Relaxed);
        // What interrupted us before that has put its bios on the list.
        compiler_fence(Ordering::SeqCst);
    }
    // SAFETY: Matches the hold above.
    unsafe { ffi::bdsnap_cpu_release() };
}

/// Puts a bio on a CPU's list.
///
/// # Safety
///
/// The caller owns the bio.
unsafe fn push_ending(ending: &Ending, bio: *mut bindings::bio) {
    let mut head = ending.list.load(Ordering::Relaxed);
    loop {
        // SAFETY: The caller owns the bio until it is on the list.
        unsafe { (*bio).bi_next = head };
        match ending
            .list
            .compare_exchange_weak(head, bio, Ordering::AcqRel, Ordering::Relaxed)
        {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}
