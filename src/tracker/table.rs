// SPDX-License-Identifier: GPL-2.0

//! The table of origins that the hook looks into.

use super::Tracker;
use crate::kapi::bdev::DiskId;
use crate::kapi::rcu::RcuCell;
use crate::kapi::rcu::Retired;
use bdsnap_logic::order;
use bdsnap_logic::range;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;

/// All trackers, sorted by disk; those of one disk in the order in which a bio meets them, as
/// [`order::is_met_before`] says: a whole disk before its partitions.
pub(crate) struct Table(KVec<Entry>);

/// One origin.
pub(super) struct Entry {
    /// Its disk.
    disk: DiskId,
    /// Its sectors there.
    span: Span<Sectors>,
    /// Its tracker.
    pub(super) tracker: Arc<Tracker>,
}

/// The table in force.
static TABLE: RcuCell<Table> = RcuCell::empty();

/// How many tables there have been, and one.
static TABLES: AtomicU64 = AtomicU64::new(1);

/// Puts a table in force; None: nothing is tracked. Dropping the result waits until nobody looks
/// at the old one.
pub(crate) fn set_table(table: Option<KBox<Table>>) -> Retired<Table> {
    let retired = TABLE.swap(table);
    TABLES.fetch_add(1, Ordering::SeqCst);
    retired
}

/// The table in force.
#[inline]
pub(super) fn table(guard: &rcu::Guard) -> Option<&Table> {
    TABLE.read(guard)
}

/// Marks sectors of a disk as changed in the map of each origin that they lie on. Sleeps.
pub(crate) fn mark_on_disk(disk: DiskId, span: Span<Sectors>) {
    let (mut seen, mut n) = (0, 0);
    loop {
        let guard = rcu::read_lock();
        // Before the table: where another one is in force by now, all is done again.
        let count = TABLES.load(Ordering::SeqCst);
        if count != seen {
            (seen, n) = (count, 0);
        }
        let nth = table(&guard).and_then(|t| t.touched(disk, span).nth(n));
        let nth = nth.map(|(tracker, part)| (tracker.clone(), part));
        drop(guard);
        let Some((tracker, part)) = nth else {
            return;
        };
        tracker.mark(part);
        n += 1;
    }
}

impl Table {
    /// The table of these trackers; None if there are none. ENOMEM. May sleep.
    pub(crate) fn of<'a>(
        trackers: impl Iterator<Item = &'a Arc<Tracker>>,
    ) -> Result<Option<KBox<Self>>> {
        let mut entries: KVec<Entry> = KVec::new();
        for tracker in trackers {
            let entry = Entry {
                disk: tracker.disk(),
                span: tracker.span(),
                tracker: tracker.clone(),
            };
            entries.reserve(1, GFP_KERNEL)?;
            let before = |e: &Entry| {
                e.disk < entry.disk
                    || e.disk == entry.disk && !order::is_met_before(entry.span, e.span)
            };
            let at = entries.iter().take_while(|e| before(e)).count();
            entries
                .insert_within_capacity(at, entry)
                .map_err(|_| ENOMEM)?;
        }
        if entries.is_empty() {
            return Ok(None);
        }
        Ok(Some(KBox::new(Self(entries), GFP_KERNEL)?))
    }

    /// The origins on a disk.
    #[inline]
    fn on_disk(&self, disk: DiskId) -> &[Entry] {
        let first = self.0.partition_point(|e| e.disk < disk);
        let rest = self.0.get(first..).unwrap_or_default();
        let n = rest.iter().take_while(|e| e.disk == disk).count();
        rest.get(..n).unwrap_or_default()
    }

    /// All trackers, or those on a disk.
    pub(super) fn trackers(&self, disk: Option<DiskId>) -> impl Iterator<Item = &Arc<Tracker>> {
        let entries = disk.map_or(&*self.0, |disk| self.on_disk(disk));
        entries.iter().map(|e| &e.tracker)
    }

    /// The origins that sectors of a disk lie on, each with its part of them, relative to it.
    #[inline]
    pub(super) fn touched(
        &self,
        disk: DiskId,
        span: Span<Sectors>,
    ) -> impl Iterator<Item = (&Arc<Tracker>, Span<Sectors>)> {
        self.on_disk(disk)
            .iter()
            .filter_map(move |e| Some((&e.tracker, range::in_origin(span, e.span)?)))
    }
}
