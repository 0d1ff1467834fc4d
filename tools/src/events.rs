//! What happens, as it happens.

use crate::abi;
use crate::blockdev::dev_path;
use crate::cause;
use crate::device::Control;
use crate::error::Error;
use crate::error::Result;
use crate::ioctl;
use crate::signals::Signals;
use crate::state::rfc3339;
use rustix::event::poll;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::fd::AsFd;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use uuid::Uuid;

/// An event. Fields that it has nothing for are `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counts all events of the module.
    pub sequence: u64,
    /// When, RFC 3339.
    pub time: String,
    /// "tracked", "untracked", "origin-ended", "snapshot-created", "snapshot-failed",
    /// "snapshot-damaged", "snapshot-deleted", "store-low", "lost".
    pub event: &'static str,
    /// Why: a code, as in `status`.
    pub cause: Option<&'static str>,
    /// The origin's path, `/dev/vdb1`.
    pub device: Option<String>,
    /// Generation of the origin's change map.
    pub generation: Option<Uuid>,
    /// Id of the snapshot.
    pub snapshot: Option<Uuid>,
    /// Number of the snapshot for this origin; "lost": how many events.
    pub number: Option<u64>,
    /// "store-low": in how many seconds it is full at this rate, growing included.
    pub seconds: Option<u64>,
}

/// The name of a type.
fn name(kind: u32) -> &'static str {
    match kind {
        abi::EVENT_TRACKED => "tracked",
        abi::EVENT_UNTRACKED => "untracked",
        abi::EVENT_ORIGIN_ENDED => "origin-ended",
        abi::EVENT_CREATED => "snapshot-created",
        abi::EVENT_FAILED => "snapshot-failed",
        abi::EVENT_DAMAGED => "snapshot-damaged",
        abi::EVENT_DELETED => "snapshot-deleted",
        abi::EVENT_LOST => "lost",
        abi::EVENT_LOW => "store-low",
        _ => "unknown",
    }
}

impl From<&abi::Event> for Event {
    fn from(event: &abi::Event) -> Self {
        let uuid = |bytes: [u8; 16]| Some(Uuid::from_bytes(bytes)).filter(|u| !u.is_nil());
        let device = abi::text(&event.name);
        let is_low = event.r#type == abi::EVENT_LOW;
        Event {
            sequence: event.sequence,
            time: rfc3339(event.time_ns),
            event: name(event.r#type),
            cause: cause::code(event.cause),
            device: (!device.is_empty()).then(|| dev_path(&device)),
            generation: uuid(event.generation),
            snapshot: uuid(event.snapshot),
            number: Some(event.number).filter(|n| *n != 0 && !is_low),
            seconds: Some(event.number).filter(|n| *n != u64::MAX && is_low),
        }
    }
}

/// The events from a certain moment on.
#[derive(Debug)]
pub struct Events {
    fd: OwnedFd,
    read: VecDeque<abi::Event>,
}

impl Events {
    /// From now on.
    pub fn open(control: &Control) -> Result<Self> {
        let fd = control.events().map_err(|e| e.on(abi::DEVICE))?;
        Ok(Events {
            fd,
            read: VecDeque::new(),
        })
    }

    /// Waits for the next one; `None`: a signal came.
    pub fn next(&mut self, signals: &Signals) -> Result<Option<Event>> {
        loop {
            if signals.stop() && self.read.is_empty() {
                return Ok(None);
            }
            // A signal that comes before the wait is seen after a second.
            if let Some(event) = self.within(Duration::from_secs(1))? {
                return Ok(Some(event));
            }
        }
    }

    /// Waits up to so long for the next one.
    pub fn within(&mut self, time: Duration) -> Result<Option<Event>> {
        let fail = |e| Error::io("can't read events", e);
        if self.read.is_empty() {
            let time = rustix::event::Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&time)) {
                Ok(0) | Err(Errno::INTR) => return Ok(None),
                Ok(_) => {}
                Err(e) => return Err(fail(e)),
            }
            let mut batch = [abi::Event::default(); 8];
            let n = ioctl::read_events(self.fd.as_fd(), &mut batch).map_err(fail)?;
            self.read.extend(&batch[..n]);
        }
        Ok(self.read.pop_front().map(|event| Event::from(&event)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events() {
        let mut raw = abi::Event {
            sequence: 7,
            r#type: abi::EVENT_FAILED,
            cause: abi::CAUSE_ORIGIN_GONE,
            number: 3,
            ..Default::default()
        };
        raw.name[..3].copy_from_slice(b"vdb");
        raw.snapshot[0] = 1;
        let event = Event::from(&raw);
        assert_eq!(event.event, "snapshot-failed");
        assert_eq!(event.cause, Some("origin-gone"));
        assert_eq!(event.device.as_deref(), Some("/dev/vdb"));
        assert_eq!(event.number, Some(3));
        assert!(event.snapshot.is_some());
        assert_eq!(event.generation, None);
        assert_eq!(name(9999), "unknown");
        raw.r#type = abi::EVENT_LOW;
        let low = Event::from(&raw);
        assert_eq!((low.number, low.seconds), (None, Some(3)));
    }
}
