// SPDX-License-Identifier: GPL-2.0

//! Control: the registry of all objects, and the ioctls on them.

mod changes;
mod create;
mod delete;
mod freeze;
mod janitor;
mod list;
mod record;
mod release;
mod session;
mod track;

pub(crate) use session::register;
pub(crate) use session::Session;

use crate::image::Image;
use crate::kapi::abi::ModuleRef;
use crate::kapi::bdev::Dev;
use crate::kapi::global::Global;
use crate::kapi::global::GlobalGuard;
use crate::kapi::hook::Hook;
use crate::kapi::power::PowerWatch;
use crate::kapi::queue::OwnedQueue;
use crate::kapi::sentry::Sentry;
use crate::kapi::stray::Strays;
use crate::store::Place;
use crate::store::Store;
use crate::tracker::Intercept;
use crate::tracker::Queues;
use crate::tracker::Tracker;
use crate::tracker::Watch;
use core::sync::atomic::AtomicU64;
use janitor::Janitor;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::Mutex;

/// A snapshot.
pub(super) struct Snapshot {
    /// Its UUID.
    id: [u8; 16],
    /// `CLOCK_REALTIME` of the cut, in nanoseconds.
    created_ns: u64,
    /// Its versions' images, in the order of creation.
    images: KVec<Image>,
    /// Its store. None: it has failed, and its store is given back.
    store: Option<Arc<Store>>,
    /// The session that it ends with; None: kept.
    owner: Option<u64>,
    /// What its maker left for whoever serves its store.
    note: KVVec<u8>,
}

/// A store that waits for its snapshot.
struct Spare {
    /// Its handle.
    handle: u64,
    /// The session that it ends with.
    owner: u64,
    /// The store.
    store: Arc<Store>,
}

/// What is there while anything is tracked.
struct Hooked {
    /// What sees requests that pass the hook by, and disks change or go.
    _sentry: Sentry<Watch>,
    /// What sees writes go on that a cgroup's limit held back; once a disk has been tracked for which
    /// there may be some.
    strays: Option<Strays<Watch>>,
    /// What hears of hibernation.
    _power: PowerWatch<Watch>,
    /// The hook.
    _hook: Hook<Intercept>,
    /// Keeps the module.
    _module: ModuleRef,
}

/// All objects.
struct State {
    /// The origins, in the order of tracking.
    trackers: KVec<Arc<Tracker>>,
    /// The snapshots, oldest first.
    snapshots: KVec<Snapshot>,
    /// Images of snapshots that are gone, which somebody has open: they answer EIO until they are closed.
    remains: KVec<Image>,
    /// Trackers that were replaced while writes that they counted were in flight.
    dying: KVec<Arc<Tracker>>,
    /// Stores without a snapshot.
    spares: KVec<Spare>,
    /// Where all stores are, those included that live on without a snapshot.
    places: KVec<Arc<Place>>,
    /// Where the works of trackers run, also of those to come.
    queues: KVec<Arc<Queues>>,
    /// The next handle of a store.
    next_handle: u64,
    /// The session that serves stores.
    server: Option<u64>,
    /// The hook, while there is an origin.
    hooked: Option<Hooked>,
}

/// The registry: one lock around all that ioctls do.
#[pin_data(PinnedDrop)]
pub(crate) struct Registry {
    /// The objects.
    #[pin]
    state: Mutex<State>,
    /// Where images read again.
    queue: Arc<OwnedQueue>,
    /// Where file systems are frozen: they wait for all kinds of other work.
    freezing: OwnedQueue,
    /// Where works sleep that look at something now and then.
    idle: Arc<OwnedQueue>,
    /// Gives back what failed snapshots have, and what remains of deleted ones.
    janitor: Arc<Janitor>,
    /// The next session's number.
    next_session: AtomicU64,
}

#[pinned_drop]
impl PinnedDrop for Registry {
    fn drop(self: Pin<&mut Self>) {
        // The last steps of works of trackers that are gone: they hold references to the queues.
        self.idle.flush();
        self.queue.flush();
        let state = self.state.lock();
        state.queues.iter().for_each(|q| q.flush());
    }
}

/// The registry, while the module is loaded.
static REGISTRY: Global<Registry> = Global::new();

/// Makes the registry. ENOMEM.
pub(crate) fn start() -> Result<GlobalGuard<Registry>> {
    let queue = Arc::new(OwnedQueue::new(c"bdsnap", true)?, GFP_KERNEL)?;
    let freezing = OwnedQueue::new(c"bdsnap_freeze", false)?;
    let idle = Arc::new(OwnedQueue::new(c"bdsnap_idle", false)?, GFP_KERNEL)?;
    let janitor = Arc::pin_init(Janitor::new(), GFP_KERNEL)?;
    let registry = Arc::pin_init(
        pin_init!(Registry {
            state <- new_mutex!(State {
                trackers: KVec::new(),
                snapshots: KVec::new(),
                remains: KVec::new(),
                dying: KVec::new(),
                spares: KVec::new(),
                places: KVec::new(),
                queues: KVec::new(),
                next_handle: 1,
                server: None,
                hooked: None,
            }),
            queue,
            freezing,
            idle,
            janitor,
            next_session: AtomicU64::new(1),
        }),
        GFP_KERNEL,
    )?;
    REGISTRY.set(registry)
}

impl State {
    /// The tracker of a device.
    fn tracker(&self, dev: Dev) -> Option<&Arc<Tracker>> {
        self.trackers.iter().find(|t| t.dev() == dev)
    }

    /// Lets trackers go whose writes have all completed, and with the last one the hook.
    fn reap(&mut self) {
        self.dying.retain(|t| !t.inflight.is_drained());
        if self.trackers.is_empty() && self.dying.is_empty() {
            self.hooked = None;
        }
    }

    /// Whether writes to a device are in flight that its tracker doesn't count.
    fn has_strays(&self, dev: Dev) -> bool {
        self.dying.iter().any(|t| t.dev() == dev)
    }

    /// Queues for the works of a new tracker: not those of one that there is. They stay for the
    /// next one, since who lets them go would wait for works. ENOMEM. Sleeps.
    fn free_queues(&mut self) -> Result<Arc<Queues>> {
        let is_used = |queues: &Arc<Queues>| {
            let mut trackers = Iterator::chain(self.trackers.iter(), self.dying.iter());
            trackers.any(|t| Arc::ptr_eq(&t.queues, queues))
        };
        if let Some(free) = self.queues.iter().find(|q| !is_used(q)) {
            return Ok(free.clone());
        }
        self.queues.reserve(1, GFP_KERNEL)?;
        let queues = Queues::new()?;
        self.queues.push(queues.clone(), GFP_KERNEL)?;
        Ok(queues)
    }

    /// The image with a device number.
    fn image(&self, dev: Dev) -> Option<&Image> {
        self.snapshots
            .iter()
            .flat_map(|s| s.images.iter())
            .find(|i| i.dev == dev)
    }

    /// Where on disks there are stores.
    fn places(&self) -> impl Iterator<Item = &Arc<Place>> {
        self.places.iter().filter(|p| !p.is_gone())
    }
}
