// SPDX-License-Identifier: GPL-2.0

//! Events: what happened, for whoever listens. The lists tell the state; events only say that it
//! is worth a look.

use crate::kapi::abi;
use crate::kapi::bdev::Dev;
use crate::kapi::bdev::NAME_LEN;
use crate::kapi::global::Global;
use crate::kapi::global::GlobalGuard;
use crate::kapi::stream;
use crate::kapi::stream::Stream;
use crate::kapi::time;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::fs::File;
use kernel::new_mutex;
use kernel::new_poll_condvar;
use kernel::prelude::*;
use kernel::sync::poll::PollCondVar;
use kernel::sync::poll::PollTable;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::sync::Mutex;
use kernel::uaccess::UserSliceWriter;

/// How many are kept.
const KEPT: u64 = abi::BDSNAP_MAX_EVENTS as u64;
/// How many are handed out at a time.
const BATCH: usize = 8;

/// The last events, by sequence number modulo [`KEPT`].
struct Ring {
    /// The events.
    events: KVec<abi::bdsnap_event>,
    /// The sequence number of the next one.
    next: u64,
}

impl Ring {
    /// The event with a sequence number, if it is there (still, or already).
    fn get(&self, sequence: u64) -> Option<&abi::bdsnap_event> {
        self.events
            .get((sequence % KEPT) as usize)
            .filter(|e| e.sequence == sequence)
    }
}

/// All events. Its lock is taken under any other, and holds up nobody but readers.
#[pin_data]
pub(crate) struct Events {
    /// The events.
    #[pin]
    ring: Mutex<Ring>,
    /// Readers wait here.
    #[pin]
    news: PollCondVar,
}

/// The events, while the module is loaded.
static EVENTS: Global<Events> = Global::new();

/// Sets all up. ENOMEM.
pub(crate) fn start() -> Result<GlobalGuard<Events>> {
    let mut events = KVec::with_capacity(KEPT as usize, GFP_KERNEL)?;
    for _ in 0..KEPT {
        events.push(abi::bdsnap_event::default(), GFP_KERNEL)?;
    }
    let events = Arc::pin_init(
        pin_init!(Events {
            // (zeroed elements have the number 0: the first event gets 1)
            ring <- new_mutex!(Ring { events, next: 1 }),
            news <- new_poll_condvar!("bdsnap::events"),
        }),
        GFP_KERNEL,
    )?;
    EVENTS.set(events)
}

/// An event about an origin, to be completed and posted.
pub(crate) fn of_origin(
    kind: u32,
    dev: Dev,
    name: &[u8; NAME_LEN],
    generation: [u8; 16],
) -> abi::bdsnap_event {
    let mut event = abi::bdsnap_event {
        type_: kind,
        major: dev.major(),
        minor: dev.minor(),
        generation,
        ..Default::default()
    };
    for (to, from) in event.name.iter_mut().zip(name) {
        *to = *from as kernel::ffi::c_char;
    }
    event
}

/// Posts an event. May sleep.
pub(crate) fn post(mut event: abi::bdsnap_event) {
    let Some(events) = EVENTS.get() else {
        return;
    };
    let mut ring = events.ring.lock();
    event.sequence = ring.next;
    event.time_ns = time::realtime_ns();
    ring.next += 1;
    if let Some(place) = ring.events.get_mut((event.sequence % KEPT) as usize) {
        *place = event;
    }
    drop(ring);
    events.news.notify_all();
}

/// A new file that delivers all events from now on. EMFILE, ENOMEM.
pub(crate) fn open() -> Result<i32> {
    let events: Arc<Events> = EVENTS.get().ok_or(ENODEV)?.into();
    let next = events.ring.lock().next;
    let reader = Reader {
        events,
        next: AtomicU64::new(next),
    };
    stream::open(c"[bdsnap-events]", Arc::new(reader, GFP_KERNEL)?)
}

/// An open file.
struct Reader {
    /// All events.
    events: Arc<Events>,
    /// The sequence number that it gets next; changed under the ring's lock.
    next: AtomicU64,
}

impl Reader {
    /// What is next for this reader, at most `room` events.
    fn take(&self, ring: &Ring, room: usize) -> ([abi::bdsnap_event; BATCH], usize) {
        let mut batch = [abi::bdsnap_event::default(); BATCH];
        let mut n = 0;
        let mut at = self.next.load(Ordering::Relaxed);
        let oldest = ring.next.saturating_sub(KEPT).max(1);
        for place in batch.iter_mut().take(room) {
            if at < oldest {
                *place = abi::bdsnap_event {
                    sequence: oldest - 1,
                    time_ns: time::realtime_ns(),
                    type_: abi::BDSNAP_EVENT_LOST,
                    number: oldest - at,
                    ..Default::default()
                };
                at = oldest;
            } else if let Some(event) = ring.get(at) {
                *place = *event;
                at += 1;
            } else {
                break;
            }
            n += 1;
        }
        self.next.store(at, Ordering::Relaxed);
        (batch, n)
    }
}

impl Stream for Reader {
    fn read(this: ArcBorrow<'_, Self>, nonblock: bool, mut to: UserSliceWriter) -> Result<usize> {
        let size = size_of::<abi::bdsnap_event>();
        let room = to.len() / size;
        if room == 0 {
            return Err(EINVAL);
        }
        let mut ring = this.events.ring.lock();
        let (batch, n) = loop {
            let (batch, n) = this.take(&ring, room);
            if n > 0 {
                break (batch, n);
            }
            if nonblock {
                return Err(EAGAIN);
            }
            if this.events.news.wait_interruptible(&mut ring) {
                return Err(ERESTARTSYS);
            }
        };
        drop(ring);
        for event in batch.iter().take(n) {
            to.write(event)?;
        }
        Ok(n * size)
    }

    fn poll(this: ArcBorrow<'_, Self>, file: &File, table: PollTable<'_>) -> bool {
        table.register_wait(file, &this.events.news);
        let next = this.events.ring.lock().next;
        this.next.load(Ordering::Relaxed) < next
    }
}
