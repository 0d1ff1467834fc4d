// SPDX-License-Identifier: GPL-2.0

//! Word of power management that the machine is about to hibernate, or has.
//!
//! Source: `register_pm_notifier()`, `Documentation/driver-api/pm/notifiers.rst`.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// Who is told.
pub(crate) trait Sleeper: 'static {
    /// The machine is about to hibernate, or has come back from it (programs still run between
    /// the word and the end): the memory's image is written to a disk after the memory was saved,
    /// so that what is known now is not all that happens. May sleep.
    fn hibernating();
}

/// A registered notifier.
///
/// # Invariants
///
/// `block` is registered, pinned in its box.
pub(crate) struct PowerWatch<S: Sleeper> {
    block: KBox<UnsafeCell<bindings::notifier_block>>,
    _sleeper: PhantomData<S>,
}

// SAFETY: It may be unregistered from any thread.
unsafe impl<S: Sleeper> Send for PowerWatch<S> {}
// SAFETY: No method takes `&self`.
unsafe impl<S: Sleeper> Sync for PowerWatch<S> {}

impl<S: Sleeper> PowerWatch<S> {
    /// Registers. ENOMEM. Sleeps.
    pub(crate) fn register() -> Result<Self> {
        let block = bindings::notifier_block {
            notifier_call: Some(notified::<S>),
            ..Default::default()
        };
        let block = KBox::new(UnsafeCell::new(block), GFP_KERNEL)?;
        // SAFETY: The box keeps it in place until it is unregistered.
        to_result(unsafe { bindings::register_pm_notifier(block.get()) })?;
        // INVARIANT: Registered.
        Ok(Self {
            block,
            _sleeper: PhantomData,
        })
    }
}

impl<S: Sleeper> Drop for PowerWatch<S> {
    fn drop(&mut self) {
        // SAFETY: Registered, by the type invariant; this waits for callers.
        unsafe { bindings::unregister_pm_notifier(self.block.get()) };
    }
}

/// The notifier. Returns 0 (`NOTIFY_DONE`): nobody is held up.
///
/// # Safety
///
/// Called by power management alone.
unsafe extern "C" fn notified<S: Sleeper>(
    _block: *mut bindings::notifier_block,
    action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    if [
        bindings::PM_HIBERNATION_PREPARE,
        bindings::PM_POST_HIBERNATION,
    ]
    .contains(&(action as u32))
    {
        S::hibernating();
    }
    0
}
