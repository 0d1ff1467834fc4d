//! Causes: why the kernel refused something, or what is wrong with a snapshot.

use crate::abi::*;
use crate::error::Kind;

/// What is known about one `BDSNAP_CAUSE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The stable code for scripts.
    pub code: &'static str,
    /// For people; continues "/dev/vdb: ...".
    pub text: &'static str,
    /// What to do about it.
    pub hint: Option<&'static str>,
    /// The class of the failure, where the cause decides it rather than the error number.
    pub kind: Option<Kind>,
}

const fn cause(code: &'static str, text: &'static str) -> Cause {
    Cause {
        code,
        text,
        hint: None,
        kind: None,
    }
}

const fn unsupported(code: &'static str, text: &'static str) -> Cause {
    Cause {
        kind: Some(Kind::Unsupported),
        ..cause(code, text)
    }
}

const fn damaged(code: &'static str, text: &'static str) -> Cause {
    Cause {
        kind: Some(Kind::Damaged),
        ..cause(code, text)
    }
}

const fn hint(cause: Cause, hint: &'static str) -> Cause {
    Cause {
        hint: Some(hint),
        ..cause
    }
}

/// Looks up a `CAUSE_*`. `None` for [`CAUSE_NONE`] and for causes newer than this library.
pub fn look_up(number: u32) -> Option<Cause> {
    Some(match number {
        CAUSE_ZONED => unsupported("zoned", "zoned devices are not supported"),
        CAUSE_DAX => unsupported("dax", "writes to a DAX device may bypass the block layer"),
        CAUSE_READ_ONLY => hint(
            unsupported("read-only", "the device is read-only: nothing to track"),
            "read it as it is, or make it writable with `blockdev --setrw`",
        ),
        CAUSE_INTEGRITY => unsupported(
            "integrity",
            "devices that carry protection information are not supported",
        ),
        CAUSE_INLINE_CRYPTO => unsupported(
            "inline-crypto",
            "devices with inline encryption in hardware are not supported",
        ),
        CAUSE_IMAGE => unsupported("image", "this is an image of bdsnap itself"),
        CAUSE_BLOCK_SIZE => unsupported(
            "block-size",
            "its logical blocks are larger than the granule (4 KiB)",
        ),
        CAUSE_EMPTY => unsupported("empty", "the device has no capacity (no medium?)"),
        CAUSE_HOOK_BUSY => hint(
            cause(
                "hook-busy",
                "a livepatch or another module holds the kernel's submit_bio_noacct, or ftrace is off",
            ),
            "unload the other snapshot module or the livepatch; if `sysctl kernel.ftrace_enabled` says 0, set it to 1",
        ),
        CAUSE_HOOK_BLIND => hint(
            unsupported(
                "hook-blind",
                "writes of this kernel can't be seen: its submit_bio_noacct can't be hooked, or they don't pass it",
            ),
            "see the kernel log for failures of ftrace (only a reboot helps then); else use another kernel",
        ),
        CAUSE_UNCOUNTED => hint(
            unsupported(
                "uncounted",
                "it doesn't count its I/O (queue/iostats is 0), so that writes on their way can't be waited for",
            ),
            "write 1 to its queue/iostats in /sys/block; once it is tracked that may be 0 again",
        ),
        CAUSE_REQUEST_DM => hint(
            unsupported(
                "request-dm",
                "it is a path of a request-based device-mapper (multipath) device, which writes past bdsnap",
            ),
            "use the multipath device instead of its path",
        ),
        CAUSE_STORE_FS => hint(
            unsupported(
                "store-filesystem",
                "the file system of the store gives no access to its blocks",
            ),
            "put the store on ext4 or XFS: --store file:PATH",
        ),
        CAUSE_STORE_FILE => cause("store-file", "the store must be a regular, writable file"),
        CAUSE_STORE_BUSY => hint(
            cause(
                "store-busy",
                "the store is in use: a swap file, mounted, part of another device, tracked, or another store",
            ),
            "name a new file, or a device that nobody uses",
        ),
        CAUSE_STORE_RANGE => hint(
            cause("store-range", "the store's range is not inside its device"),
            "offset and size are multiples of 4K, and end before the device does",
        ),
        CAUSE_STORE_NEEDED => hint(
            cause(
                "store-needed",
                "the blocks that the file system gave hold what snapshots still need",
            ),
            "put the store on another disk",
        ),
        CAUSE_STORE_LIMIT => cause("store-limit", "that is more than the store may have"),
        CAUSE_STORE_MEMORY => hint(
            cause("store-memory", "so much memory is not free"),
            "give a smaller one, or a file: --store file:PATH",
        ),
        CAUSE_STORE_DEVICE => unsupported(
            "store-device",
            "the device can't hold a store: it is read-only, zoned, or an image",
        ),
        CAUSE_STORE_EXTENTS => cause(
            "store-extents",
            "the file's blocks can't be used (holes, shared or encoded extents)",
        ),
        CAUSE_STORE_FRAGMENTED => hint(
            cause("store-fragmented", "the store's file has too many extents"),
            "choose a file system with more contiguous free space: --store file:PATH",
        ),
        CAUSE_STORE_SMALL => hint(
            cause("store-small", "the store is too small"),
            "give a larger one: --store file:PATH,size=1G",
        ),
        CAUSE_FREEZE => hint(
            cause("freeze", "its file system could not be frozen"),
            "see the kernel log; --no-freeze takes a crash-consistent snapshot",
        ),
        CAUSE_FREEZE_TIMEOUT => hint(
            cause(
                "freeze-timeout",
                "freezing its file system took too long; all is thawed",
            ),
            "try again with less load, or --no-freeze",
        ),
        CAUSE_DRAIN_TIMEOUT => hint(
            cause(
                "drain-timeout",
                "writes in flight did not complete in time; all is as it was",
            ),
            "check the device; try again with less load",
        ),
        CAUSE_UNFROZEN => hint(
            Cause {
                kind: Some(Kind::Busy),
                ..cause("unfrozen", "somebody thawed its file system meanwhile")
            },
            "stop other tools that freeze (fsfreeze, a guest agent) and try again",
        ),
        CAUSE_RESIZED => hint(
            Cause {
                kind: Some(Kind::Busy),
                ..cause("resized", "its size changed while it has snapshots")
            },
            "delete its snapshots first",
        ),
        CAUSE_STORE_FULL => hint(
            damaged("store-full", "the store is full"),
            "delete the snapshot and take one with a larger store: --store file:PATH,size=SIZE",
        ),
        CAUSE_STORE_IO => damaged("store-io", "a write to the store failed"),
        CAUSE_ORIGIN_IO => damaged("origin-io", "parts of the origin could not be read"),
        CAUSE_NO_MEMORY => damaged("no-memory", "there was no memory to keep old data"),
        CAUSE_ORIGIN_GONE => damaged("origin-gone", "the origin's disk was removed"),
        CAUSE_PASSTHROUGH => hint(
            damaged(
                "passthrough",
                "a command that may write went to the disk past bdsnap (SG_IO, NVMe passthrough)",
            ),
            "take a new snapshot, and a full backup",
        ),
        CAUSE_HIBERNATED => hint(
            damaged("hibernated", "the machine hibernated"),
            "take a new snapshot, and a full backup",
        ),
        CAUSE_STRAY => hint(
            damaged(
                "stray",
                "a write that a cgroup's limit (io.max) had held back since before tracking began went to the disk",
            ),
            "take a new snapshot, and a full backup",
        ),
        CAUSE_STORE_STALLED => hint(
            damaged(
                "store-stalled",
                "the store's device did not answer while writes to the origin waited",
            ),
            "check that device, and put the store elsewhere",
        ),
        _ => return None,
    })
}

/// The code of a `CAUSE_*` for JSON: `None` for [`CAUSE_NONE`].
pub fn code(number: u32) -> Option<&'static str> {
    match number {
        CAUSE_NONE => None,
        _ => Some(look_up(number).map_or("unknown", |c| c.code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every cause of the header is known here, each with a code of its own.
    #[test]
    fn all_causes_are_known() {
        let mut codes = std::collections::HashSet::new();
        for (name, value) in CONSTANTS {
            if !name.starts_with("BDSNAP_CAUSE_") || *value == 0 {
                continue;
            }
            let cause = look_up(*value as u32).unwrap_or_else(|| panic!("{name} is unknown"));
            assert!(codes.insert(cause.code), "{name}: code used twice");
        }
        assert_eq!(code(0), None);
        assert_eq!(code(9999), Some("unknown"));
    }
}
