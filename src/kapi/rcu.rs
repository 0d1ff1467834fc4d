// SPDX-License-Identifier: GPL-2.0

//! A pointer that is read under RCU and replaced by a writer.
//!
//! Source: `rcu_dereference()`, `rcu_assign_pointer()`, `synchronize_rcu()`.

use core::marker::PhantomData;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::rcu;

/// An optional boxed `T` that readers see under [`rcu::Guard`].
///
/// # Invariants
///
/// The pointer is null or came from [`KBox::into_raw`], and what it pointed to is freed only
/// after a grace period has passed since it was replaced.
pub(crate) struct RcuCell<T: Send + Sync> {
    ptr: AtomicPtr<T>,
    _owns: PhantomData<KBox<T>>,
}

impl<T: Send + Sync> RcuCell<T> {
    /// An empty cell; can be a static.
    pub(crate) const fn empty() -> Self {
        // INVARIANT: null.
        Self {
            ptr: AtomicPtr::new(core::ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    /// The value, valid as long as the guard. Any context.
    #[inline]
    pub(crate) fn read<'g>(&self, _guard: &'g rcu::Guard) -> Option<&'g T> {
        let ptr = self.ptr.load(Ordering::Acquire);
        // SAFETY: By the type invariant the pointer is null or valid, and what it points to is not
        // freed before a grace period has passed, which the guard holds off. A shared reference
        // is all that is ever handed out.
        unsafe { ptr.as_ref() }
    }

    /// Puts `new` in the place of the value, which the returned object frees later.
    pub(crate) fn swap(&self, new: Option<KBox<T>>) -> Retired<T> {
        let new = new.map_or(core::ptr::null_mut(), KBox::into_raw);
        // INVARIANT: `new` is null or from `KBox::into_raw`; the old one goes to `Retired`, which
        // waits for a grace period.
        Retired(self.ptr.swap(new, Ordering::AcqRel), PhantomData)
    }
}

impl<T: Send + Sync> Drop for RcuCell<T> {
    fn drop(&mut self) {
        let ptr = *self.ptr.get_mut();
        if !ptr.is_null() {
            // SAFETY: By the type invariant `ptr` came from `KBox::into_raw`; `&mut self` shows
            // that no reader can reach the cell any more, and readers that got the value through
            // it borrowed the cell.
            drop(unsafe { KBox::from_raw(ptr) });
        }
    }
}

/// Waits until every task has gone on from whatever code it was preempted in. Sleeps.
pub(crate) fn synchronize_tasks() {
    // SAFETY: May be called where one may sleep.
    unsafe { bindings::synchronize_rcu_tasks() };
}

/// A replaced value: freed when dropped, after a grace period. Dropping it may sleep.
///
/// # Invariants
///
/// The pointer is null or from [`KBox::into_raw`], unreachable for new readers, owned by this.
#[must_use = "dropping it waits for a grace period"]
pub(crate) struct Retired<T>(*mut T, PhantomData<KBox<T>>);

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        if self.0.is_null() {
            return;
        }
        rcu::synchronize_rcu();
        // SAFETY: By the type invariant this owns the box; readers that could still see it are
        // gone after the grace period.
        drop(unsafe { KBox::from_raw(self.0) });
    }
}

// SAFETY: It is an owned box, freed on whatever thread.
unsafe impl<T: Send> Send for Retired<T> {}
