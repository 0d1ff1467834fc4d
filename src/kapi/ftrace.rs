// SPDX-License-Identifier: GPL-2.0

//! Callbacks at the entry of kernel functions.
//!
//! Source: `Documentation/trace/ftrace-uses.rst`, `kernel/trace/ftrace.c`.

use super::abi::ModuleRef;
use core::cell::UnsafeCell;
use core::mem::ManuallyDrop;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// The signature of a callback: address of the function, its caller's, the ops, the registers.
pub(super) type Callback =
    unsafe extern "C" fn(c_ulong, c_ulong, *mut bindings::ftrace_ops, *mut bindings::ftrace_regs);

/// The address of a function.
macro_rules! address {
    ($name:ident) => {
        kernel::bindings::$name as *const () as kernel::ffi::c_ulong
    };
}
pub(super) use address;

/// One registered callback. Dropping it waits until no task is inside, and may sleep long.
///
/// # Invariants
///
/// The ops are registered with ftrace, pinned in their box.
pub(super) struct Registration(ManuallyDrop<KBox<UnsafeCell<bindings::ftrace_ops>>>);

// SAFETY: ftrace may be told to unregister from any thread.
unsafe impl Send for Registration {}
// SAFETY: No method takes `&self`.
unsafe impl Sync for Registration {}

impl Registration {
    /// Calls `func` at the entry of each of `targets`; `flags` are `FTRACE_OPS_FL_*`. May sleep.
    /// EBUSY: with IPMODIFY, another such user holds one of them, or with PERMANENT, ftrace is
    /// switched off; EINVAL: this kernel can't trace one of them; ENODEV: ftrace has failed;
    /// ENOMEM.
    pub(super) fn new(func: Callback, flags: c_ulong, targets: &[c_ulong]) -> Result<Self> {
        Self::with_filter(func, flags, |ops| {
            targets.iter().try_for_each(|target| {
                // SAFETY: `ops` is valid, zero but for what a user has to set, and not registered.
                to_result(unsafe { bindings::ftrace_set_filter_ip(ops, *target, 0, 0) })
            })
        })
    }

    /// The same, at the entry of a function that is not exported to modules: by its name.
    pub(super) fn by_name(func: Callback, flags: c_ulong, target: &CStr) -> Result<Self> {
        let mut name = KVec::new();
        name.extend_from_slice(target.to_bytes_with_nul(), GFP_KERNEL)?;
        let len = target.to_bytes().len() as c_int;
        Self::with_filter(func, flags, |ops| {
            // SAFETY: As above; the name may be written to, and ends with a zero.
            to_result(unsafe { bindings::ftrace_set_filter(ops, name.as_mut_ptr(), len, 1) })
        })
    }

    /// The same, where `filter` says what is to be traced.
    fn with_filter(
        func: Callback,
        flags: c_ulong,
        filter: impl FnOnce(*mut bindings::ftrace_ops) -> Result,
    ) -> Result<Self> {
        let ops = bindings::ftrace_ops {
            func: Some(func),
            flags,
            ..Default::default()
        };
        let ops = KBox::new(UnsafeCell::new(ops), GFP_KERNEL)?;
        let filtered = filter(ops.get());
        let registered = filtered.and_then(|()| {
            // SAFETY: As above; the box keeps it in place until it is unregistered.
            to_result(unsafe { bindings::register_ftrace_function(ops.get()) })
        });
        if let Err(e) = registered {
            // SAFETY: `ops` isn't registered.
            unsafe { bindings::ftrace_free_filter(ops.get()) };
            return Err(e);
        }
        // INVARIANT: Registered.
        Ok(Self(ManuallyDrop::new(ops)))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the ops are registered.
        let gone = to_result(unsafe { bindings::unregister_ftrace_function(self.0.get()) });
        if gone.is_err() {
            // ftrace has found the kernel's code not as it left it, and touches it no more: what is
            // there still calls us. (The reference can be had: whoever registered holds one.)
            kernel::pr_err_once!(
                "ftrace has failed, see above: bdsnap can't be unloaded until the next boot\n"
            );
            core::mem::forget(ModuleRef::get());
            return;
        }
        // SAFETY: From here on no task can enter the callback; one may still be in it, or where it
        // was sent to, preempted: a task-RCU grace period outlasts it. Then nothing refers to the
        // ops; the box is not used again.
        unsafe {
            bindings::synchronize_rcu_tasks();
            bindings::ftrace_free_filter(self.0.get());
            ManuallyDrop::drop(&mut self.0);
        }
    }
}
