// SPDX-License-Identifier: GPL-2.0

//! One object of the whole module, from its start to its end.

use core::marker::PhantomData;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;

/// A static that holds one [`Arc`] while the module is loaded.
///
/// # Invariants
///
/// The pointer is null or from [`Arc::into_raw`], and this owns that reference.
pub(crate) struct Global<T: 'static> {
    ptr: AtomicPtr<T>,
    _owns: PhantomData<Arc<T>>,
}

// SAFETY: It holds an `Arc<T>`, which is `Sync` where `T` is both.
unsafe impl<T: Send + Sync> Sync for Global<T> {}

impl<T: Send + Sync> Global<T> {
    /// Holds nothing yet.
    pub(crate) const fn new() -> Self {
        // INVARIANT: null.
        Self {
            ptr: AtomicPtr::new(core::ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    /// Puts the object in; the returned guard takes it out again when the module ends.
    ///
    /// EBUSY: there is one already.
    pub(crate) fn set(&'static self, value: Arc<T>) -> Result<GlobalGuard<T>> {
        let raw = Arc::into_raw(value).cast_mut();
        match self.ptr.compare_exchange(
            core::ptr::null_mut(),
            raw,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            // INVARIANT: The reference now belongs to the cell.
            Ok(_) => Ok(GlobalGuard(self)),
            Err(_) => {
                // SAFETY: `raw` came from `Arc::into_raw` above and wasn't stored.
                drop(unsafe { Arc::from_raw(raw) });
                Err(EBUSY)
            }
        }
    }

    /// The object.
    ///
    /// The borrow is good as long as the module: what calls this is code of the module that ends
    /// before [`GlobalGuard`] does (file operations, hooks and work items, each of which the
    /// module stops or holds a reference against before that).
    #[inline]
    pub(crate) fn get(&'static self) -> Option<ArcBorrow<'static, T>> {
        let ptr = self.ptr.load(Ordering::Acquire);
        if ptr.is_null() {
            return None;
        }
        // SAFETY: By the type invariant `ptr` is from `Arc::into_raw`, and its reference is kept
        // until the guard is dropped, at the end of the module, after all callers.
        Some(unsafe { ArcBorrow::from_raw(ptr) })
    }
}

/// Takes the object out of its [`Global`] when dropped.
pub(crate) struct GlobalGuard<T: Send + Sync + 'static>(&'static Global<T>);

impl<T: Send + Sync> Drop for GlobalGuard<T> {
    fn drop(&mut self) {
        let ptr = self.0.ptr.swap(core::ptr::null_mut(), Ordering::AcqRel);
        if !ptr.is_null() {
            // SAFETY: By the invariant of `Global` the pointer owned a reference.
            drop(unsafe { Arc::from_raw(ptr) });
        }
    }
}
