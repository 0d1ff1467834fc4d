// SPDX-License-Identifier: GPL-2.0

//! Bios as the hook meets them, and parked ones.
//!
//! Source: `struct bio` in `include/linux/blk_types.h`.

use super::bdev::DiskId;
use crate::ffi;
use bdsnap_logic::kind::Change;
use bdsnap_logic::range::bio_on_disk;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::bindings;

/// A bio on its way into `submit_bio_noacct()`: looked at, and passed on unless taken.
///
/// # Invariants
///
/// `bio` is valid and belongs to whoever submits it, that is to us until the hook returns,
/// unless `fate` says that it has been taken.
pub(crate) struct Submitted<'a> {
    bio: NonNull<bindings::bio>,
    fate: Fate,
    _hook: PhantomData<&'a ()>,
}

/// What becomes of a submitted bio.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on to the block layer.
    Pass,
    /// Somebody owns it now.
    Taken,
    /// It ends with `BLK_STS_AGAIN`.
    Again,
}

impl Submitted<'_> {
    /// # Safety
    ///
    /// `bio` is being submitted by the current task and valid; what `fate()` says afterwards must
    /// be carried out.
    #[inline]
    pub(super) unsafe fn new(bio: NonNull<bindings::bio>) -> Self {
        // INVARIANT: The caller's promise.
        Self {
            bio,
            fate: Fate::Pass,
            _hook: PhantomData,
        }
    }

    /// What was decided.
    #[inline]
    pub(super) fn fate(&self) -> Fate {
        self.fate
    }

    /// The C object.
    #[inline]
    pub(super) fn as_ptr(&self) -> *mut bindings::bio {
        self.bio.as_ptr()
    }

    /// The bio's fields.
    #[inline]
    fn raw(&self) -> &bindings::bio {
        // SAFETY: Valid by the type invariant; while it is being submitted nobody else changes it.
        unsafe { self.bio.as_ref() }
    }

    /// Whether it changes what the device holds: any data-carrying operation but a read.
    ///
    /// Operations that this code doesn't know count as changes. Flushes without data don't.
    #[inline]
    pub(crate) fn changes_data(&self) -> bool {
        let op = self.raw().bi_opf & ffi::BDSNAP_REQ_OP_MASK;
        if op == bindings::req_op_REQ_OP_READ {
            return false;
        }
        self.raw().bi_iter.bi_size != 0 || op == bindings::req_op_REQ_OP_ZONE_RESET_ALL
    }

    /// How it changes data, if it does. Only a plain discard is one: what reads as zeros afterwards
    /// was written.
    #[inline]
    pub(crate) fn change(&self) -> Change {
        match self.raw().bi_opf & ffi::BDSNAP_REQ_OP_MASK {
            bindings::req_op_REQ_OP_DISCARD => Change::Discard,
            _ => Change::Write,
        }
    }

    /// Whether its submitter rather gets `BLK_STS_AGAIN` than waits (`REQ_NOWAIT`).
    #[inline]
    pub(crate) fn is_nowait(&self) -> bool {
        self.raw().bi_opf & ffi::BDSNAP_REQ_NOWAIT != 0
    }

    /// The disk it goes to.
    #[inline]
    pub(crate) fn disk(&self) -> DiskId {
        // SAFETY: A submitted bio has a valid `bi_bdev`.
        unsafe { DiskId::of(self.raw().bi_bdev) }
    }

    /// The sectors of that disk that it names, whether or not it has been remapped from a
    /// partition (`BIO_REMAPPED`). Not yet checked against the end of the device.
    #[inline]
    pub(crate) fn on_disk(&self) -> Span<Sectors> {
        let bio = self.raw();
        let remapped = bio.bi_flags & (1u16 << bindings::BIO_REMAPPED) != 0;
        let start = if remapped {
            0
        } else {
            // SAFETY: A submitted bio has a valid `bi_bdev`.
            unsafe { (*bio.bi_bdev).bd_start_sect }
        };
        let sectors = u64::from(bio.bi_iter.bi_size) >> bdsnap_logic::units::SECTOR_SHIFT;
        bio_on_disk(bio.bi_iter.bi_sector, sectors, start)
    }

    /// Ends it with `BLK_STS_AGAIN`, outside the hook.
    #[inline]
    pub(crate) fn refuse_to_wait(&mut self) {
        if self.fate == Fate::Pass {
            self.fate = Fate::Again;
        }
    }

    /// Takes it: the block layer doesn't see it until it is submitted again.
    /// None if its fate was decided already.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Parked> {
        if self.fate != Fate::Pass {
            return None;
        }
        self.fate = Fate::Taken;
        // INVARIANT: Ownership goes from the submitter to the new object; `fate` keeps it so.
        Some(Parked(self.bio))
    }
}

/// A bio that was taken and must be submitted again, or it never ends.
///
/// # Invariants
///
/// A valid bio that this owns, its `bi_next` unused.
#[must_use = "a parked bio that isn't submitted again hangs its writer"]
pub(crate) struct Parked(NonNull<bindings::bio>);

// SAFETY: A bio can be submitted from any task.
unsafe impl Send for Parked {}

impl Parked {
    /// Submits it again, as anybody would: it passes the hook. May sleep.
    pub(crate) fn submit(self) {
        // SAFETY: By the type invariant the bio is valid and ours to submit.
        unsafe { bindings::submit_bio_noacct(self.0.as_ptr()) };
    }

    /// The C object, given away.
    pub(super) fn into_raw(self) -> NonNull<bindings::bio> {
        self.0
    }

    /// # Safety
    ///
    /// From [`Parked::into_raw`], and only once.
    pub(super) unsafe fn from_raw(bio: NonNull<bindings::bio>) -> Self {
        Self(bio)
    }
}

/// Parked bios, first in, first out, linked through their own `bi_next`: needs no memory.
///
/// # Invariants
///
/// `head` is null or the first of a list of owned bios that ends at `tail`.
pub(crate) struct ParkedList {
    head: *mut bindings::bio,
    tail: *mut bindings::bio,
}

// SAFETY: It owns its bios, which are `Send`.
unsafe impl Send for ParkedList {}

impl ParkedList {
    /// No bio.
    pub(crate) const fn new() -> Self {
        // INVARIANT: Empty.
        Self {
            head: core::ptr::null_mut(),
            tail: core::ptr::null_mut(),
        }
    }

    /// Adds one at the end.
    pub(crate) fn push(&mut self, bio: Parked) {
        let bio = bio.into_raw().as_ptr();
        // SAFETY: We own the bio.
        unsafe { (*bio).bi_next = core::ptr::null_mut() };
        if self.head.is_null() {
            self.head = bio;
        } else {
            // SAFETY: By the type invariant `tail` is an owned bio.
            unsafe { (*self.tail).bi_next = bio };
        }
        // INVARIANT: `bio` is owned, linked last, and its `bi_next` null.
        self.tail = bio;
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<Parked> {
        let bio = NonNull::new(self.head)?;
        // SAFETY: By the type invariant the bio is owned and valid.
        unsafe {
            self.head = (*bio.as_ptr()).bi_next;
            (*bio.as_ptr()).bi_next = core::ptr::null_mut();
        }
        // INVARIANT: It was ours, is off the list, and `bi_next` is null again.
        Some(Parked(bio))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Puts `first` before all that are in it.
    pub(crate) fn prepend(&mut self, mut first: Self) {
        let mut rest = self.take_all();
        while let Some(bio) = first.pop() {
            self.push(bio);
        }
        while let Some(bio) = rest.pop() {
            self.push(bio);
        }
    }

    /// Takes all.
    pub(crate) fn take_all(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }
}
