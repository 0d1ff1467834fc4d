// SPDX-License-Identifier: GPL-2.0

//! What ends a generation: writes that the hook did not see, disks that change or go, hibernation.

use super::table;
use super::Tracker;
use crate::kapi::abi;
use crate::kapi::bdev::DiskId;
use crate::kapi::bio::Submitted;
use crate::kapi::power::Sleeper;
use crate::kapi::sentry::Watcher;
use crate::kapi::stray::StrayWatcher;
use kernel::sync::rcu;
use kernel::sync::Arc;

/// Who is told.
pub(crate) struct Watch;

/// Calls `with` for all trackers, or those on a disk.
fn each(disk: Option<DiskId>, mut with: impl FnMut(&Arc<Tracker>)) {
    let guard = rcu::read_lock();
    if let Some(table) = table::table(&guard) {
        table.trackers(disk).for_each(&mut with);
    }
}

impl Watcher for Watch {
    fn bypassed(disk: Option<DiskId>, cloned: bool) {
        let cause = if cloned {
            abi::BDSNAP_CAUSE_REQUEST_DM
        } else {
            abi::BDSNAP_CAUSE_PASSTHROUGH
        };
        each(disk, |tracker| {
            if disk.is_some() || tracker.device.is_nvme_head() {
                tracker.end(cause, true);
            }
        });
    }

    fn resized(disk: DiskId, sectors: u64) {
        each(Some(disk), |tracker| {
            let (span, is_whole) = (tracker.span(), tracker.is_whole_disk());
            if sectors < span.end() {
                // What was behind the new end may come back as something else.
                tracker.end(abi::BDSNAP_CAUSE_RESIZED, true);
            } else if is_whole && sectors != span.len() {
                tracker.end(abi::BDSNAP_CAUSE_RESIZED, false);
            }
        });
    }

    fn removed(disk: DiskId) {
        each(Some(disk), |tracker| {
            tracker.end(abi::BDSNAP_CAUSE_ORIGIN_GONE, true);
        });
    }
}

impl StrayWatcher for Watch {
    type Owner = Tracker;

    fn goes_on(bio: &Submitted<'_>) {
        let guard = rcu::read_lock();
        let Some(table) = table::table(&guard) else {
            return;
        };
        for (tracker, _) in table.touched(bio.disk(), bio.on_disk()) {
            // All that came by since tracking began is counted there.
            if !tracker.inflight.holds(bio) {
                tracker.end(abi::BDSNAP_CAUSE_STRAY, true);
            }
        }
    }
}

impl Sleeper for Watch {
    fn hibernating() {
        each(None, |tracker| {
            tracker.end(abi::BDSNAP_CAUSE_HIBERNATED, true);
        });
    }
}
