// SPDX-License-Identifier: GPL-2.0

//! Live backup of any block device: change-block tracking and copy-on-write snapshots.
//!
//! `insmod` makes `/dev/bdsnap` and nothing else. The hook on bio submission is there only while
//! something is tracked, and holds a reference on the module.
//!
//! # Rooms
//!
//! control → image, cow, store, cbt, tracker, event → kapi → ffi; all of them → logic.
//!
//! # Lock order
//!
//! Each may be taken while those above it are held, never the other way round:
//!
//! 1. `Registry::state`: all that ioctls do. Held while sleeping, for I/O too.
//! 2. A disk's `open_mutex`, inode and super block locks: taken by the kernel functions that are
//!    called under 1. (`Shown::open` and `closed` run under `open_mutex` and take nothing.)
//!    So does who drops the last reference to a store.
//! 3. `Tracker::chain`, one tracker's at a time: where the data of its versions is. Held while
//!    allocating without I/O, never while waiting for I/O.
//! 4. `Tracker::marking`, one tracker's at a time: marks that pass no gate, and the switch at a cut. Held
//!    while a GiB is marked at most.
//! 5. `Map::clock`: the numbers of a change map. Held for a pass over the map at most.
//! 6. `Events::ring`: for a few instructions.
//! 7. `Tracker::arrivals`, `Store::shelf`: spin locks, for a few instructions.
//!
//! The hook takes RCU and 7 only, what watches disks and requests RCU alone. Completions take RCU and no lock.
//!
//! # Start and stop
//!
//! Start: what gates need (`kapi::inflight::Support`), what disks need (`kapi::disk::Support`), the
//! registry, the control device; stop in reverse. By then nothing is tracked: each tracker and each
//! image holds a reference on the module.

mod cbt;
mod control;
mod cow;
mod event;
mod ffi;
mod image;
mod kapi;
mod store;
mod tracker;

use control::Registry;
use event::Events;
use kapi::global::GlobalGuard;
use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;

module! {
    type: Bdsnap,
    name: "bdsnap",
    authors: ["The bdsnap authors"],
    description: "Change tracking and snapshots of live block devices",
    license: "GPL",
}

/// The module: its fields are dropped in their order.
#[pin_data]
struct Bdsnap {
    /// `/dev/bdsnap`.
    #[pin]
    _control: MiscDeviceRegistration<control::Session>,
    /// The registry.
    _registry: GlobalGuard<Registry>,
    /// What happened, for those who listen.
    _events: GlobalGuard<Events>,
    /// For images.
    _disks: kapi::disk::Support,
    /// For gates.
    _gates: kapi::inflight::Support,
}

impl kernel::InPlaceModule for Bdsnap {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _gates: kapi::inflight::Support::new()?,
            _disks: kapi::disk::Support::new()?,
            _events: event::start()?,
            _registry: control::start()?,
            _control <- control::register(),
        }? Error)
    }
}
