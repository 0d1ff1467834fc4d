//! What the module tells about origins and snapshots, in the shape of the tool's JSON.

use crate::abi;
use crate::blockdev::dev_path;
use crate::blockdev::Sysfs;
use crate::cause;
use crate::device::CallError;
use crate::device::Control;
use crate::device::DevNum;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use jiff::Timestamp;
use rustix::io::Errno;
use serde::Serialize;
use std::path::Path;
use uuid::Uuid;

/// A tracked origin.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    /// Its path, `/dev/vdb1`.
    pub device: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a CBT block.
    pub block_size: u32,
    /// Generation of its change map.
    pub generation: Uuid,
    /// Number of its newest snapshot; 0: none yet.
    pub number: u64,
    /// `changes --since` below this can't be answered.
    pub oldest: u64,
    /// "tracked", "resized", "reset" or "gone".
    pub state: &'static str,
    /// Why its generation has ended: a code. `null`: it goes on.
    pub error: Option<&'static str>,
    /// Its living snapshots.
    pub snapshots: Vec<Uuid>,
    /// Bytes copied on write since tracking began.
    pub bytes_copied: u64,
    /// Writes that had to wait, for a copy or at the gate.
    pub writes_parked: u64,
    /// Its device number.
    #[serde(skip)]
    pub num: DevNum,
}

/// What one snapshot keeps of one origin.
#[derive(Clone, Debug, Serialize)]
pub struct Version {
    /// The origin's path.
    pub device: String,
    /// The image's path, `/dev/bdsnap-image0`.
    pub image: String,
    /// Bytes.
    pub size: u64,
    /// Generation of the change map.
    pub generation: Uuid,
    /// Number of the cut.
    pub number: u64,
    /// "ok", "damaged" or "failed".
    pub state: &'static str,
    /// Why it is not ok.
    pub error: Option<&'static str>,
    /// Bytes kept in the store.
    pub bytes_copied: u64,
    /// Bytes that can't be read: the origin gave errors.
    pub bytes_lost: u64,
    /// Bytes that read as zeros: the store's own.
    pub bytes_not_kept: u64,
    /// Bytes that read as zeros: free in the file system at the cut. 0: all is kept.
    pub bytes_free: u64,
    /// Not changed after [`Version::since`], and not free: reads as zeros.
    pub bytes_unneeded: u64,
    /// Released by a reader: reads as zeros.
    pub bytes_released: u64,
    /// It has only what changed after this snapshot; `None`: all.
    pub since: Option<u64>,
    /// How often the image is open.
    pub openers: u32,
    /// The origin's kernel name.
    #[serde(skip)]
    pub name: String,
    /// The origin's device number.
    #[serde(skip)]
    pub origin: DevNum,
    /// The image's device number.
    #[serde(skip)]
    pub image_num: DevNum,
    /// `CAUSE_*`.
    #[serde(skip)]
    pub cause: u32,
}

/// The store of a snapshot.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Store {
    /// Bytes there are.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes it may grow to; the capacity where it is fixed.
    pub limit: u64,
    /// Bytes that the next portion should have; 0: none is needed now.
    pub wanted: u64,
    /// Bytes used a second.
    pub rate: u64,
    /// Seconds until it is full at this rate, growing included; `null`: it isn't used.
    pub full_in: Option<u64>,
    /// Whether writes wait for a portion.
    pub waiting: bool,
    /// How long they wait when it is full, seconds.
    pub hold: u32,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Its id.
    pub id: Uuid,
    /// When it was cut, RFC 3339.
    pub created: String,
    /// The worst state of its versions: "ok", "damaged" or "failed".
    pub state: &'static str,
    /// Why it is not ok: a code.
    pub error: Option<&'static str>,
    /// It outlives the process that made it.
    pub kept: bool,
    /// Bytes of a granule.
    pub granule: u32,
    /// Bytes that are copied together; 0: its store is given back.
    pub run: u32,
    /// Its versions.
    pub devices: Vec<Version>,
    /// Its store.
    pub store: Store,
}

/// Number and path of a device that somebody names: an origin whose disk is gone has its path
/// still. What else is no block device is an error.
pub fn find_origin(sysfs: &Sysfs, origins: &[Origin], path: &Path) -> Result<(DevNum, String)> {
    match sysfs.resolve(path) {
        Ok(device) => Ok((device.num, device.path())),
        Err(error) if error.kind == Kind::NotFound => {
            let gone = origins.iter().find(|o| Path::new(&o.device) == path);
            gone.map(|o| (o.num, o.device.clone())).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// The name of an origin's state.
fn origin_state(state: u32) -> &'static str {
    match state {
        abi::ORIGIN_TRACKED => "tracked",
        abi::ORIGIN_RESIZED => "resized",
        abi::ORIGIN_GONE => "gone",
        abi::ORIGIN_RESET => "reset",
        _ => "unknown",
    }
}

/// The name of a snapshot's state.
fn snapshot_state(state: u32) -> &'static str {
    match state {
        abi::SNAPSHOT_OK => "ok",
        abi::SNAPSHOT_DAMAGED => "damaged",
        _ => "failed",
    }
}

/// A time in nanoseconds since 1970 as RFC 3339, to the microsecond.
pub fn rfc3339(nanoseconds: u64) -> String {
    let micros = i64::try_from(nanoseconds / 1000).unwrap_or(i64::MAX);
    Timestamp::from_microsecond(micros)
        .unwrap_or(Timestamp::MAX)
        .to_string()
}

impl From<abi::VersionInfo> for Version {
    fn from(info: abi::VersionInfo) -> Self {
        let name = abi::text(&info.name);
        Version {
            device: dev_path(&name),
            image: dev_path(&abi::text(&info.image_name)),
            size: info.device_size,
            generation: Uuid::from_bytes(info.generation),
            number: info.number,
            state: snapshot_state(info.state),
            error: cause::code(info.cause),
            bytes_copied: info.bytes_copied,
            bytes_lost: info.bytes_lost,
            bytes_not_kept: info.bytes_not_kept,
            bytes_free: info.bytes_free,
            bytes_unneeded: info.bytes_unneeded,
            bytes_released: info.bytes_released,
            since: (info.flags & abi::VERSION_SINCE != 0).then_some(info.since),
            openers: info.openers,
            name,
            origin: DevNum {
                major: info.major,
                minor: info.minor,
            },
            image_num: DevNum {
                major: info.image_major,
                minor: info.image_minor,
            },
            cause: info.cause,
        }
    }
}

/// All snapshots, oldest first. One that is deleted meanwhile is left out.
pub fn snapshots(control: &Control) -> Result<Vec<Snapshot>> {
    let list = control.snapshots().map_err(|e| e.on(abi::DEVICE))?;
    let mut snapshots = Vec::with_capacity(list.len());
    for info in list {
        let id = Uuid::from_bytes(info.id);
        let versions = match control.versions(id) {
            Ok(versions) => versions,
            Err(CallError {
                errno: Errno::NOENT,
                ..
            }) => continue,
            Err(e) => return Err(e.on(id)),
        };
        snapshots.push(Snapshot {
            id,
            created: rfc3339(info.created_ns),
            state: snapshot_state(info.state),
            error: cause::code(info.cause),
            kept: info.kept != 0,
            granule: info.granule,
            run: info.run,
            devices: versions.into_iter().map(Version::from).collect(),
            store: Store {
                capacity: info.store_capacity,
                used: info.store_used,
                limit: info.store_limit,
                wanted: info.store_wanted,
                rate: info.store_rate,
                full_in: Some(info.store_seconds).filter(|s| *s != u64::MAX),
                waiting: info.store_waiting != 0,
                hold: info.hold_ms / 1000,
            },
        });
    }
    Ok(snapshots)
}

/// All tracked origins, in the order of tracking, with the ids of their `snapshots`.
pub fn origins(control: &Control, snapshots: &[Snapshot]) -> Result<Vec<Origin>> {
    let list = control.origins().map_err(|e| e.on(abi::DEVICE))?;
    let origin = |info: abi::OriginInfo| {
        let num = DevNum {
            major: info.major,
            minor: info.minor,
        };
        let holds = |s: &&Snapshot| s.devices.iter().any(|v| v.origin == num);
        Origin {
            device: dev_path(&abi::text(&info.name)),
            size: info.device_size,
            block_size: info.block_size,
            generation: Uuid::from_bytes(info.generation),
            number: info.number,
            oldest: info.oldest,
            state: origin_state(info.state),
            error: cause::code(info.cause),
            snapshots: snapshots.iter().filter(holds).map(|s| s.id).collect(),
            bytes_copied: info.bytes_copied,
            writes_parked: info.writes_parked,
            num,
        }
    };
    Ok(list.into_iter().map(origin).collect())
}

/// Finds the one id among `known` that `text` names: a UUID, or the start of one that fits no
/// other. Several: [`crate::error::Kind::Usage`]; none: [`crate::error::Kind::NotFound`].
pub fn find_id(known: &[Uuid], text: &str) -> Result<Uuid> {
    let prefix: String = text
        .chars()
        .filter(|c| *c != '-')
        .collect::<String>()
        .to_lowercase();
    if prefix.is_empty() || prefix.len() > 32 || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::usage(format!("'{text}' is not a snapshot id"))
            .code("id")
            .hint("ids are shown by `bdsnap snapshot list`; their beginning is enough"));
    }
    let fits = |id: &&Uuid| id.simple().to_string().starts_with(&prefix);
    let mut found = known.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(*id),
        (Some(_), Some(_)) => Err(
            Error::usage(format!("several snapshots begin with '{text}'"))
                .code("id-ambiguous")
                .hint("give more of the id"),
        ),
        _ => Err(Error::not_found(format!("no snapshot {text}"))
            .code("no-snapshot")
            .hint("see `bdsnap snapshot list`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_by_prefix() {
        let a: Uuid = "12345678-0000-4000-8000-000000000001".parse().unwrap();
        let b: Uuid = "12345679-0000-4000-8000-000000000002".parse().unwrap();
        let known = [a, b];
        assert_eq!(find_id(&known, &a.to_string()).unwrap(), a);
        assert_eq!(find_id(&known, "12345679").unwrap(), b);
        assert_eq!(find_id(&known, "12345679-00").unwrap(), b);
        assert_eq!(find_id(&known, "1234").unwrap_err().kind.exit_code(), 2);
        assert_eq!(find_id(&known, "ff").unwrap_err().kind.exit_code(), 8);
        assert_eq!(find_id(&known, "xyz").unwrap_err().kind.exit_code(), 2);
        assert_eq!(find_id(&known, "").unwrap_err().kind.exit_code(), 2);
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(
            rfc3339(1_700_000_000_123_456_789),
            "2023-11-14T22:13:20.123456Z"
        );
        rfc3339(u64::MAX);
    }
}
