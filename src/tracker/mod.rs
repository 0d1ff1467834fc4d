// SPDX-License-Identifier: GPL-2.0

//! Trackers: one for each origin. Look-up of origins, the gate, the write path.

mod intercept;
mod table;
mod watch;

pub(crate) use intercept::Intercept;
pub(crate) use table::mark_on_disk;
pub(crate) use table::set_table;
pub(crate) use table::Table;
pub(crate) use watch::Watch;

use crate::cbt::Aside;
use crate::cbt::Kinds;
use crate::cbt::Map;
use crate::cow;
use crate::cow::Chain;
use crate::cow::Free;
use crate::cow::Recorder;
use crate::cow::Versions;
use crate::event;
use crate::kapi::abi;
use crate::kapi::bdev::BlockDevice;
use crate::kapi::bdev::Dev;
use crate::kapi::bdev::DiskId;
use crate::kapi::bio::Parked;
use crate::kapi::bio::ParkedList;
use crate::kapi::inflight::Held;
use crate::kapi::inflight::HeldList;
use crate::kapi::inflight::Inflight;
use crate::kapi::noio;
use crate::kapi::queue::OwnedQueue;
use crate::kapi::rcu::RcuCell;
use crate::kapi::run::Run;
use crate::kapi::run::RunOwner;
use crate::kapi::run::RunStack;
use crate::kapi::time;
use bdsnap_logic::calls::Calls;
use bdsnap_logic::kind::Change;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::ops::Deref;
use core::ops::DerefMut;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::new_mutex;
use kernel::new_spinlock;
use kernel::new_work;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;
use kernel::sync::Mutex;
use kernel::sync::MutexGuard;
use kernel::sync::SpinLock;
use kernel::workqueue::impl_has_work;
use kernel::workqueue::Work;
use kernel::workqueue::WorkItem;

/// Writes on their way between the hook and the workers.
struct Arrivals {
    /// Counted, waiting for a copy.
    held: HeldList,
    /// Not counted: the gate was closed.
    gate: ParkedList,
    /// Not counted: there was no memory to count them.
    starved: ParkedList,
    /// Ready to be submitted.
    released: ParkedList,
}

/// The tracker of one origin.
#[pin_data]
pub(crate) struct Tracker {
    /// The origin.
    pub(crate) device: BlockDevice,
    /// Its sectors on its disk.
    span: Span<Sectors>,
    /// Its medium when tracking began.
    medium: u64,
    /// Why its generation has ended, `BDSNAP_CAUSE_*`; 0: it goes on.
    ended: AtomicU32,
    /// Whether that has been told.
    told: AtomicBool,
    /// UUID of the change map's life.
    pub(crate) generation: [u8; 16],
    /// The change map.
    #[pin]
    pub(crate) map: Map,
    /// The gate, and the writes in flight.
    pub(crate) inflight: KBox<Inflight>,
    /// The versions, for those who take no lock.
    pub(crate) versions: RcuCell<Versions>,
    /// Told when there is something to give back.
    on_remains: fn(),
    /// What was free at the last cut, if that was recorded.
    pub(crate) last_free: RcuCell<Arc<Free>>,
    /// Records writes, if somebody has asked for it.
    pub(crate) recorder: RcuCell<Recorder>,
    /// Held by who marks with no gate to hold him up, and at a cut.
    #[pin]
    marking: Mutex<()>,
    /// Calls for its works.
    calls: AllCalls,
    /// Writes that the hook took.
    #[pin]
    arrivals: SpinLock<Arrivals>,
    /// Runs whose I/O has ended.
    pub(crate) done: RunStack<Tracker>,
    /// The versions, and where their data is.
    #[pin]
    chain: Mutex<Chain>,
    /// Bytes copied on write.
    copied: AtomicU64,
    /// Writes that had to wait.
    parked: AtomicU64,
    /// Runs [`cow::work`].
    #[pin]
    copying: Work<Tracker, 0>,
    /// Submits released writes: apart from the copying, since it may be held up below (a throttled
    /// cgroup), and the copying must not be.
    #[pin]
    releasing: Work<Tracker, 1>,
    /// Sees that the copying gets on while writes wait for it.
    #[pin]
    watching: Work<Tracker, 2>,
    /// Writes to the stores: apart from the copying and the releasing, since a store's disk may hold
    /// it up.
    #[pin]
    storing: Work<Tracker, 3>,
    /// Where these run.
    pub(crate) queues: Arc<Queues>,
    /// Where the watching does, which sleeps.
    idle: Arc<OwnedQueue>,
}

/// A locked [`Chain`].
pub(crate) struct ChainGuard<'a> {
    /// Unlocked first.
    chain: MutexGuard<'a, Chain>,
    /// Ended then.
    _noio: noio::Scope,
}

impl Deref for ChainGuard<'_> {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        &self.chain
    }
}

impl DerefMut for ChainGuard<'_> {
    fn deref_mut(&mut self) -> &mut Chain {
        &mut self.chain
    }
}

impl_has_work! {
    impl HasWork<Tracker, 0> for Tracker { self.copying }
    impl HasWork<Tracker, 1> for Tracker { self.releasing }
    impl HasWork<Tracker, 2> for Tracker { self.watching }
    impl HasWork<Tracker, 3> for Tracker { self.storing }
}

impl WorkItem<0> for Tracker {
    type Pointer = Arc<Tracker>;

    fn run(this: Arc<Tracker>) {
        if this.calls.copying.answer(|| cow::work(&this)) {
            this.queue_copying();
        }
    }
}

impl WorkItem<1> for Tracker {
    type Pointer = Arc<Tracker>;

    fn run(this: Arc<Tracker>) {
        if this.calls.releasing.answer(|| this.submit_released()) {
            this.queue_releasing();
        }
    }
}

impl WorkItem<2> for Tracker {
    type Pointer = Arc<Tracker>;

    fn run(this: Arc<Tracker>) {
        cow::watch(&this);
    }
}

impl WorkItem<3> for Tracker {
    type Pointer = Arc<Tracker>;

    fn run(this: Arc<Tracker>) {
        if this.calls.storing.answer(|| cow::store(&this)) {
            this.queue_storing();
        }
    }
}

/// Calls for the works of an origin that are called all the time.
struct AllCalls {
    copying: Calls,
    releasing: Calls,
    storing: Calls,
}

/// Where the works of an origin run: one queue for each of them, with a thread that is there when
/// there is no memory for more. Works of a queue then run one after the other, so none may be in
/// one with a work that it waits for: a write to an md array that is released waits for one to a
/// member disk, which may be tracked, too.
pub(crate) struct Queues {
    copying: OwnedQueue,
    releasing: OwnedQueue,
    storing: OwnedQueue,
}

impl Queues {
    /// New ones. ENOMEM. Sleeps.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let queues = Self {
            copying: OwnedQueue::new(c"bdsnap_copy", true)?,
            releasing: OwnedQueue::new(c"bdsnap_release", true)?,
            storing: OwnedQueue::new(c"bdsnap_store", true)?,
        };
        Ok(Arc::new(queues, GFP_KERNEL)?)
    }

    /// Waits for what is queued or running. Sleeps.
    pub(crate) fn flush(&self) {
        // A work that has been called often enough while it ran queues itself again, which may be
        // after the first of these has begun.
        for _ in 0..2 {
            self.copying.flush();
            self.storing.flush();
            self.releasing.flush();
        }
    }
}

impl RunOwner for Tracker {
    fn run_done(owner: Arc<Self>, run: Arc<Run<Self>>) {
        owner.done.push(run);
        owner.kick();
    }
}

impl Tracker {
    /// A tracker for `device`, with CBT blocks of `1 << block_shift` sectors, in a new generation.
    /// Nothing is tracked until it is in the [`Table`]. `on_remains` is called, where it may sleep, by
    /// [`Tracker::has_remains`]. ENOMEM. May sleep.
    pub(crate) fn new(
        device: BlockDevice,
        block_shift: u32,
        queues: Arc<Queues>,
        idle: Arc<OwnedQueue>,
        on_remains: fn(),
    ) -> Result<Arc<Self>> {
        let sectors = device.sectors();
        let span = Span::of_len(device.start_sector(), sectors).ok_or(EINVAL)?;
        let kinds = Kinds::new(sectors, block_shift)?;
        let inflight = Inflight::new(kinds.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                medium: device.medium(),
                ended: AtomicU32::new(0),
                told: AtomicBool::new(false),
                device,
                span,
                generation: abi::random_uuid(),
                map <- Map::new(sectors, kinds),
                inflight,
                versions: RcuCell::empty(),
                on_remains,
                last_free: RcuCell::empty(),
                recorder: RcuCell::empty(),
                marking <- new_mutex!(()),
                calls: AllCalls {
                    copying: Calls::new(),
                    releasing: Calls::new(),
                    storing: Calls::new(),
                },
                arrivals <- new_spinlock!(Arrivals {
                    held: HeldList::new(),
                    gate: ParkedList::new(),
                    starved: ParkedList::new(),
                    released: ParkedList::new(),
                }),
                done: RunStack::new(),
                chain <- new_mutex!(Chain::new()),
                copied: AtomicU64::new(0),
                parked: AtomicU64::new(0),
                copying <- new_work!("bdsnap::copying"),
                releasing <- new_work!("bdsnap::releasing"),
                watching <- new_work!("bdsnap::watching"),
                storing <- new_work!("bdsnap::storing"),
                queues,
                idle,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Its device number.
    pub(crate) fn dev(&self) -> Dev {
        self.device.dev()
    }

    /// Its disk.
    pub(crate) fn disk(&self) -> DiskId {
        self.device.disk()
    }

    /// Its sectors on its disk.
    pub(crate) fn span(&self) -> Span<Sectors> {
        self.span
    }

    /// Its size in sectors, as it was when tracking began.
    pub(crate) fn sectors(&self) -> u64 {
        self.span.len()
    }

    /// Whether it is a whole disk (or a partition that begins where its disk does).
    fn is_whole_disk(&self) -> bool {
        self.span.start() == 0
    }

    /// Ends its generation: changes may be missed from here on, or have been. With `fatal` its
    /// images can't be trusted any more, either. The first cause stays. Any context.
    pub(crate) fn end(self: &Arc<Self>, cause: u32, fatal: bool) {
        let first = self
            .ended
            .compare_exchange(0, cause, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok();
        if fatal {
            // Who makes a version now looks at `ended` after it is in the list.
            let guard = rcu::read_lock();
            if let Some(versions) = self.versions.read(&guard) {
                versions.fail(cause);
            }
        }
        if first || fatal {
            self.kick();
        }
    }

    /// Whether its medium is still in its disk. If it is not, what is read from there is another
    /// disk's: its generation and its images end. Any context.
    pub(crate) fn has_medium(self: &Arc<Self>) -> bool {
        let same = self.device.medium() == self.medium;
        if !same {
            self.end(abi::BDSNAP_CAUSE_ORIGIN_GONE, true);
        }
        same
    }

    /// Why its generation has ended, `BDSNAP_CAUSE_*`; 0: it goes on. Looks at the device, too:
    /// whether it is there, and of the size, at the place and with the medium it had.
    pub(crate) fn ended(self: &Arc<Self>) -> u32 {
        if !self.device.is_live() {
            self.end(abi::BDSNAP_CAUSE_ORIGIN_GONE, true);
        } else if self.has_medium() {
            let (sectors, start) = (self.device.sectors(), self.device.start_sector());
            if sectors != self.span.len() || start != self.span.start() {
                let grown = sectors > self.span.len() && start == self.span.start();
                self.end(abi::BDSNAP_CAUSE_RESIZED, !grown);
            }
        }
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether no copy of it is on its way, to memory or to a store.
    pub(crate) fn is_idle(&self) -> bool {
        let guard = rcu::read_lock();
        self.versions.read(&guard).is_none_or(Versions::are_idle)
    }

    /// Posts an event about it; `snapshot` and `number` where it is about one. May sleep.
    pub(crate) fn tell(&self, kind: u32, cause: u32, snapshot: [u8; 16], number: u64) {
        let mut event = event::of_origin(kind, self.dev(), &self.device.name(), self.generation);
        event.cause = cause;
        event.snapshot = snapshot;
        event.number = number;
        event::post(event);
    }

    /// A version that has failed, or an image of one that is gone, waits to be given back.
    pub(crate) fn has_remains(&self) {
        (self.on_remains)();
    }

    /// Tells the end of its generation, once. May sleep.
    pub(crate) fn tell_end(&self) {
        let cause = self.ended.load(Ordering::SeqCst);
        if cause != 0 && !self.told.swap(true, Ordering::Relaxed) {
            self.tell(abi::BDSNAP_EVENT_ORIGIN_ENDED, cause, [0; 16], 0);
        }
    }

    /// Marks sectors as changed. Sleeps.
    pub(crate) fn mark(&self, span: Span<Sectors>) {
        self.mark_in_steps(span, |part, recorder, aside| {
            if let Some(recorder) = recorder {
                recorder.written(part);
            }
            self.map.mark(Change::Write, part, aside);
        });
    }

    /// Marks sectors as changed that are free in the next cut and were not in the last, or the other way
    /// round. Sleeps.
    pub(crate) fn mark_free(&self, span: Span<Sectors>, is_free: bool) {
        let change = if is_free {
            Change::Discard
        } else {
            Change::Write
        };
        let all = Span::of_len(0, self.sectors()).unwrap_or(Span::EMPTY);
        self.mark_in_steps(span.intersect(all), |part, recorder, aside| {
            if let Some(recorder) = recorder {
                recorder.marked(part);
            }
            self.map.mark(change, part, aside);
            if is_free {
                self.map.unwanted(part);
            }
        });
    }

    /// Calls `step` for one part of `span` after the other, with what records writes and the newest
    /// version's view: neither changes meanwhile, nor does the mark. (The gate sees to that for writes.)
    fn mark_in_steps(
        &self,
        span: Span<Sectors>,
        step: impl Fn(Span<Sectors>, Option<&Recorder>, Option<Aside<'_>>),
    ) {
        /// Sectors that are marked at a time.
        const STEP: u64 = 1 << 21;
        let mut rest = span;
        while !rest.is_empty() {
            let (part, others) = rest.split_at(rest.start().saturating_add(STEP));
            let _marking = self.marking.lock();
            let guard = rcu::read_lock();
            let versions = self.versions.read(&guard);
            let aside = versions.and_then(Versions::aside);
            step(part, self.recorder.read(&guard), aside);
            rest = others;
        }
    }

    /// Keeps marks that no gate holds up from coming in between the steps of a cut. Sleeps; nothing is
    /// waited for under it.
    pub(crate) fn no_marks(&self) -> MutexGuard<'_, ()> {
        self.marking.lock()
    }

    /// Locks the chain. May sleep; until it is unlocked, allocations start no I/O, which might be
    /// this origin's.
    pub(crate) fn lock_chain(&self) -> ChainGuard<'_> {
        let noio = noio::Scope::enter();
        ChainGuard {
            chain: self.chain.lock(),
            _noio: noio,
        }
    }

    /// Gets the copying worker going. Any context.
    pub(crate) fn kick(self: &Arc<Self>) {
        if self.calls.copying.call() {
            self.queue_copying();
        }
    }

    /// Queues the copying worker.
    fn queue_copying(self: &Arc<Self>) {
        // An error means that it is queued already.
        let _ = self.queues.copying.queue().enqueue::<_, 0>(self.clone());
    }

    /// Gets the watching going. Any context.
    pub(crate) fn kick_watch(self: &Arc<Self>) {
        let _ = self.idle.queue().enqueue::<_, 2>(self.clone());
    }

    /// Gets the releasing worker going. Any context.
    fn kick_release(self: &Arc<Self>) {
        if self.calls.releasing.call() {
            self.queue_releasing();
        }
    }

    /// Queues the releasing worker.
    fn queue_releasing(self: &Arc<Self>) {
        let _ = self.queues.releasing.queue().enqueue::<_, 1>(self.clone());
    }

    /// Gets the writing to stores going. Any context.
    pub(crate) fn kick_store(self: &Arc<Self>) {
        if self.calls.storing.call() {
            self.queue_storing();
        }
    }

    /// Queues the writing to stores.
    fn queue_storing(self: &Arc<Self>) {
        let _ = self.queues.storing.queue().enqueue::<_, 3>(self.clone());
    }

    /// A write that waits for a copy.
    fn hold(self: &Arc<Self>, held: Held) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        self.arrivals.lock().held.push(held);
        self.kick();
    }

    /// Takes what waits for copies.
    pub(crate) fn take_held(&self) -> HeldList {
        self.arrivals.lock().held.take_all()
    }

    /// A write that met the closed gate.
    fn park_at_gate(self: &Arc<Self>, bio: Parked) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        self.arrivals.lock().gate.push(bio);
        // The gate may have been opened, and its list emptied, in between.
        if !self.inflight.is_closed() {
            self.kick_release();
        }
    }

    /// A write that could not be counted.
    fn park_starved(self: &Arc<Self>, bio: Parked) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        self.arrivals.lock().starved.push(bio);
        self.kick_release();
    }

    /// Lets writes go whose old data is safe.
    pub(crate) fn release(self: &Arc<Self>, mut writes: ParkedList) {
        if writes.is_empty() {
            return;
        }
        let mut arrivals = self.arrivals.lock();
        while let Some(bio) = writes.pop() {
            arrivals.released.push(bio);
        }
        drop(arrivals);
        self.kick_release();
    }

    /// Opens the gate, and lets those go that wait there.
    pub(crate) fn open_gate(self: &Arc<Self>) {
        self.inflight.open();
        self.kick_release();
    }

    /// Submits what has been released, and what waits at a gate that is open.
    fn submit_released(&self) {
        loop {
            let (mut released, mut starved) = {
                let mut arrivals = self.arrivals.lock();
                let mut released = arrivals.released.take_all();
                if !self.inflight.is_closed() {
                    while let Some(bio) = arrivals.gate.pop() {
                        released.push(bio);
                    }
                }
                (released, arrivals.starved.take_all())
            };
            if released.is_empty() && starved.is_empty() {
                return;
            }
            crate::kapi::run::plugged(|| {
                while let Some(bio) = released.pop() {
                    bio.submit();
                }
            });
            // Never wait for memory here: it may come from those that are to be released.
            if starved.is_empty() {
                continue;
            }
            while self.inflight.has_memory() {
                match starved.pop() {
                    Some(bio) => bio.submit(),
                    None => break,
                }
            }
            if !starved.is_empty() {
                self.arrivals.lock().starved.prepend(starved);
                time::sleep_us(1000);
            }
        }
    }

    /// Counts copied bytes.
    pub(crate) fn count_copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes copied, and writes that had to wait, since tracking began.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (
            self.copied.load(Ordering::Relaxed),
            self.parked.load(Ordering::Relaxed),
        )
    }
}
