//! The ABI of `bdsnap.h` as byte offsets, written down by hand from the
//! header, so that nothing of the module or of the tool's library is trusted.
//! `tests/abi/example.c` asserts the same offsets against the header itself.

use crate::sys;
use std::os::fd::AsRawFd;

/// Path of the control device.
pub const DEVICE: &str = "/dev/bdsnap";
/// All BDSNAP_FEATURE_ bits
pub const FEATURES: u64 = 15;
/// BDSNAP_MAP_DISCARDS
pub const MAP_DISCARDS: u32 = 2;
/// BDSNAP_MAP_DISCARDED
pub const MAP_DISCARDED: u32 = 1 << 31;
/// Most devices in a snapshot.
pub const MAX_DEVICES: u32 = 64;
/// Most file systems frozen in a call.
pub const MAX_FREEZE: u32 = 128;
/// Most extents of a store.
pub const MAX_EXTENTS: u32 = 65536;
/// Most ranges in a MARK.
pub const MAX_RANGES: u32 = 65536;
/// Longest note.
pub const MAX_NOTE: u32 = 4096;
/// Longest hold.
pub const HOLD_MAX_MS: u32 = 600_000;
/// Longest time-out.
pub const TIMEOUT_MAX_MS: u32 = 60000;
/// Bytes of struct fiemap_extent.
pub const FIEMAP_EXTENT: u64 = 56;

/// One ioctl: its number, and the size of its struct in the first ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ioctl {
    /// The name in the header, without `BDSNAP_IOC_`.
    pub name: &'static str,
    /// The number.
    pub nr: u8,
    /// Bytes in its struct.
    pub size: u32,
}

const fn ioc(name: &'static str, nr: u8, size: u32) -> Ioctl {
    Ioctl { name, nr, size }
}

/// BDSNAP_IOC_VERSION
pub const VERSION: Ioctl = ioc("VERSION", 0x00, 56);
/// BDSNAP_IOC_TRACK
pub const TRACK: Ioctl = ioc("TRACK", 0x01, 48);
/// BDSNAP_IOC_UNTRACK
pub const UNTRACK: Ioctl = ioc("UNTRACK", 0x02, 16);
/// BDSNAP_IOC_LIST_ORIGINS
pub const LIST_ORIGINS: Ioctl = ioc("LIST_ORIGINS", 0x03, 40);
/// BDSNAP_IOC_STORE_ADD
pub const STORE_ADD: Ioctl = ioc("STORE_ADD", 0x10, 96);
/// BDSNAP_IOC_STORE_DROP
pub const STORE_DROP: Ioctl = ioc("STORE_DROP", 0x11, 16);
/// BDSNAP_IOC_SNAPSHOT_CREATE
pub const SNAPSHOT_CREATE: Ioctl = ioc("SNAPSHOT_CREATE", 0x20, 128);
/// BDSNAP_IOC_SNAPSHOT_KEEP
pub const SNAPSHOT_KEEP: Ioctl = ioc("SNAPSHOT_KEEP", 0x21, 24);
/// BDSNAP_IOC_SNAPSHOT_DELETE
pub const SNAPSHOT_DELETE: Ioctl = ioc("SNAPSHOT_DELETE", 0x22, 24);
/// BDSNAP_IOC_LIST_SNAPSHOTS
pub const LIST_SNAPSHOTS: Ioctl = ioc("LIST_SNAPSHOTS", 0x23, 40);
/// BDSNAP_IOC_LIST_VERSIONS
pub const LIST_VERSIONS: Ioctl = ioc("LIST_VERSIONS", 0x24, 40);
/// BDSNAP_IOC_SNAPSHOT_NOTE
pub const SNAPSHOT_NOTE: Ioctl = ioc("SNAPSHOT_NOTE", 0x25, 40);
/// BDSNAP_IOC_MAP_READ
pub const MAP_READ: Ioctl = ioc("MAP_READ", 0x30, 96);
/// BDSNAP_IOC_MARK
pub const MARK: Ioctl = ioc("MARK", 0x31, 32);
/// BDSNAP_IOC_RECORD
pub const RECORD: Ioctl = ioc("RECORD", 0x32, 16);
/// BDSNAP_IOC_FREE
pub const FREE: Ioctl = ioc("FREE", 0x33, 32);
/// BDSNAP_IOC_SNAPSHOT_RELEASE
pub const SNAPSHOT_RELEASE: Ioctl = ioc("SNAPSHOT_RELEASE", 0x26, 32);
/// BDSNAP_IOC_SINCE
pub const SINCE: Ioctl = ioc("SINCE", 0x34, 40);
/// BDSNAP_IOC_EVENTS
pub const EVENTS: Ioctl = ioc("EVENTS", 0x40, 16);
/// BDSNAP_IOC_SERVE
pub const SERVE: Ioctl = ioc("SERVE", 0x41, 16);

/// All of them.
pub const ALL: [Ioctl; 20] = [
    VERSION,
    TRACK,
    UNTRACK,
    LIST_ORIGINS,
    STORE_ADD,
    STORE_DROP,
    SNAPSHOT_CREATE,
    SNAPSHOT_KEEP,
    SNAPSHOT_DELETE,
    LIST_SNAPSHOTS,
    LIST_VERSIONS,
    MAP_READ,
    MARK,
    EVENTS,
    SNAPSHOT_NOTE,
    SERVE,
    RECORD,
    FREE,
    SNAPSHOT_RELEASE,
    SINCE,
];

/// Bytes of struct bdsnap_origin_info.
pub const ORIGIN_INFO: u32 = 112;
/// Bytes of struct bdsnap_snapshot_device.
pub const SNAPSHOT_DEVICE: u32 = 80;
/// Bytes of struct bdsnap_snapshot_info.
pub const SNAPSHOT_INFO: u32 = 120;
/// Bytes of struct bdsnap_version_info.
pub const VERSION_INFO: u32 = 184;
/// Bytes of struct bdsnap_event.
pub const EVENT: usize = 104;

/// STORE_ADD: kinds.
pub const KIND_FILE: u32 = 1;
/// A range of a device.
pub const KIND_DEVICE: u32 = 2;
/// Memory.
pub const KIND_MEMORY: u32 = 3;

/// Offsets of fields; every struct has `size` at 0 and `flags` at 4.
pub mod at {
    /// All: flags
    pub const FLAGS: usize = 4;
    /// TRACK, UNTRACK, MAP_READ, MARK: major
    pub const MAJOR: usize = 8;
    /// TRACK, UNTRACK, MAP_READ, MARK: minor
    pub const MINOR: usize = 12;
    /// TRACK: block_size
    pub const BLOCK_SIZE: usize = 16;
    /// TRACK: cause
    pub const TRACK_CAUSE: usize = 20;
    /// LIST_*: count
    pub const LIST_COUNT: usize = 8;
    /// LIST_*: item_size
    pub const LIST_ITEM: usize = 12;
    /// LIST_*: buffer
    pub const LIST_BUFFER: usize = 16;
    /// LIST_*: id
    pub const LIST_ID: usize = 24;
    /// STORE_ADD: store
    pub const STORE_HANDLE: usize = 8;
    /// STORE_ADD: kind
    pub const STORE_KIND: usize = 16;
    /// STORE_ADD: fd
    pub const STORE_FD: usize = 20;
    /// STORE_ADD: major
    pub const STORE_MAJOR: usize = 24;
    /// STORE_ADD: minor
    pub const STORE_MINOR: usize = 28;
    /// STORE_ADD: granule
    pub const STORE_GRANULE: usize = 32;
    /// STORE_ADD: extent_count
    pub const STORE_EXTENTS: usize = 36;
    /// STORE_ADD: buffer
    pub const STORE_BUFFER: usize = 40;
    /// STORE_ADD: offset
    pub const STORE_OFFSET: usize = 48;
    /// STORE_ADD: length
    pub const STORE_LENGTH: usize = 56;
    /// STORE_ADD: capacity
    pub const STORE_CAPACITY: usize = 64;
    /// STORE_ADD: cause
    pub const STORE_CAUSE: usize = 72;
    /// STORE_ADD: run
    pub const STORE_RUN: usize = 76;
    /// STORE_ADD: snapshot
    pub const STORE_SNAPSHOT: usize = 80;
    /// SNAPSHOT_CREATE, KEEP, DELETE, NOTE: id
    pub const ID: usize = 8;
    /// SNAPSHOT_CREATE: store
    pub const SNAP_STORE: usize = 24;
    /// SNAPSHOT_CREATE: devices
    pub const SNAP_DEVICES: usize = 32;
    /// SNAPSHOT_CREATE: freeze_fds
    pub const SNAP_FREEZE: usize = 40;
    /// SNAPSHOT_CREATE: device_count
    pub const SNAP_DEVICE_COUNT: usize = 48;
    /// SNAPSHOT_CREATE: freeze_count
    pub const SNAP_FREEZE_COUNT: usize = 52;
    /// SNAPSHOT_CREATE: freeze_timeout_ms
    pub const SNAP_FREEZE_MS: usize = 56;
    /// SNAPSHOT_CREATE: drain_timeout_ms
    pub const SNAP_DRAIN_MS: usize = 60;
    /// SNAPSHOT_CREATE: cause
    pub const SNAP_CAUSE: usize = 64;
    /// SNAPSHOT_CREATE: store_limit
    pub const SNAP_LIMIT: usize = 96;
    /// SNAPSHOT_CREATE: store_portion
    pub const SNAP_PORTION: usize = 104;
    /// SNAPSHOT_CREATE: note
    pub const SNAP_NOTE: usize = 112;
    /// SNAPSHOT_CREATE: note_len
    pub const SNAP_NOTE_LEN: usize = 120;
    /// SNAPSHOT_CREATE: hold_ms
    pub const SNAP_HOLD_MS: usize = 124;
    /// SNAPSHOT_NOTE: buffer
    pub const NOTE_BUFFER: usize = 24;
    /// SNAPSHOT_NOTE: length
    pub const NOTE_LENGTH: usize = 32;
    /// SNAPSHOT_NOTE: reserved
    pub const NOTE_RESERVED: usize = 36;
    /// SERVE: served
    pub const SERVED: usize = 8;
    /// SERVE: reserved
    pub const SERVE_RESERVED: usize = 12;
    /// MAP_READ: generation
    pub const MAP_GENERATION: usize = 16;
    /// MAP_READ: since
    pub const MAP_SINCE: usize = 32;
    /// MAP_READ: first_block
    pub const MAP_FIRST: usize = 40;
    /// MAP_READ: count
    pub const MAP_COUNT: usize = 48;
    /// MAP_READ: buffer
    pub const MAP_BUFFER: usize = 56;
    /// MAP_READ: number
    pub const MAP_NUMBER: usize = 64;
    /// MAP_READ: oldest
    pub const MAP_OLDEST: usize = 72;
    /// MAP_READ: device_size
    pub const MAP_SIZE: usize = 80;
    /// MAP_READ: block_size
    pub const MAP_BLOCK: usize = 88;
    /// MAP_READ: reserved
    pub const MAP_RESERVED: usize = 92;
    /// MARK: ranges
    pub const MARK_RANGES: usize = 16;
    /// MARK: count
    pub const MARK_COUNT: usize = 24;
    /// SINCE: generation
    pub const SINCE_GENERATION: usize = 16;
    /// SINCE: since
    pub const SINCE_NUMBER: usize = 32;
    /// MARK: reserved
    pub const MARK_RESERVED: usize = 28;
    /// EVENTS: fd
    pub const EVENTS_FD: usize = 8;
    /// EVENTS: reserved
    pub const EVENTS_RESERVED: usize = 12;
}

impl Ioctl {
    /// The request code, with any size in it.
    pub fn code_with(&self, size: u32) -> u64 {
        (3 << 30) | (u64::from(size & 0x3fff) << 16) | (0xbd << 8) | u64::from(self.nr)
    }

    /// The request code of the header.
    pub fn code(&self) -> u64 {
        self.code_with(self.size)
    }

    /// An argument with `size` set and all else zero.
    pub fn arg(&self) -> Arg {
        let mut bytes = vec![0u8; self.size as usize];
        bytes[..4].copy_from_slice(&self.size.to_ne_bytes());
        Arg {
            ioctl: *self,
            bytes,
        }
    }
}

/// The argument of an ioctl, as bytes.
#[derive(Clone, Debug)]
pub struct Arg {
    /// Whose argument it is.
    pub ioctl: Ioctl,
    /// The struct, and what may be behind it.
    pub bytes: Vec<u8>,
}

impl Arg {
    /// Sets a 32-bit field.
    pub fn u32(mut self, at: usize, v: u32) -> Self {
        self.bytes[at..at + 4].copy_from_slice(&v.to_ne_bytes());
        self
    }

    /// Sets a 64-bit field.
    pub fn u64(mut self, at: usize, v: u64) -> Self {
        self.bytes[at..at + 8].copy_from_slice(&v.to_ne_bytes());
        self
    }

    /// Sets some bytes.
    pub fn put(mut self, at: usize, v: &[u8]) -> Self {
        self.bytes[at..at + v.len()].copy_from_slice(v);
        self
    }

    /// Sets `major` and `minor`.
    pub fn dev(self, dev: (u32, u32)) -> Self {
        self.u32(at::MAJOR, dev.0).u32(at::MINOR, dev.1)
    }

    /// Makes it `len` bytes, says so in `size`, and fills what is new.
    pub fn sized(mut self, len: u32, fill: u8) -> Self {
        self.bytes.resize(len as usize, fill);
        self.u32(0, len)
    }

    /// Reads a 32-bit field.
    pub fn get32(&self, at: usize) -> u32 {
        let mut b = [0; 4];
        b.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_ne_bytes(b)
    }

    /// Reads a 64-bit field.
    pub fn get64(&self, at: usize) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_ne_bytes(b)
    }

    /// Makes the call; what the kernel wrote is in `self` afterwards.
    pub fn call(&mut self, f: &impl AsRawFd) -> Result<i32, i32> {
        sys::ioctl(f.as_raw_fd(), self.ioctl.code(), &mut self.bytes)
    }
}

/// Makes a file a store of the open file `fd` of the control device: its handle.
pub fn make_store(fd: &impl AsRawFd, file: &impl AsRawFd) -> Result<u64, String> {
    let mut room = vec![0u8; 4096 * FIEMAP_EXTENT as usize];
    let mut a = STORE_ADD
        .arg()
        .u32(at::STORE_KIND, KIND_FILE)
        .u32(at::STORE_FD, file.as_raw_fd() as u32)
        .u64(at::STORE_BUFFER, room.as_mut_ptr() as u64)
        .u32(at::STORE_EXTENTS, 4096);
    a.call(fd).map_err(|e| {
        format!(
            "STORE_ADD: {} (cause {})",
            sys::errno_name(e),
            a.get32(at::STORE_CAUSE)
        )
    })?;
    Ok(a.get64(at::STORE_HANDLE))
}
