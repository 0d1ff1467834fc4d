//! Serving stores that grow: making the portions that they ask for.
//!
//! All that is to be known is in the kernel: what a store wants ([`Control::snapshots`]) and where it may
//! be made (the note of its snapshot). So nothing is lost with the process, and the next one goes on.

use crate::abi;
use crate::device::Control;
use crate::error::Error;
use crate::error::Result;
use crate::events::Events;
use crate::signals::Signals;
use crate::size::human;
use crate::state::rfc3339;
use crate::store;
use crate::store::Note;
use crate::store::MIN_SIZE;
use rustix::io::Errno;
use rustix::mm::mlockall;
use rustix::mm::MlockAllFlags;
use serde::Serialize;
use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use uuid::Uuid;

/// How often is looked at what is wanted, whatever the events say.
const PAUSE: Duration = Duration::from_secs(1);
/// After a failure the same store is left alone for so long.
const AGAIN: Duration = Duration::from_secs(5);

/// So many files whose blocks snapshots need are put aside, at most, in search of a better one.
const USELESS: usize = 16;

/// What [`run`] tells.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// When, RFC 3339.
    pub time: String,
    /// The snapshot whose store it is about.
    pub snapshot: Uuid,
    /// What it grew by, bytes; 0: it could not be done.
    pub added: u64,
    /// What it has now, bytes.
    pub capacity: u64,
    /// Where the portion is.
    pub place: Option<String>,
    /// How long that took, milliseconds.
    pub ms: u64,
    /// Why it could not be done, or not as wanted.
    pub error: Option<String>,
}

/// Serves until a signal comes. [`crate::error::Kind::Busy`]: somebody else does.
pub fn run(control: &Control, signals: &Signals, mut tell: impl FnMut(&Report)) -> Result<()> {
    // From before the first look, so that nothing is missed.
    let mut events = Events::open(control)?;
    control.serve().map_err(|e| match e.errno {
        Errno::BUSY => Error::busy("stores are being served by another `bdsnap service`")
            .code("service-busy")
            .hint("one is enough: see `systemctl status bdsnap`"),
        _ => e.on(abi::DEVICE),
    })?;
    // What may have to be read from a disk could wait for the very portion that is asked for here.
    let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    let mut failed: HashMap<Uuid, Instant> = HashMap::new();
    while !signals.stop() {
        let list = control.snapshots().map_err(|e| e.on(abi::DEVICE))?;
        failed.retain(|id, at| {
            at.elapsed() < AGAIN && list.iter().any(|s| Uuid::from_bytes(s.id) == *id)
        });
        let mut any = false;
        for info in list.iter().filter(|s| s.store_wanted > 0) {
            let id = Uuid::from_bytes(info.id);
            if failed.contains_key(&id) {
                continue;
            }
            let Some(report) = provide(control, id, info) else {
                continue;
            };
            tell(&report);
            if report.added > 0 {
                any = true;
            } else {
                failed.insert(id, Instant::now());
            }
        }
        if !any {
            // One wakes; what the others say is seen in the list.
            let mut more = events.within(PAUSE)?.is_some();
            while more {
                more = events.within(Duration::ZERO)?.is_some();
            }
        }
    }
    Ok(())
}

/// Makes a portion for a snapshot. `None`: it is gone.
fn provide(control: &Control, id: Uuid, info: &abi::SnapshotInfo) -> Option<Report> {
    let began = Instant::now();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |t| t.as_nanos());
    let mut report = Report {
        time: rfc3339(u64::try_from(now).unwrap_or(u64::MAX)),
        snapshot: id,
        added: 0,
        capacity: info.store_capacity,
        place: None,
        ms: 0,
        error: None,
    };
    let note = match control.snapshot_note(id) {
        Ok(note) => note,
        Err(e) if e.errno == Errno::NOENT => return None,
        Err(e) => {
            report.error = Some(e.on(id).message);
            return Some(report);
        }
    };
    let places = match serde_json::from_slice::<Note>(&note) {
        Ok(note) => note.places,
        Err(e) => {
            report.error = Some(format!("its note can't be read: {e}"));
            return Some(report);
        }
    };
    // Where there is most room first.
    let room = |place: &store::Place| {
        use std::os::unix::fs::MetadataExt;
        let same = place.dir.metadata().is_ok_and(|m| m.dev() == place.dev);
        let room = store::available(&place.dir);
        room.ok().filter(|_| same).unwrap_or(0)
    };
    let mut places: Vec<_> = places.into_iter().map(|p| (room(&p), p.dir)).collect();
    places.sort();
    // Whose blocks are of no use.
    let mut useless = Vec::new();
    for (room, dir) in places.into_iter().rev() {
        let mut size = info.store_wanted.min(room) & !(MIN_SIZE - 1);
        if size == 0 {
            let text = format!(
                "no room at {} ({} wanted)",
                dir.display(),
                human(info.store_wanted)
            );
            report.error.get_or_insert(text);
        }
        while size > 0 {
            let left = store::available(&dir).unwrap_or(0);
            if !useless.is_empty() && left < size {
                break;
            }
            let error = match store::grow(control, id, &dir, size) {
                Ok((_, Ok(capacity))) => {
                    report.added = capacity.saturating_sub(info.store_capacity);
                    report.capacity = capacity;
                    report.place = Some(dir.display().to_string());
                    report.ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    return Some(report);
                }
                Ok((_, Err(e))) if e.errno == Errno::NOENT => return None,
                Ok((file, Err(e))) => {
                    let message = e.on(dir.display()).message;
                    report.error.get_or_insert(message);
                    // The next one gets other blocks, as long as this one has these. A smaller one has
                    // fewer extents. For all else it is no use.
                    if e.cause == abi::CAUSE_STORE_NEEDED && useless.len() < USELESS {
                        useless.push(file);
                        continue;
                    }
                    if e.cause != abi::CAUSE_STORE_FRAGMENTED {
                        break;
                    }
                    size = (size / 2) & !(MIN_SIZE - 1);
                    continue;
                }
                Err(e) => e,
            };
            report.error.get_or_insert(error.message);
            // Free room may be less than it seems: of another file, or of a quota.
            size = (size / 2) & !(MIN_SIZE - 1);
        }
    }
    Some(report)
}
