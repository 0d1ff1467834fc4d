// SPDX-License-Identifier: GPL-2.0

//! Gives back at once what failed snapshots have: what their images could show is gone, and only
//! older snapshots may still read what they copied. And removes images of deleted snapshots when they are
//! closed.

use super::Registry;
use super::Snapshot;
use super::State;
use super::REGISTRY;
use crate::cow;
use crate::cow::Damage;
use crate::image::Image;
use crate::kapi::time;
use kernel::new_work;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::impl_has_work;
use kernel::workqueue::Work;
use kernel::workqueue::WorkItem;

/// How often is looked whether the last copies are over, microseconds.
const PAUSE_US: i64 = 100_000;

/// The work.
#[pin_data]
pub(super) struct Janitor {
    #[pin]
    work: Work<Janitor>,
}

impl_has_work! {
    impl HasWork<Janitor> for Janitor { self.work }
}

impl Janitor {
    /// It is called by [`call`].
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            work <- new_work!("bdsnap::janitor"),
        })
    }
}

impl WorkItem for Janitor {
    type Pointer = Arc<Janitor>;

    fn run(_this: Arc<Janitor>) {
        // The registry waits for this work before it goes.
        while let Some(registry) = REGISTRY.get() {
            if registry.clean_up() {
                return;
            }
            time::sleep_us(PAUSE_US);
        }
    }
}

/// A version has failed, or an image of a deleted snapshot has been closed.
pub(super) fn call() {
    if let Some(registry) = REGISTRY.get() {
        // An error means that it is queued already.
        let _ = registry.idle.queue().enqueue(registry.janitor.clone());
    }
}

impl Registry {
    /// Gives back what failed snapshots have, and what remains of deleted ones; whether there is nothing
    /// left to wait for.
    fn clean_up(&self) -> bool {
        let mut state = self.state.lock();
        state.remains.retain(|image| image.openers() > 0);
        let State { snapshots, .. } = &mut *state;
        let failed = snapshots.iter_mut();
        let failed = failed.filter(|s| s.store.is_some() && s.has_failed());
        let mut all = true;
        for snapshot in failed {
            // (A read may hold the store; those that come now fail at once.)
            let is_idle = |i: &Image| i.version().is_idle() && !i.is_being_read();
            let idle = snapshot.images.iter().all(is_idle);
            if idle {
                snapshot.give_up();
            }
            all &= idle;
        }
        all
    }
}

impl Snapshot {
    /// Whether all its versions have failed.
    pub(super) fn has_failed(&self) -> bool {
        let failed = |damage| matches!(damage, Damage::All(_));
        self.images.iter().all(|i| failed(i.version().damage()))
    }

    /// Takes its versions out of their chains, which hands older ones what they need, and lets go
    /// of its store. Sleeps.
    fn give_up(&mut self) {
        for image in self.images.iter() {
            cow::remove(image.tracker(), image.version());
            image.version().give_up_store();
        }
        if let Some(store) = self.store.take() {
            // Others may still use slots of it.
            store.mark_changed();
        }
    }
}
