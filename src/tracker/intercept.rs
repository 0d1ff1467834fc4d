// SPDX-License-Identifier: GPL-2.0

//! The write path: what happens to a bio in the hook.
//!
//! In the common case (gate open, all granules kept or no snapshot) all is done here: count, mark,
//! look at the kept bits. In the other one the bio is taken and the worker sees to it.

use super::table;
use super::Tracker;
use crate::kapi::bio::Submitted;
use crate::kapi::hook::Interceptor;
use crate::kapi::inflight::Admission;
use crate::kapi::trace;
use crate::kapi::trace::Parked as Why;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use kernel::sync::rcu;
use kernel::sync::Arc;

/// What the hook calls.
pub(crate) struct Intercept;

impl Interceptor for Intercept {
    type Owner = Tracker;

    #[inline]
    fn submitted(bio: &mut Submitted<'_>) {
        let guard = rcu::read_lock();
        let Some(table) = table::table(&guard) else {
            return;
        };
        let disk = bio.disk();
        let span = bio.on_disk();
        for (tracker, part) in table.touched(disk, span) {
            if !let_pass(tracker, bio, part, &guard) {
                return;
            }
        }
    }
}

/// Sees to a write to `span` of an origin; whether it may go on to the next.
#[inline]
fn let_pass(
    tracker: &Arc<Tracker>,
    bio: &mut Submitted<'_>,
    span: Span<Sectors>,
    guard: &rcu::Guard,
) -> bool {
    if tracker.inflight.holds(bio) {
        // It comes by for the second time.
        return true;
    }
    let nowait = bio.is_nowait();
    let ticket = match tracker.inflight.admit() {
        Admission::Admitted(ticket) => ticket,
        Admission::Closed | Admission::Starved if nowait => {
            bio.refuse_to_wait();
            return false;
        }
        Admission::Closed => {
            trace::park(tracker.dev(), span.start(), span.len(), Why::Gate);
            if let Some(parked) = bio.take() {
                tracker.park_at_gate(parked);
            }
            return false;
        }
        Admission::Starved => {
            trace::park(tracker.dev(), span.start(), span.len(), Why::Memory);
            if let Some(parked) = bio.take() {
                tracker.park_starved(parked);
            }
            return false;
        }
    };
    // Only now, counted and with the gate seen open, are version and map those of this write.
    if let Some(recorder) = tracker.recorder.read(guard) {
        recorder.written(span);
    }
    let versions = tracker.versions.read(guard);
    let must_copy = versions.is_some_and(|v| v.may_need(span));
    if must_copy && nowait {
        drop(ticket);
        bio.refuse_to_wait();
        return false;
    }
    tracker
        .map
        .mark(bio.change(), span, versions.and_then(|v| v.aside()));
    if !must_copy {
        ticket.pass(bio, span);
        return true;
    }
    trace::park(tracker.dev(), span.start(), span.len(), Why::Copy);
    if let Some(held) = ticket.hold(bio, span) {
        tracker.hold(held);
    }
    false
}
