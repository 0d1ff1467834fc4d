// SPDX-License-Identifier: GPL-2.0

//! Bios that a cgroup's limit (`io.max`) has held back, when they go on: those that were held back
//! before the hook was there have not been seen.
//!
//! A plain ftrace callback on `submit_bio_noacct_nocheck()`, which looks, and changes nothing. It is
//! wanted only where bios may have been held back: all others may come by there, too.
//!
//! Source: `block/blk-throttle.c`, `blk_throtl_dispatch_work_fn()`; `block/blk-core.c`.

use super::bio::Submitted;
use super::ftrace::Registration;
use super::run::is_run;
use super::run::RunOwner;
use crate::ffi;
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;

/// Who is told.
pub(crate) trait StrayWatcher: 'static {
    /// Whose runs are not strays.
    type Owner: RunOwner;

    /// A bio that changes data goes on to its driver; it is no run's. It may have been held back,
    /// and may have passed the hook. Called inside an ftrace callback: it must not sleep.
    fn goes_on(bio: &Submitted<'_>);
}

/// The callback. Dropping it waits until no task is inside.
pub(crate) struct Strays<W: StrayWatcher> {
    _probe: Registration,
    _watcher: PhantomData<W>,
}

impl<W: StrayWatcher> Strays<W> {
    /// EINVAL, ENODEV: this kernel can't trace the function; ENOMEM. Sleeps.
    pub(crate) fn watch() -> Result<Self> {
        Ok(Self {
            _probe: Registration::by_name(on_bio::<W>, 0, c"submit_bio_noacct_nocheck")?,
            _watcher: PhantomData,
        })
    }
}

/// # Safety
///
/// Called by ftrace alone, at the entry of a function whose first argument is a bio that is about to
/// be given to its driver.
unsafe extern "C" fn on_bio<W: StrayWatcher>(
    _ip: c_ulong,
    _parent: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // SAFETY: ftrace gives valid registers.
    let bio = unsafe { ffi::bdsnap_ftrace_arg0(regs) } as *mut bindings::bio;
    let Some(bio) = NonNull::new(bio) else {
        return;
    };
    // SAFETY: The current task is submitting the bio; nothing here takes it.
    let submitted = unsafe { Submitted::new(bio) };
    if submitted.changes_data() && !is_run::<W::Owner>(&submitted) {
        W::goes_on(&submitted);
    }
}
