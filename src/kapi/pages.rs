// SPDX-License-Identifier: GPL-2.0

//! A large piece of memory, page by page: a portion of a store.
//!
//! Source: `alloc_pages()`, `si_mem_available()`.

use super::disk::Child;
use super::run::Run;
use super::run::RunOwner;
use crate::ffi;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// Pages. A part of them is written by one at a time. Who reads it meanwhile gets anything, and throws it
/// away: whoever uses them sees to it.
///
/// # Invariants
///
/// Owns the pages, each of order 0.
pub(crate) struct Pages(KVVec<NonNull<bindings::page>>);

// SAFETY: Pages may be used and freed by any thread.
unsafe impl Send for Pages {}
// SAFETY: What is in them is only touched in parts, as said above.
unsafe impl Sync for Pages {}

/// Whether so many pages can be taken: ENOMEM, if less than a tenth of the machine's memory would remain
/// available. `si_mem_available()`.
pub(crate) fn are_available(pages: usize) -> Result {
    // SAFETY: Read counters.
    let (available, all) = unsafe {
        (
            bindings::si_mem_available(),
            ffi::bdsnap_ram_pages() as usize,
        )
    };
    let available = usize::try_from(available).unwrap_or(0);
    if pages > available.saturating_sub(all / 10) {
        return Err(ENOMEM);
    }
    Ok(())
}

impl Pages {
    /// At least `bytes` bytes. ENOMEM: less than a tenth of the machine's memory would remain
    /// available, or they can't be had without pressing others; EINTR: a fatal signal. Sleeps.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let pages = usize::try_from(bytes.div_ceil(PAGE_SIZE as u64))?;
        are_available(pages)?;
        // INVARIANT: None yet.
        let mut this = Self(KVVec::with_capacity(pages, GFP_KERNEL)?);
        for _ in 0..pages {
            // SAFETY: Looks at the current task.
            if unsafe { ffi::bdsnap_fatal_signal() } {
                return Err(EINTR);
            }
            // SAFETY: Allocates an order-0 page.
            let page = unsafe { ffi::bdsnap_alloc_page(ffi::BDSNAP_GFP_STORE) };
            let page = NonNull::new(page).ok_or(ENOMEM)?;
            // INVARIANT: A page of our own; there is room for it.
            this.0.push_within_capacity(page).map_err(|_| ENOMEM)?;
        }
        Ok(this)
    }

    /// How many bytes there are.
    pub(crate) fn bytes(&self) -> u64 {
        (self.0.len() as u64).saturating_mul(PAGE_SIZE as u64)
    }

    /// Puts `bytes` bytes of a run's data, from its page `skip` on, at byte `at`, the beginning of a
    /// page. What does not fit is left out.
    pub(crate) fn put<T: RunOwner>(&self, at: u64, run: &Run<T>, skip: usize, bytes: usize) {
        let first = usize::try_from(at / PAGE_SIZE as u64).unwrap_or(usize::MAX);
        for (n, page) in self.0.iter().skip(first).enumerate() {
            let len = bytes.saturating_sub(n * PAGE_SIZE).min(PAGE_SIZE);
            let from = run.page(skip.saturating_add(n)).filter(|_| len > 0);
            let Some(from) = from else {
                return;
            };
            // SAFETY: Both pages are owned by their lists and mapped (x86-64 has no high memory);
            // nobody else writes to this part of ours now, nor to the run's, which is not busy.
            unsafe {
                let to = ffi::bdsnap_page_address(page.as_ptr()).cast::<u8>();
                core::ptr::copy_nonoverlapping(from.cast::<u8>(), to, len);
            }
        }
    }

    /// Copies `bytes` bytes from byte `at` on into a child's data, from its beginning.
    pub(crate) fn fill(&self, child: &mut Child, at: u64, bytes: usize) {
        let mut done = 0;
        while done < bytes {
            let from = at.saturating_add(done as u64);
            let page = usize::try_from(from / PAGE_SIZE as u64).unwrap_or(usize::MAX);
            let Some(page) = self.0.get(page) else {
                return;
            };
            let offset = (from % PAGE_SIZE as u64) as usize;
            let len = (PAGE_SIZE - offset).min(bytes - done);
            // SAFETY: The page is ours and mapped; offset and length stay inside it, and the child's
            // bio is owned by the child.
            unsafe {
                let src = ffi::bdsnap_page_address(page.as_ptr())
                    .cast::<u8>()
                    .add(offset);
                ffi::bdsnap_bio_fill(child.as_ptr(), done as u32, src.cast(), len as u32);
            }
            done += len;
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for page in self.0.iter() {
            // SAFETY: By the type invariant it is ours.
            unsafe { bindings::__free_pages(page.as_ptr(), 0) };
        }
    }
}
