//! The ABI of the kernel module, as `include/uapi/bdsnap.h` has it.
//!
//! Names are the header's without `bdsnap_`/`BDSNAP_`; what each command does, its errors and the
//! meaning of each field stand in the header and are not repeated here. All sizes and offsets are
//! bytes unless a name says otherwise. `tests/abi.rs` compiles the header and compares every
//! struct, field offset, constant and ioctl number with this module.

mod constants;

pub use constants::*;

/// Defines a struct as the header has it, with the names of its fields for the test.
macro_rules! abi_struct {
    (
        $(#[$meta:meta])*
        $name:ident = $c_name:literal { $( $(#[$fmeta:meta])* $field:ident : $ty:ty, )* }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name {
            $( $(#[$fmeta])* pub $field: $ty, )*
        }

        impl Layout for $name {
            const C_NAME: &'static str = $c_name;
            const SIZE: usize = std::mem::size_of::<$name>();
            const FIELDS: &'static [(&'static str, usize)] =
                &[$( (c_name(stringify!($field)), std::mem::offset_of!($name, $field)) ),*];
        }
    };
}

/// The name in C of a field: without the mark of a raw identifier.
const fn c_name(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', rest @ ..] => match std::str::from_utf8(rest) {
            Ok(rest) => rest,
            Err(_) => name,
        },
        _ => name,
    }
}

/// What the header says about a struct; used to check this module against it.
pub trait Layout {
    /// The struct's tag in C.
    const C_NAME: &'static str;
    /// Its size in bytes here.
    const SIZE: usize;
    /// Its fields and their offsets in bytes here, in order.
    const FIELDS: &'static [(&'static str, usize)];
}

/// The control device.
pub const DEVICE: &str = "/dev/bdsnap";

abi_struct! {
    /// `struct bdsnap_version`.
    Version = "bdsnap_version" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// Out: BDSNAP_ABI_VERSION.
        abi: u32,
        /// Out: 0 absent (nothing tracked), 1 active.
        hook: u32,
        /// Out: BDSNAP_FEATURE_*.
        features: u64,
        /// Out: the module's version, NUL-terminated.
        release: [u8; 32],
    }
}

abi_struct! {
    /// `struct bdsnap_track`.
    Track = "bdsnap_track" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// In/out: bytes; 0: keep, or the default.
        block_size: u32,
        /// Out, also where the call fails.
        cause: u32,
        /// Out.
        generation: [u8; 16],
        /// Out: 0 right after the start.
        number: u64,
    }
}

abi_struct! {
    /// `struct bdsnap_untrack`.
    Untrack = "bdsnap_untrack" {
        /// Bytes of this struct.
        size: u32,
        /// See the header.
        flags: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_list`.
    List = "bdsnap_list" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// In/out: items.
        count: u32,
        /// In: bytes, a multiple of 8, 8 to 4096.
        item_size: u32,
        /// In: may be 0 with count 0.
        buffer: u64,
        /// In: the snapshot, for LIST_VERSIONS; else zero.
        id: [u8; 16],
    }
}

abi_struct! {
    /// `struct bdsnap_origin_info`.
    OriginInfo = "bdsnap_origin_info" {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Kernel name, "vdb1".
        name: [u8; 32],
        /// Bytes, as tracked.
        device_size: u64,
        /// Bytes of a CBT block.
        block_size: u32,
        /// Enum bdsnap_origin_state.
        state: u32,
        /// Of the change map.
        generation: [u8; 16],
        /// Of the newest snapshot, 0: none yet.
        number: u64,
        /// `since` below this can't be answered.
        oldest: u64,
        /// Versions alive.
        snapshots: u32,
        /// Why its generation has ended: enum bdsnap_cause.
        cause: u32,
        /// Copied on write since tracking began.
        bytes_copied: u64,
        /// Writes that waited, for a copy or at the gate.
        writes_parked: u64,
    }
}

abi_struct! {
    /// `struct bdsnap_store_add`.
    StoreAdd = "bdsnap_store_add" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// In: 0: a new one; out: handle, valid in this open file only.
        store: u64,
        /// In: `STORE_FILE`, `STORE_DEVICE` or `STORE_MEMORY`.
        kind: u32,
        /// In: of a file.
        fd: i32,
        /// In: of a device.
        major: u32,
        /// Minor number.
        minor: u32,
        /// In: bytes; 0: the store's, or of a new one the default.
        granule: u32,
        /// In: of a file: room; out: extents used.
        extent_count: u32,
        /// In: of a file: room for struct fiemap_extent\[extent_count\].
        buffer: u64,
        /// In: of a device: bytes.
        offset: u64,
        /// In: of a device or memory: bytes.
        length: u64,
        /// Out: bytes, whole granules, of the store by now.
        capacity: u64,
        /// Out.
        cause: u32,
        /// In: bytes copied together; 0: the store's, or of a new one the granule.
        run: u32,
        /// In: the snapshot whose store is to grow; else zero.
        snapshot: [u8; 16],
    }
}

abi_struct! {
    /// `struct bdsnap_store_drop`.
    StoreDrop = "bdsnap_store_drop" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// In: from STORE_ADD.
        store: u64,
    }
}

abi_struct! {
    /// `struct bdsnap_snapshot_device`.
    SnapshotDevice = "bdsnap_snapshot_device" {
        /// In: a tracked origin.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Out.
        image_major: u32,
        /// The image's minor number.
        image_minor: u32,
        /// Out: "bdsnap-image0".
        image_name: [u8; 32],
        /// Out: bytes.
        device_size: u64,
        /// Out.
        generation: [u8; 16],
        /// Out: the number of this cut.
        number: u64,
    }
}

abi_struct! {
    /// `struct bdsnap_snapshot_create`.
    SnapshotCreate = "bdsnap_snapshot_create" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// Out.
        id: [u8; 16],
        /// In: from STORE_ADD.
        store: u64,
        /// In: struct bdsnap_snapshot_device\[device_count\], also written.
        devices: u64,
        /// In: __s32\[freeze_count\].
        freeze_fds: u64,
        /// Origins.
        device_count: u32,
        /// File systems.
        freeze_count: u32,
        /// In: for all file systems together; 0: default.
        freeze_timeout_ms: u32,
        /// In: for all origins together; 0: default.
        drain_timeout_ms: u32,
        /// Out.
        cause: u32,
        /// Out: into devices or freeze_fds.
        fail_index: u32,
        /// Out: CLOCK_REALTIME at the cut.
        created_ns: u64,
        /// Out: first freeze begun to last thaw done.
        freeze_ns: u64,
        /// Out: first gate closed to all gates open.
        gate_ns: u64,
        /// In: bytes of portions; 0: the store stays as it is.
        store_limit: u64,
        /// In: bytes that are asked for at a time, at least.
        store_portion: u64,
        /// In: note_len bytes that the kernel keeps.
        note: u64,
        /// In: up to BDSNAP_MAX_NOTE.
        note_len: u32,
        /// In: writes wait so long for a portion when the store is full.
        hold_ms: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_snapshot_ref`.
    SnapshotRef = "bdsnap_snapshot_ref" {
        /// Bytes of this struct.
        size: u32,
        /// See the header.
        flags: u32,
        /// The snapshot.
        id: [u8; 16],
    }
}

abi_struct! {
    /// `struct bdsnap_snapshot_info`.
    SnapshotInfo = "bdsnap_snapshot_info" {
        /// The snapshot.
        id: [u8; 16],
        /// CLOCK_REALTIME.
        created_ns: u64,
        /// The worst of its versions.
        state: u32,
        /// `CAUSE_*`.
        cause: u32,
        /// Origins.
        device_count: u32,
        /// Bytes.
        granule: u32,
        /// Bytes.
        store_capacity: u64,
        /// Bytes.
        store_used: u64,
        /// Bytes; = capacity for a fixed store.
        store_limit: u64,
        /// 1: SNAPSHOT_KEEP was called.
        kept: u32,
        /// Device that holds the store.
        store_major: u32,
        /// See `store_major`.
        store_minor: u32,
        /// 1: writes wait for a portion.
        store_waiting: u32,
        /// Bytes that a portion should have; 0: none is needed.
        store_wanted: u64,
        /// Bytes used a second.
        store_rate: u64,
        /// Seconds until it is full at this rate, growing included; `u64::MAX`: it isn't used.
        store_seconds: u64,
        /// As in SNAPSHOT_CREATE.
        hold_ms: u32,
        /// Bytes of its note.
        note_len: u32,
        /// Bytes that are copied together.
        run: u32,
        /// 0.
        reserved: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_version_info`.
    VersionInfo = "bdsnap_version_info" {
        /// Origin.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Kernel name, NUL-terminated.
        name: [u8; 32],
        /// The image's major number.
        image_major: u32,
        /// The image's minor number.
        image_minor: u32,
        /// The image's kernel name, NUL-terminated.
        image_name: [u8; 32],
        /// Bytes.
        device_size: u64,
        /// Of the change map.
        generation: [u8; 16],
        /// Of the cut.
        number: u64,
        /// Enum bdsnap_snapshot_state.
        state: u32,
        /// `CAUSE_*`.
        cause: u32,
        /// Kept in its store.
        bytes_copied: u64,
        /// Unreadable: the origin gave errors.
        bytes_lost: u64,
        /// Store extents: read as zeros.
        bytes_not_kept: u64,
        /// Of the image.
        openers: u32,
        /// `VERSION_*`.
        flags: u32,
        /// Free at the cut: read as zeros.
        bytes_free: u64,
        /// Not changed since `since`, and not free: read as zeros.
        bytes_unneeded: u64,
        /// Released: read as zeros.
        bytes_released: u64,
        /// With `VERSION_SINCE`: it holds what changed after this snapshot.
        since: u64,
    }
}

abi_struct! {
    /// `struct bdsnap_map_read`.
    MapRead = "bdsnap_map_read" {
        /// Bytes of this struct.
        size: u32,
        /// See the header.
        flags: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// In: zero: any; out: the map's.
        generation: [u8; 16],
        /// In.
        since: u64,
        /// In.
        first_block: u64,
        /// In/out: blocks; 0 with buffer 0: only the header.
        count: u64,
        /// In: u32\[count\].
        buffer: u64,
        /// Out: the map is as of this snapshot.
        number: u64,
        /// Out.
        oldest: u64,
        /// Out: bytes.
        device_size: u64,
        /// Out: bytes.
        block_size: u32,
        /// In: 0.
        reserved: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_range`.
    Range = "bdsnap_range" {
        /// Bytes.
        offset: u64,
        /// Bytes, not 0.
        length: u64,
    }
}

abi_struct! {
    /// `struct bdsnap_mark`.
    Mark = "bdsnap_mark" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// In: struct bdsnap_range\[count\].
        ranges: u64,
        /// In: 1 to BDSNAP_MAX_RANGES.
        count: u32,
        /// In: 0.
        reserved: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_record`.
    Record = "bdsnap_record" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_since`.
    Since = "bdsnap_since" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// In: zero: any.
        generation: [u8; 16],
        /// In: the snapshot after which what changes is kept.
        since: u64,
    }
}

abi_struct! {
    /// `struct bdsnap_events`.
    Events = "bdsnap_events" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// Out: a new descriptor.
        fd: i32,
        /// In: 0.
        reserved: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_snapshot_note`.
    SnapshotNote = "bdsnap_snapshot_note" {
        /// Bytes of this struct.
        size: u32,
        /// In: 0.
        flags: u32,
        /// The snapshot.
        id: [u8; 16],
        /// In: u8\[length\].
        buffer: u64,
        /// In: room; out: bytes of the note.
        length: u32,
        /// In: 0.
        reserved: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_serve`.
    Serve = "bdsnap_serve" {
        /// Bytes of this struct.
        size: u32,
        /// See the header.
        flags: u32,
        /// Out: 1: somebody serves.
        served: u32,
        /// In: 0.
        reserved: u32,
    }
}

abi_struct! {
    /// `struct bdsnap_event`.
    Event = "bdsnap_event" {
        /// Counts all events of the module.
        sequence: u64,
        /// `CLOCK_REALTIME`, nanoseconds.
        time_ns: u64,
        /// `EVENT_*`.
        r#type: u32,
        /// `CAUSE_*`.
        cause: u32,
        /// The origin's major number.
        major: u32,
        /// The origin's minor number.
        minor: u32,
        /// The origin's kernel name.
        name: [u8; 32],
        /// The origin's generation.
        generation: [u8; 16],
        /// The snapshot's id.
        snapshot: [u8; 16],
        /// Of the snapshot for this origin; how many were lost; in how many seconds a store is full.
        number: u64,
    }
}

/// `struct fiemap_extent` of `linux/fiemap.h`: only room for the kernel to work in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FiemapExtent {
    /// Bytes, in the file.
    pub logical: u64,
    /// Bytes, on the device.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    /// Unused.
    pub reserved64: [u64; 2],
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
    /// Unused.
    pub reserved: [u32; 3],
}

/// The ioctl numbers, each with the struct that it takes.
pub mod op {
    use super::*;
    use rustix::ioctl::opcode::read_write;
    use rustix::ioctl::Opcode;

    macro_rules! ops {
        ($( $name:ident = $nr:literal : $ty:ty; )*) => {
            $(
                #[doc = concat!("`BDSNAP_IOC_", stringify!($name), "`.")]
                pub const $name: Opcode = read_write::<$ty>(IOC_TYPE as u8, $nr);
            )*

            /// Every ioctl: its name in C and its number.
            pub const ALL: &[(&str, Opcode)] =
                &[$( (concat!("BDSNAP_IOC_", stringify!($name)), $name) ),*];
        };
    }

    ops! {
        VERSION = 0x00: Version;
        TRACK = 0x01: Track;
        UNTRACK = 0x02: Untrack;
        LIST_ORIGINS = 0x03: List;
        STORE_ADD = 0x10: StoreAdd;
        STORE_DROP = 0x11: StoreDrop;
        SNAPSHOT_CREATE = 0x20: SnapshotCreate;
        SNAPSHOT_KEEP = 0x21: SnapshotRef;
        SNAPSHOT_DELETE = 0x22: SnapshotRef;
        LIST_SNAPSHOTS = 0x23: List;
        LIST_VERSIONS = 0x24: List;
        MAP_READ = 0x30: MapRead;
        MARK = 0x31: Mark;
        SNAPSHOT_NOTE = 0x25: SnapshotNote;
        RECORD = 0x32: Record;
        FREE = 0x33: Mark;
        SNAPSHOT_RELEASE = 0x26: Mark;
        SINCE = 0x34: Since;
        EVENTS = 0x40: Events;
        SERVE = 0x41: Serve;
    }
}

/// The text of a NUL-terminated name; what is not UTF-8 is replaced.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The tag of a struct in C, its size, and its fields with their offsets, bytes.
pub type StructLayout = (&'static str, usize, &'static [(&'static str, usize)]);

/// Every struct of the ABI: its tag in C, its size and its fields' offsets in bytes.
pub const STRUCTS: &[StructLayout] = &[
    (Version::C_NAME, Version::SIZE, Version::FIELDS),
    (Track::C_NAME, Track::SIZE, Track::FIELDS),
    (Untrack::C_NAME, Untrack::SIZE, Untrack::FIELDS),
    (List::C_NAME, List::SIZE, List::FIELDS),
    (OriginInfo::C_NAME, OriginInfo::SIZE, OriginInfo::FIELDS),
    (StoreAdd::C_NAME, StoreAdd::SIZE, StoreAdd::FIELDS),
    (StoreDrop::C_NAME, StoreDrop::SIZE, StoreDrop::FIELDS),
    (
        SnapshotDevice::C_NAME,
        SnapshotDevice::SIZE,
        SnapshotDevice::FIELDS,
    ),
    (
        SnapshotCreate::C_NAME,
        SnapshotCreate::SIZE,
        SnapshotCreate::FIELDS,
    ),
    (SnapshotRef::C_NAME, SnapshotRef::SIZE, SnapshotRef::FIELDS),
    (
        SnapshotInfo::C_NAME,
        SnapshotInfo::SIZE,
        SnapshotInfo::FIELDS,
    ),
    (VersionInfo::C_NAME, VersionInfo::SIZE, VersionInfo::FIELDS),
    (MapRead::C_NAME, MapRead::SIZE, MapRead::FIELDS),
    (Range::C_NAME, Range::SIZE, Range::FIELDS),
    (Mark::C_NAME, Mark::SIZE, Mark::FIELDS),
    (Record::C_NAME, Record::SIZE, Record::FIELDS),
    (Since::C_NAME, Since::SIZE, Since::FIELDS),
    (Events::C_NAME, Events::SIZE, Events::FIELDS),
    (
        SnapshotNote::C_NAME,
        SnapshotNote::SIZE,
        SnapshotNote::FIELDS,
    ),
    (Serve::C_NAME, Serve::SIZE, Serve::FIELDS),
    (Event::C_NAME, Event::SIZE, Event::FIELDS),
];
