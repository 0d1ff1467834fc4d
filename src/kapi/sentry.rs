// SPDX-License-Identifier: GPL-2.0

//! Plain ftrace callbacks on what the hook does not see: requests that don't begin as bios, and
//! disks that change their size or go. They look, and change nothing.
//!
//! Source: `Documentation/trace/ftrace-uses.rst`; `block/blk-mq.c`, `block/genhd.c`.

use super::bdev::DiskId;
use super::ftrace::address;
use super::ftrace::Registration;
use crate::ffi;
use bdsnap_logic::passthrough::may_write;
use bdsnap_logic::passthrough::Kind;
use core::marker::PhantomData;
use kernel::bindings;
use kernel::prelude::*;

/// Who is told. All of it is called in the task that does it, before it is done, inside an ftrace
/// callback: it must not sleep, nor wait for a lock that may sleep.
pub(crate) trait Watcher: 'static {
    /// A request that may write goes to a disk without having been a bio for it: `cloned` by
    /// request-based device-mapper, else a command of the device's own (SG_IO, NVMe passthrough).
    /// None: to some NVMe disk with several paths.
    fn bypassed(disk: Option<DiskId>, cloned: bool);

    /// A disk gets this size (which may be the one it has).
    fn resized(disk: DiskId, sectors: u64);

    /// A disk is being removed.
    fn removed(disk: DiskId);
}

/// All callbacks. Dropping it waits until no task is inside any of them.
pub(crate) struct Sentry<W: Watcher> {
    _probes: [Registration; 4],
    _watcher: PhantomData<W>,
}

impl<W: Watcher> Sentry<W> {
    /// Posts all of them. EINVAL, ENODEV: this kernel can't trace one of the functions; ENOMEM.
    /// Sleeps.
    pub(crate) fn post() -> Result<Self> {
        Ok(Self {
            _probes: [
                Registration::new(
                    on_request::<W>,
                    0,
                    &[
                        address!(blk_execute_rq),
                        address!(blk_execute_rq_nowait),
                        address!(blk_insert_cloned_request),
                    ],
                )?,
                Registration::new(
                    on_capacity::<W>,
                    0,
                    &[address!(set_capacity), address!(set_capacity_and_notify)],
                )?,
                Registration::new(on_invalidate::<W>, 0, &[address!(invalidate_disk)])?,
                Registration::new(on_removal::<W>, 0, &[address!(del_gendisk)])?,
            ],
            _watcher: PhantomData,
        })
    }
}

/// The disk of an argument; None: null.
fn disk_of(argument: c_ulong) -> Option<DiskId> {
    (argument != 0).then(|| DiskId::of_disk(argument as *const bindings::gendisk))
}

/// # Safety
///
/// Called by ftrace alone, at the entry of a function whose first argument is a request that is
/// about to be started.
unsafe extern "C" fn on_request<W: Watcher>(
    _ip: c_ulong,
    _parent: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // A disk that is being removed is freed after a grace period.
    let _guard = kernel::sync::rcu::read_lock();
    // SAFETY: ftrace gives valid registers; the caller's promise says what the argument is. The
    // command has `len` bytes. The disk is there until the RCU section ends.
    let (disk, is_path, kind, bytes, cdb) = unsafe {
        let rq = ffi::bdsnap_ftrace_arg0(regs) as *mut bindings::request;
        let disk = ffi::bdsnap_request_disk(rq);
        if disk.is_null() {
            return;
        }
        let kind = match ffi::bdsnap_request_op(rq) {
            bindings::req_op_REQ_OP_READ | bindings::req_op_REQ_OP_FLUSH => Kind::Harmless,
            bindings::req_op_REQ_OP_DRV_IN => Kind::CommandIn,
            bindings::req_op_REQ_OP_DRV_OUT => Kind::CommandOut,
            _ => Kind::Other,
        };
        let mut len = 0;
        let cdb = ffi::bdsnap_request_cdb(rq, disk, &mut len);
        let cdb = if cdb.is_null() {
            &[]
        } else {
            core::slice::from_raw_parts(cdb, len as usize)
        };
        let is_path = ffi::bdsnap_disk_is_nvme_path(disk);
        (
            disk,
            is_path,
            kind,
            u64::from(ffi::bdsnap_request_bytes(rq)),
            cdb,
        )
    };
    if may_write(kind, bytes, cdb) {
        let disk = (!is_path).then(|| DiskId::of_disk(disk));
        W::bypassed(disk, kind == Kind::Other);
    }
}

/// # Safety
///
/// Called by ftrace alone, at the entry of a function that gives a disk a size.
unsafe extern "C" fn on_capacity<W: Watcher>(
    _ip: c_ulong,
    _parent: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // SAFETY: ftrace gives valid registers.
    let (disk, sectors) = unsafe { (ffi::bdsnap_ftrace_arg0(regs), ffi::bdsnap_ftrace_arg1(regs)) };
    if let Some(disk) = disk_of(disk) {
        W::resized(disk, sectors as u64);
    }
}

/// # Safety
///
/// Called by ftrace alone, at the entry of a function that takes all size from a disk.
unsafe extern "C" fn on_invalidate<W: Watcher>(
    _ip: c_ulong,
    _parent: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // SAFETY: ftrace gives valid registers.
    if let Some(disk) = disk_of(unsafe { ffi::bdsnap_ftrace_arg0(regs) }) {
        W::resized(disk, 0);
    }
}

/// # Safety
///
/// Called by ftrace alone, at the entry of a function that removes a disk.
unsafe extern "C" fn on_removal<W: Watcher>(
    _ip: c_ulong,
    _parent: c_ulong,
    _ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // SAFETY: ftrace gives valid registers.
    if let Some(disk) = disk_of(unsafe { ffi::bdsnap_ftrace_arg0(regs) }) {
        W::removed(disk);
    }
}
