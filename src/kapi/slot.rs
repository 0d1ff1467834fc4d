// SPDX-License-Identifier: GPL-2.0

//! Places for a box that is put in once, without a lock, and pages of atomics to put there.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering;
use kernel::alloc::Flags;
use kernel::prelude::*;

/// Memory from what is at hand: neither sleeps nor starts anything (`GFP_NOWAIT`).
pub(crate) const NOWAIT: Flags = kernel::alloc::flags::GFP_NOWAIT;

/// Bytes in a [`BytePage`].
pub(crate) const PAGE_BYTES: usize = 4096;
/// 64-bit words in a [`BitPage`].
pub(crate) const PAGE_WORDS: usize = 512;

/// A page of bytes.
pub(crate) type BytePage = [AtomicU8; PAGE_BYTES];
/// A page of bits.
pub(crate) type BitPage = [AtomicU64; PAGE_WORDS];

/// What can be made of zeros.
///
/// # Safety
///
/// All zeros are a valid value.
pub(crate) unsafe trait FromZeros: Sized {}
// SAFETY: An array of atomics, for which zero is a value.
unsafe impl FromZeros for BytePage {}
// SAFETY: As above.
unsafe impl FromZeros for BitPage {}

/// A box of zeros. ENOMEM.
pub(crate) fn zeroed<T: FromZeros>(flags: Flags) -> Result<KBox<T>> {
    let page = KBox::<T>::new_uninit(flags | kernel::alloc::flags::__GFP_ZERO)?;
    // SAFETY: Zeroed by the allocator, and zeros are a value of `T`.
    Ok(unsafe { page.assume_init() })
}

/// Mark of a slot that was given up.
const VOID: usize = 1;

/// A slot for a box: empty at first, then full or void for ever.
///
/// # Invariants
///
/// The pointer is null, [`VOID`], or from [`KBox::into_raw`]; the latter two stay.
pub(crate) struct Slot<T> {
    ptr: AtomicPtr<T>,
    _owns: PhantomData<KBox<T>>,
}

// SAFETY: It holds a box, which it frees when dropped.
unsafe impl<T: Send> Send for Slot<T> {}
// SAFETY: It hands out shared references only.
unsafe impl<T: Send + Sync> Sync for Slot<T> {}

/// What is in a [`Slot`].
pub(crate) enum Content<'a, T> {
    /// Nothing yet.
    Empty,
    /// Nothing, and nothing will be.
    Void,
    /// This.
    Full(&'a T),
}

impl<T> Slot<T> {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self {
            ptr: AtomicPtr::new(core::ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    /// What is in it. Any context.
    #[inline]
    pub(crate) fn content(&self) -> Content<'_, T> {
        let ptr = self.ptr.load(Ordering::Acquire);
        if ptr.addr() == VOID {
            return Content::Void;
        }
        // SAFETY: By the type invariant a pointer that is neither null nor void is from
        // `KBox::into_raw`, and stays as long as the slot.
        match unsafe { ptr.as_ref() } {
            None => Content::Empty,
            Some(value) => Content::Full(value),
        }
    }

    /// The box, if it is full.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        match self.content() {
            Content::Full(value) => Some(value),
            Content::Empty | Content::Void => None,
        }
    }

    /// Puts a box in, or makes the slot void; does nothing (but drop the box) if it isn't empty.
    /// Any context.
    pub(crate) fn put(&self, value: Option<KBox<T>>) {
        let new = match value {
            Some(value) => KBox::into_raw(value),
            None => core::ptr::without_provenance_mut(VOID),
        };
        let old = core::ptr::null_mut();
        // INVARIANT: From null to a box or void.
        if self
            .ptr
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            free(new);
        }
    }
}

/// Frees what a slot's pointer owns.
fn free<T>(ptr: *mut T) {
    if ptr.addr() == VOID {
        return;
    }
    if let Some(ptr) = NonNull::new(ptr) {
        // SAFETY: Neither null nor void: from `KBox::into_raw` by the invariant of `Slot`, and the
        // callers own it.
        drop(unsafe { KBox::from_raw(ptr.as_ptr()) });
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        free(*self.ptr.get_mut());
    }
}

/// A vector of `n` empty slots. ENOMEM. May sleep.
pub(crate) fn slots<T>(n: usize) -> Result<KVVec<Slot<T>>> {
    let mut slots = KVVec::with_capacity(n, GFP_KERNEL)?;
    for _ in 0..n {
        slots.push(Slot::new(), GFP_KERNEL)?;
    }
    Ok(slots)
}
