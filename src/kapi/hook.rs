// SPDX-License-Identifier: GPL-2.0

//! The hook on `submit_bio_noacct()`: an ftrace callback that may change where the call goes.
//!
//! Source: `Documentation/trace/ftrace-uses.rst`, `FTRACE_OPS_FL_IPMODIFY`. ftrace allows one such
//! user a function; livepatch is the other (EBUSY).

use super::bdev::BlockDevice;
use super::bio::Fate;
use super::bio::Submitted;
use super::ftrace::address;
use super::ftrace::Registration;
use super::run::is_own;
use super::run::RunOwner;
use crate::ffi;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// What looks at each bio.
pub(crate) trait Interceptor: 'static {
    /// Who owns the runs, whose bios are our own.
    type Owner: RunOwner;

    /// A bio is being submitted that isn't one of our own.
    ///
    /// Runs in the submitting task, inside an ftrace callback: it must not sleep, and must not
    /// allocate but from reserves. What it does to `bio` decides where the bio goes.
    fn submitted(bio: &mut Submitted<'_>);
}

/// The bio of a running self-test, else null.
static PROBE: AtomicPtr<bindings::bio> = AtomicPtr::new(core::ptr::null_mut());
/// Whether the self-test's bio was seen.
static PROBE_SEEN: AtomicBool = AtomicBool::new(false);

/// A registered hook. Dropping it waits until no task is inside, and may sleep long.
pub(crate) struct Hook<I: Interceptor> {
    _registration: Registration,
    _interceptor: PhantomData<I>,
}

impl<I: Interceptor> Hook<I> {
    /// Hooks the function. EBUSY: a livepatch or another hook holds it, or (in older kernels)
    /// ftrace is switched off; EINVAL, ENODEV: this kernel can't hook it; ENOMEM. May sleep.
    pub(crate) fn register() -> Result<Self> {
        let target = address!(submit_bio_noacct);
        Ok(Self {
            _registration: Registration::new(callback::<I>, ffi::BDSNAP_FTRACE_FLAGS, &[target])?,
            _interceptor: PhantomData,
        })
    }

    /// Whether a read of `dev` through `submit_bio()` reaches the callback: it doesn't where the
    /// kernel was built so that the hooked function is inlined. Errors of the read itself are
    /// passed on. May sleep; one at a time (the caller's lock).
    pub(crate) fn self_test(&self, dev: &BlockDevice) -> Result<bool> {
        let bytes = dev.logical_block().max(512);
        // SAFETY: Allocates an order-0 page; larger logical blocks aren't tracked.
        let page = unsafe { ffi::bdsnap_alloc_page(bindings::GFP_KERNEL) };
        let page = NonNull::new(page).ok_or(ENOMEM)?;
        let mut bio = bindings::bio::default();
        let mut vec = bindings::bio_vec::default();
        PROBE_SEEN.store(false, Ordering::Relaxed);
        // SAFETY: `bio` and `vec` live on this stack until `submit_bio_wait()` returns, which is
        // after the bio has ended; the page is ours and large enough.
        let result = unsafe {
            bindings::bio_init(
                &mut bio,
                dev.as_ptr(),
                &mut vec,
                1,
                bindings::req_op_REQ_OP_READ,
            );
            bindings::__bio_add_page(&mut bio, page.as_ptr(), bytes.min(4096), 0);
            PROBE.store(&mut bio, Ordering::Release);
            let result = to_result(bindings::submit_bio_wait(&mut bio));
            PROBE.store(core::ptr::null_mut(), Ordering::Release);
            bindings::bio_uninit(&mut bio);
            bindings::__free_pages(page.as_ptr(), 0);
            result
        };
        result?;
        Ok(PROBE_SEEN.load(Ordering::Acquire))
    }
}

/// The ftrace callback.
///
/// # Safety
///
/// Called by ftrace alone, at the entry of `submit_bio_noacct()`.
unsafe extern "C" fn callback<I: Interceptor>(
    _ip: c_ulong,
    parent: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // SAFETY: ftrace gives valid registers; the function's first argument is a bio.
    let bio = unsafe { ffi::bdsnap_ftrace_arg0(regs) } as *mut bindings::bio;
    let Some(bio) = NonNull::new(bio) else {
        return;
    };
    if bio.as_ptr() == PROBE.load(Ordering::Relaxed) {
        PROBE_SEEN.store(true, Ordering::Release);
        return;
    }
    let own_start = ffi::bdsnap_submit_own as *const () as c_ulong;
    let own_end = core::ptr::addr_of!(ffi::bdsnap_submit_own_end) as c_ulong;
    if (own_start..=own_end).contains(&parent) {
        return;
    }
    // SAFETY: The current task is submitting the bio, and what `fate()` says is done below.
    let mut submitted = unsafe { Submitted::new(bio) };
    // (A driver that splits a bio of our own, or holds it back for a while, submits the rest of it itself.)
    if !submitted.changes_data() || is_own::<I::Owner>(&submitted) {
        return;
    }
    I::submitted(&mut submitted);
    let stub = match submitted.fate() {
        Fate::Pass => return,
        Fate::Taken => ffi::bdsnap_hook_taken as *const () as c_ulong,
        Fate::Again => ffi::bdsnap_hook_again as *const () as c_ulong,
    };
    // SAFETY: IPMODIFY permits to change the address; the stubs have the signature of the hooked
    // function, and return to its caller.
    unsafe { ffi::bdsnap_ftrace_set_ip(regs, stub) };
}

/// Submits a bio of our own: it doesn't meet our hook on this device. May sleep.
///
/// # Safety
///
/// As for `submit_bio_noacct()`: a complete bio that the caller owns.
pub(super) unsafe fn submit_own(bio: *mut bindings::bio) {
    // SAFETY: The caller's promise.
    unsafe { ffi::bdsnap_submit_own(bio) };
}
