//! Limits, causes, states and flags of the ABI.

/// Defines constants as the header has them, and a table of them for the test.
macro_rules! abi_constants {
    ($( $(#[$meta:meta])* $name:ident = $c_name:literal : $ty:ty = $value:expr; )*) => {
        $( $(#[$meta])* pub const $name: $ty = $value; )*

        /// Every constant: its name in C and its value.
        pub const CONSTANTS: &[(&str, u64)] = &[$( ($c_name, $name as u64) ),*];
    };
}

abi_constants! {
    /// The ABI this tool was written for.
    ABI_VERSION = "BDSNAP_ABI_VERSION": u32 = 1;
    /// The type byte of all ioctls.
    IOC_TYPE = "BDSNAP_IOC_TYPE": u32 = 0xBD;
    /// Tracked at a time: ENOSPC.
    MAX_ORIGINS = "BDSNAP_MAX_ORIGINS": u32 = 1024;
    /// Alive at a time: ENOSPC.
    MAX_SNAPSHOTS = "BDSNAP_MAX_SNAPSHOTS": u32 = 1024;
    /// Alive for one origin: ENOSPC.
    MAX_VERSIONS = "BDSNAP_MAX_VERSIONS": u32 = 64;
    /// Origins in one snapshot.
    MAX_DEVICES = "BDSNAP_MAX_DEVICES": u32 = 64;
    /// File systems frozen in one call.
    MAX_FREEZE = "BDSNAP_MAX_FREEZE": u32 = 128;
    /// Extents in one portion of a store.
    MAX_EXTENTS = "BDSNAP_MAX_EXTENTS": u32 = 65536;
    /// Portions in one store: ENOSPC.
    MAX_PORTIONS = "BDSNAP_MAX_PORTIONS": u32 = 1024;
    /// Devices in one store, memory is one: ENOSPC.
    MAX_LANES = "BDSNAP_MAX_LANES": u32 = 16;
    /// Bytes in the note of a snapshot.
    MAX_NOTE = "BDSNAP_MAX_NOTE": u32 = 4096;
    /// So long writes wait at least for a portion of a store that may grow, milliseconds.
    PORTION_MS = "BDSNAP_PORTION_MS": u32 = 10000;
    /// The longest `hold_ms`.
    HOLD_MAX_MS = "BDSNAP_HOLD_MAX_MS": u32 = 600000;
    /// SERVE: only tell whether any does.
    SERVE_QUERY = "BDSNAP_SERVE_QUERY": u32 = 1 << 0;
    /// Bytes in one portion of memory.
    MAX_MEMORY = "BDSNAP_MAX_MEMORY": u64 = 1 << 39;
    /// The unit in which free space counts, bytes.
    FREE_UNIT = "BDSNAP_FREE_UNIT": u32 = 65536;
    /// Ranges in one MARK.
    MAX_RANGES = "BDSNAP_MAX_RANGES": u32 = 65536;
    /// CBT block, a power of two.
    BLOCK_SIZE_MIN = "BDSNAP_BLOCK_SIZE_MIN": u32 = 4096;
    /// Bytes of a CBT block where `track` is not told.
    BLOCK_SIZE_DEFAULT = "BDSNAP_BLOCK_SIZE_DEFAULT": u32 = 65536;
    /// The largest CBT block, bytes.
    BLOCK_SIZE_MAX = "BDSNAP_BLOCK_SIZE_MAX": u32 = 16777216;
    /// Copied unit, a power of two.
    GRANULE_MIN = "BDSNAP_GRANULE_MIN": u32 = 4096;
    /// The granule where a store is not told, bytes.
    GRANULE_DEFAULT = "BDSNAP_GRANULE_DEFAULT": u32 = 4096;
    /// The largest granule, bytes.
    GRANULE_MAX = "BDSNAP_GRANULE_MAX": u32 = 4096;
    /// The most bytes that are copied together.
    RUN_MAX = "BDSNAP_RUN_MAX": u32 = 262144;
    /// Where a time-out is given as 0.
    TIMEOUT_DEFAULT_MS = "BDSNAP_TIMEOUT_DEFAULT_MS": u32 = 10000;
    /// The longest time-out, milliseconds.
    TIMEOUT_MAX_MS = "BDSNAP_TIMEOUT_MAX_MS": u32 = 60000;
    /// A store that takes nothing for so long while writes wait is given up, milliseconds.
    STALL_MS = "BDSNAP_STALL_MS": u32 = 20000;
    /// Kept for a reader that is late.
    MAX_EVENTS = "BDSNAP_MAX_EVENTS": u32 = 256;
    /// IOC_EVENTS is there.
    FEATURE_EVENTS = "BDSNAP_FEATURE_EVENTS": u32 = 1 << 1;
    /// IOC_SNAPSHOT_RELEASE is there.
    FEATURE_RELEASE = "BDSNAP_FEATURE_RELEASE": u32 = 1 << 2;
    /// IOC_SINCE is there.
    FEATURE_SINCE = "BDSNAP_FEATURE_SINCE": u32 = 1 << 3;
    /// RECORD: end the recording.
    RECORD_END = "BDSNAP_RECORD_END": u32 = 1 << 0;
    /// Of a version: for an increment only.
    VERSION_SINCE = "BDSNAP_VERSION_SINCE": u32 = 1 << 0;
    /// A generation begins.
    EVENT_TRACKED = "BDSNAP_EVENT_TRACKED": u32 = 1;
    /// An origin is not tracked any more.
    EVENT_UNTRACKED = "BDSNAP_EVENT_UNTRACKED": u32 = 2;
    /// A generation has ended.
    EVENT_ORIGIN_ENDED = "BDSNAP_EVENT_ORIGIN_ENDED": u32 = 3;
    /// One for each origin of a new snapshot.
    EVENT_CREATED = "BDSNAP_EVENT_CREATED": u32 = 4;
    /// An image can't be read any more.
    EVENT_FAILED = "BDSNAP_EVENT_FAILED": u32 = 5;
    /// Parts of an image can't be read.
    EVENT_DAMAGED = "BDSNAP_EVENT_DAMAGED": u32 = 6;
    /// A snapshot is gone.
    EVENT_DELETED = "BDSNAP_EVENT_DELETED": u32 = 7;
    /// Events were overwritten before they were read.
    EVENT_LOST = "BDSNAP_EVENT_LOST": u32 = 8;
    /// The store of a snapshot will be full soon.
    EVENT_LOW = "BDSNAP_EVENT_LOW": u32 = 9;
    /// Device names, with their NUL.
    NAME_LEN = "BDSNAP_NAME_LEN": u32 = 32;
    /// Delete its snapshots first.
    UNTRACK_FORCE = "BDSNAP_UNTRACK_FORCE": u32 = 1 << 0;
    /// DELETE only: also while an image is open.
    DELETE_FORCE = "BDSNAP_DELETE_FORCE": u32 = 1 << 0;
    /// MAP_READ of an origin whose newest snapshot is gone: as it is now.
    MAP_LIVE = "BDSNAP_MAP_LIVE": u32 = 1 << 0;
    /// MAP_READ: values tell discards.
    MAP_DISCARDS = "BDSNAP_MAP_DISCARDS": u32 = 1 << 1;
    /// In a value: the block changed last by a discard.
    MAP_DISCARDED = "BDSNAP_MAP_DISCARDED": u32 = 1 << 31;
    /// MAP_READ knows MAP_DISCARDS.
    FEATURE_DISCARDS = "BDSNAP_FEATURE_DISCARDS": u32 = 1 << 0;
    /// No cause given.
    CAUSE_NONE = "BDSNAP_CAUSE_NONE": u32 = 0;
    /// Zoned device.
    CAUSE_ZONED = "BDSNAP_CAUSE_ZONED": u32 = 1;
    /// Writes may bypass the block layer.
    CAUSE_DAX = "BDSNAP_CAUSE_DAX": u32 = 2;
    /// A read-only device: EROFS.
    CAUSE_READ_ONLY = "BDSNAP_CAUSE_READ_ONLY": u32 = 3;
    /// Carries protection information.
    CAUSE_INTEGRITY = "BDSNAP_CAUSE_INTEGRITY": u32 = 4;
    /// Inline encryption in hardware.
    CAUSE_INLINE_CRYPTO = "BDSNAP_CAUSE_INLINE_CRYPTO": u32 = 5;
    /// Is itself an image of bdsnap.
    CAUSE_IMAGE = "BDSNAP_CAUSE_IMAGE": u32 = 6;
    /// Logical blocks larger than the granule.
    CAUSE_BLOCK_SIZE = "BDSNAP_CAUSE_BLOCK_SIZE": u32 = 7;
    /// No capacity: ENOMEDIUM.
    CAUSE_EMPTY = "BDSNAP_CAUSE_EMPTY": u32 = 8;
    /// A livepatch or another hook holds submit_bio_noacct: EBUSY.
    CAUSE_HOOK_BUSY = "BDSNAP_CAUSE_HOOK_BUSY": u32 = 9;
    /// This kernel's writes do not pass the hook.
    CAUSE_HOOK_BLIND = "BDSNAP_CAUSE_HOOK_BLIND": u32 = 10;
    /// A path held by request-based dm: it writes around the hook.
    CAUSE_REQUEST_DM = "BDSNAP_CAUSE_REQUEST_DM": u32 = 11;
    /// No requests, and its I/O is not counted (EOPNOTSUPP).
    CAUSE_UNCOUNTED = "BDSNAP_CAUSE_UNCOUNTED": u32 = 12;
    /// File system not on the allow-list: EOPNOTSUPP.
    CAUSE_STORE_FS = "BDSNAP_CAUSE_STORE_FS": u32 = 20;
    /// Not a regular, writable file: EINVAL.
    CAUSE_STORE_FILE = "BDSNAP_CAUSE_STORE_FILE": u32 = 21;
    /// Swap file or store already; a device: claimed, or overlaps an origin or another store: EBUSY.
    CAUSE_STORE_BUSY = "BDSNAP_CAUSE_STORE_BUSY": u32 = 22;
    /// An extent is a hole, shared, encoded, inline, delayed, misaligned, out of bounds or overlaps: EINVAL.
    CAUSE_STORE_EXTENTS = "BDSNAP_CAUSE_STORE_EXTENTS": u32 = 23;
    /// More extents than the buffer holds: ENOSPC.
    CAUSE_STORE_FRAGMENTED = "BDSNAP_CAUSE_STORE_FRAGMENTED": u32 = 24;
    /// No room for a single granule: EINVAL.
    CAUSE_STORE_SMALL = "BDSNAP_CAUSE_STORE_SMALL": u32 = 25;
    /// Not inside the device, or not made of granules: EINVAL.
    CAUSE_STORE_RANGE = "BDSNAP_CAUSE_STORE_RANGE": u32 = 26;
    /// Can't serve: zoned, read-only, or an image: EOPNOTSUPP.
    CAUSE_STORE_DEVICE = "BDSNAP_CAUSE_STORE_DEVICE": u32 = 27;
    /// So much memory is not free: ENOMEM.
    CAUSE_STORE_MEMORY = "BDSNAP_CAUSE_STORE_MEMORY": u32 = 28;
    /// Snapshots still need what its blocks hold (EBUSY).
    CAUSE_STORE_NEEDED = "BDSNAP_CAUSE_STORE_NEEDED": u32 = 29;
    /// More than the store may have (ENOSPC).
    CAUSE_STORE_LIMIT = "BDSNAP_CAUSE_STORE_LIMIT": u32 = 35;
    /// A file system could not be frozen.
    CAUSE_FREEZE = "BDSNAP_CAUSE_FREEZE": u32 = 30;
    /// Freezing took too long (ETIMEDOUT).
    CAUSE_FREEZE_TIMEOUT = "BDSNAP_CAUSE_FREEZE_TIMEOUT": u32 = 31;
    /// Writes in flight did not complete: ETIMEDOUT.
    CAUSE_DRAIN_TIMEOUT = "BDSNAP_CAUSE_DRAIN_TIMEOUT": u32 = 32;
    /// Somebody thawed a file system before the cut: EBUSY.
    CAUSE_UNFROZEN = "BDSNAP_CAUSE_UNFROZEN": u32 = 33;
    /// The origin's size changed while it has snapshots: EBUSY.
    CAUSE_RESIZED = "BDSNAP_CAUSE_RESIZED": u32 = 34;
    /// The store is full.
    CAUSE_STORE_FULL = "BDSNAP_CAUSE_STORE_FULL": u32 = 40;
    /// A store write failed.
    CAUSE_STORE_IO = "BDSNAP_CAUSE_STORE_IO": u32 = 41;
    /// Parts could not be read: they alone are EIO.
    CAUSE_ORIGIN_IO = "BDSNAP_CAUSE_ORIGIN_IO": u32 = 42;
    /// No memory for the copy.
    CAUSE_NO_MEMORY = "BDSNAP_CAUSE_NO_MEMORY": u32 = 43;
    /// The origin's disk was removed.
    CAUSE_ORIGIN_GONE = "BDSNAP_CAUSE_ORIGIN_GONE": u32 = 44;
    /// A command that may write went to the disk around the hook.
    CAUSE_PASSTHROUGH = "BDSNAP_CAUSE_PASSTHROUGH": u32 = 45;
    /// The machine hibernated.
    CAUSE_HIBERNATED = "BDSNAP_CAUSE_HIBERNATED": u32 = 46;
    /// The store's device did not answer while writes to the origin waited.
    CAUSE_STORE_STALLED = "BDSNAP_CAUSE_STORE_STALLED": u32 = 47;
    /// A write from before tracking began went to the disk, unseen.
    CAUSE_STRAY = "BDSNAP_CAUSE_STRAY": u32 = 48;
    /// A portion of a store: the blocks of a file.
    STORE_FILE = "BDSNAP_STORE_FILE": u32 = 1;
    /// A range of a block device.
    STORE_DEVICE = "BDSNAP_STORE_DEVICE": u32 = 2;
    /// Memory.
    STORE_MEMORY = "BDSNAP_STORE_MEMORY": u32 = 3;
    /// All is well.
    ORIGIN_TRACKED = "BDSNAP_ORIGIN_TRACKED": u32 = 0;
    /// Size changed: the next snapshot starts a new generation.
    ORIGIN_RESIZED = "BDSNAP_ORIGIN_RESIZED": u32 = 1;
    /// Its disk was removed: untrack it.
    ORIGIN_GONE = "BDSNAP_ORIGIN_GONE": u32 = 2;
    /// Writes may have been missed: the next snapshot or TRACK starts a new generation.
    ORIGIN_RESET = "BDSNAP_ORIGIN_RESET": u32 = 3;
    /// All is well.
    SNAPSHOT_OK = "BDSNAP_SNAPSHOT_OK": u32 = 0;
    /// Some granules are unreadable: EIO there.
    SNAPSHOT_DAMAGED = "BDSNAP_SNAPSHOT_DAMAGED": u32 = 1;
    /// EIO everywhere.
    SNAPSHOT_FAILED = "BDSNAP_SNAPSHOT_FAILED": u32 = 2;
}
