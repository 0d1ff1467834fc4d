/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * bdsnap: change tracking and copy-on-write snapshots of live block devices.
 *
 * The ABI between bdsnap.ko and its users. This file is its one source: the
 * module's types are generated from it, the Rust library's are checked against
 * it field by field, C programs include it.
 *
 * Everything goes through ioctls on BDSNAP_DEVICE (mode 0600). Rules for all:
 *
 *  - The argument is a pointer to a struct whose first field, `size`, holds
 *    the size in bytes that the caller compiled with. A larger struct than
 *    the kernel knows, up to 4096 bytes, is accepted while the surplus is
 *    zero (else E2BIG); a smaller one than the first ABI's is EINVAL. The
 *    kernel looks at the type and number of the ioctl and at `size`, not at
 *    the size in the code.
 *  - `flags` and `reserved` must hold no bit that is not defined: EINVAL.
 *  - Pointers travel as __u64. Offsets and lengths are bytes unless the name
 *    says otherwise. Devices are named by major and minor number.
 *  - A bad argument gets EINVAL (a bad pointer EFAULT) and changes nothing.
 *  - All but BDSNAP_IOC_VERSION need CAP_SYS_ADMIN: EPERM.
 *  - ENOENT: no such tracked origin, snapshot, image or store.
 *  - Ids and generations are 16 bytes of a UUID in RFC 4122 order.
 *
 * An open file of BDSNAP_DEVICE owns the stores it made and the snapshots it
 * took: they are deleted when it is closed, however that comes about, unless
 * BDSNAP_IOC_SNAPSHOT_KEEP gave them a life of their own.
 */
#ifndef _UAPI_BDSNAP_H
#define _UAPI_BDSNAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define BDSNAP_DEVICE		"/dev/bdsnap"
#define BDSNAP_ABI_VERSION	1
#define BDSNAP_IOC_TYPE		0xBD

/* Limits; each is enforced with EINVAL where no other error is named. */
#define BDSNAP_MAX_ORIGINS		1024u	/* tracked at a time: ENOSPC */
#define BDSNAP_MAX_SNAPSHOTS		1024u	/* alive at a time: ENOSPC */
#define BDSNAP_MAX_VERSIONS		64u	/* alive for one origin: ENOSPC */
#define BDSNAP_MAX_DEVICES		64u	/* origins in one snapshot */
#define BDSNAP_MAX_FREEZE		128u	/* file systems frozen in one call */
#define BDSNAP_MAX_EXTENTS		65536u	/* extents in one portion of a store */
#define BDSNAP_MAX_PORTIONS		1024u	/* in one store: ENOSPC */
#define BDSNAP_MAX_LANES		16u	/* devices in one store, memory is one: ENOSPC */
#define BDSNAP_MAX_NOTE			4096u	/* bytes in the note of a snapshot */
#define BDSNAP_MAX_MEMORY		(1ull << 39)	/* bytes in one portion */
#define BDSNAP_FREE_UNIT		65536u	/* bytes; free space, and what an increment needs, counts in
						   such, whole and aligned */
#define BDSNAP_MAX_RANGES		65536u	/* ranges in one MARK, FREE or SNAPSHOT_RELEASE */
#define BDSNAP_BLOCK_SIZE_MIN		4096u	/* CBT block, a power of two */
#define BDSNAP_BLOCK_SIZE_DEFAULT	65536u
#define BDSNAP_BLOCK_SIZE_MAX		16777216u
#define BDSNAP_GRANULE_MIN		4096u	/* copied unit, a power of two */
#define BDSNAP_GRANULE_DEFAULT		4096u
#define BDSNAP_GRANULE_MAX		4096u
#define BDSNAP_RUN_MAX			262144u	/* bytes copied together at most */
#define BDSNAP_TIMEOUT_DEFAULT_MS	10000u	/* where a time-out is given as 0 */
#define BDSNAP_TIMEOUT_MAX_MS		60000u
#define BDSNAP_STALL_MS			20000u	/* a store that takes nothing for so long, while writes to
						   the origin wait for it, is given up */
#define BDSNAP_PORTION_MS		10000u	/* writes wait so long at least for a portion of a store that may
						   grow, while somebody serves (SERVE) */
#define BDSNAP_HOLD_MAX_MS		600000u	/* the longest `hold_ms` */
#define BDSNAP_MAX_EVENTS		256u	/* kept for a reader that is late; older ones are lost */
#define BDSNAP_NAME_LEN			32	/* device names, with their NUL */

/* Why something was refused, or is broken: the `cause` fields. */
enum bdsnap_cause {
	BDSNAP_CAUSE_NONE = 0,
	/* at track (EOPNOTSUPP; HOOK_*: EOPNOTSUPP or EBUSY) */
	BDSNAP_CAUSE_ZONED = 1,		/* zoned device */
	BDSNAP_CAUSE_DAX = 2,		/* writes may bypass the block layer */
	BDSNAP_CAUSE_READ_ONLY = 3,	/* a read-only device: EROFS */
	BDSNAP_CAUSE_INTEGRITY = 4,	/* carries protection information */
	BDSNAP_CAUSE_INLINE_CRYPTO = 5,	/* inline encryption in hardware */
	BDSNAP_CAUSE_IMAGE = 6,		/* is itself an image of bdsnap */
	BDSNAP_CAUSE_BLOCK_SIZE = 7,	/* logical blocks larger than the granule; at a snapshot:
					   the store's are larger than the origin's */
	BDSNAP_CAUSE_EMPTY = 8,		/* no capacity: ENOMEDIUM */
	BDSNAP_CAUSE_HOOK_BUSY = 9,	/* a livepatch or another hook holds submit_bio_noacct,
					   or ftrace is off: EBUSY */
	BDSNAP_CAUSE_HOOK_BLIND = 10,	/* submit_bio_noacct can't be hooked, or this kernel's
					   writes don't pass it */
	BDSNAP_CAUSE_REQUEST_DM = 11,	/* a path held by request-based device-mapper wrote to its disk
					   around the hook (of a snapshot, or of an origin's end) */
	BDSNAP_CAUSE_UNCOUNTED = 12,	/* no requests, and queue/iostats is 0: writes on their way can't
					   be waited for */
	/* at store creation */
	BDSNAP_CAUSE_STORE_FS = 20,	/* file system not on the allow-list: EOPNOTSUPP */
	BDSNAP_CAUSE_STORE_FILE = 21,	/* not a regular, writable file: EINVAL */
	BDSNAP_CAUSE_STORE_BUSY = 22,	/* swap file or store already; a device: claimed (mounted),
					   overlaps an origin or another store: EBUSY */
	BDSNAP_CAUSE_STORE_EXTENTS = 23,/* an extent is a hole, shared, encoded, inline, delayed,
					   misaligned, out of bounds or overlaps: EINVAL */
	BDSNAP_CAUSE_STORE_FRAGMENTED = 24, /* more extents than the buffer holds: ENOSPC */
	BDSNAP_CAUSE_STORE_SMALL = 25,	/* no room for a single granule: EINVAL */
	BDSNAP_CAUSE_STORE_RANGE = 26,	/* not inside the device, or not made of granules: EINVAL */
	BDSNAP_CAUSE_STORE_DEVICE = 27,	/* can't serve: zoned, read-only, or an image: EOPNOTSUPP */
	BDSNAP_CAUSE_STORE_MEMORY = 28,	/* so much memory is not free: ENOMEM */
	BDSNAP_CAUSE_STORE_NEEDED = 29,	/* snapshots still need what its blocks hold: EBUSY */
	BDSNAP_CAUSE_STORE_LIMIT = 35,	/* more than the store may have: ENOSPC */
	/* at snapshot creation: `fail_index` names the device or file system */
	BDSNAP_CAUSE_FREEZE = 30,	/* a file system could not be frozen */
	BDSNAP_CAUSE_FREEZE_TIMEOUT = 31, /* ETIMEDOUT */
	BDSNAP_CAUSE_DRAIN_TIMEOUT = 32,/* writes in flight did not complete: ETIMEDOUT; EBUSY: try again,
					   some wait for a portion of a store */
	BDSNAP_CAUSE_UNFROZEN = 33,	/* somebody thawed a file system before the cut: EBUSY */
	BDSNAP_CAUSE_RESIZED = 34,	/* the origin's size changed while it has snapshots: EBUSY; of a
					   snapshot: its origin shrank */
	/* of a snapshot that is damaged */
	BDSNAP_CAUSE_STORE_FULL = 40,
	BDSNAP_CAUSE_STORE_IO = 41,	/* a store write failed */
	BDSNAP_CAUSE_ORIGIN_IO = 42,	/* parts could not be read: they alone are EIO */
	BDSNAP_CAUSE_NO_MEMORY = 43,
	BDSNAP_CAUSE_ORIGIN_GONE = 44,	/* the origin's disk was removed */
	BDSNAP_CAUSE_PASSTHROUGH = 45,	/* a command that may write went to the disk around the hook
					   (SG_IO, bsg, NVMe passthrough) */
	BDSNAP_CAUSE_HIBERNATED = 46,	/* the machine hibernated */
	BDSNAP_CAUSE_STORE_STALLED = 47,/* the store's device did not answer for
					   BDSNAP_STALL_MS while writes to the origin waited */
	BDSNAP_CAUSE_STRAY = 48,	/* a write that a cgroup's limit (io.max) had held back since
					   before tracking began went to the disk, unseen */
};

/*
 * BDSNAP_IOC_VERSION: what this module is. Needs no capability.
 */
#define BDSNAP_FEATURE_DISCARDS	(1u << 0)	/* MAP_READ knows BDSNAP_MAP_DISCARDS */
#define BDSNAP_FEATURE_EVENTS		(1u << 1)	/* BDSNAP_IOC_EVENTS */
#define BDSNAP_FEATURE_RELEASE		(1u << 2)	/* BDSNAP_IOC_SNAPSHOT_RELEASE */
#define BDSNAP_FEATURE_SINCE		(1u << 3)	/* BDSNAP_IOC_SINCE */
struct bdsnap_version {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u32 abi;		/* out: BDSNAP_ABI_VERSION */
	__u32 hook;		/* out: 0 absent (nothing tracked), 1 active */
	__u64 features;		/* out: BDSNAP_FEATURE_*; ignore those that you don't know */
	char release[32];	/* out: the module's version, NUL-terminated */
};

/*
 * BDSNAP_IOC_TRACK: start change tracking of a device. Tracking again with
 * the same block size (or 0) is no error; with another: EEXIST.
 * A device whose generation has ended gets a new one, unless it has snapshots
 * that are still good.
 * ENODEV/ENXIO: no such block device. EOPNOTSUPP, EROFS, ENOMEDIUM, EBUSY:
 * see `cause`. ENOMEM: no memory for the map. EINTR: the process is being
 * killed. ENOSPC: too many origins.
 */
struct bdsnap_track {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u32 major;
	__u32 minor;
	__u32 block_size;	/* in/out: bytes; 0: keep, or the default */
	__u32 cause;		/* out, also where the call fails */
	__u8 generation[16];	/* out */
	__u64 number;		/* out: 0 right after the start */
};

/*
 * BDSNAP_IOC_UNTRACK: stop tracking. ENOENT: was not tracked. EBUSY: has
 * snapshots (with FORCE: one of its images is open), or writes in flight did
 * not complete within BDSNAP_TIMEOUT_DEFAULT_MS.
 */
#define BDSNAP_UNTRACK_FORCE	(1u << 0)	/* delete its snapshots first */
struct bdsnap_untrack {
	__u32 size;
	__u32 flags;
	__u32 major;
	__u32 minor;
};

/*
 * The lists: the caller gives room for `count` items of `item_size` bytes at
 * `buffer`; the kernel fills as many as fit (each cut or zero-padded to
 * item_size) and returns in `count` how many there are.
 */
struct bdsnap_list {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u32 count;		/* in/out: items */
	__u32 item_size;	/* in: bytes, a multiple of 8, 8 to 4096 */
	__u64 buffer;		/* in: may be 0 with count 0 */
	__u8 id[16];		/* in: the snapshot, for LIST_VERSIONS; else zero */
};

/* States of an origin. */
enum bdsnap_origin_state {
	BDSNAP_ORIGIN_TRACKED = 0,
	BDSNAP_ORIGIN_RESIZED = 1,	/* size changed: the next snapshot starts a new generation */
	BDSNAP_ORIGIN_GONE = 2,		/* its disk was removed: untrack it */
	BDSNAP_ORIGIN_RESET = 3,	/* writes may have been missed, see cause: the next snapshot (or
					   TRACK) starts a new generation; until then MAP_READ: ESTALE */
};

/* BDSNAP_IOC_LIST_ORIGINS: array of these, in the order of tracking. */
struct bdsnap_origin_info {
	__u32 major;
	__u32 minor;
	char name[BDSNAP_NAME_LEN];	/* kernel name, "vdb1" */
	__u64 device_size;		/* bytes, as tracked */
	__u32 block_size;		/* bytes of a CBT block */
	__u32 state;			/* enum bdsnap_origin_state */
	__u8 generation[16];
	__u64 number;			/* of the newest snapshot, 0: none yet */
	__u64 oldest;			/* `since` below this can't be answered */
	__u32 snapshots;		/* versions, failed ones included */
	__u32 cause;			/* why its generation has ended: enum bdsnap_cause */
	__u64 bytes_copied;		/* copied on write since tracking began */
	__u64 writes_parked;		/* writes that waited, for a copy or at the gate */
};

/*
 * BDSNAP_IOC_STORE_ADD: make a portion of a snapstore: of a new store for the
 * next SNAPSHOT_CREATE through this open file of BDSNAP_DEVICE, one more of a
 * store made through it before, or one more of the store of a snapshot that
 * may grow (`snapshot`, with `store` 0; whoever made it). All portions of a
 * store are used side by side, device by device, each as far as the others.
 *
 * Blocks of a portion for a snapshot that lie on an origin and whose content
 * some snapshot still needs (of a file deleted since, say) are left alone: they
 * count for the limit, and not for the capacity.
 *
 * A write has the granules that it touches copied first, and with them what
 * else is needed of the aligned blocks of `run` bytes that they lie in: a power
 * of two from the granule up to BDSNAP_RUN_MAX. Where three quarters of the
 * store are used, only the granules. What is zeros takes no room, but for
 * granules of zeros between others that are copied at once. (One discard of
 * more than 64 MiB of what is needed, and of more than the store can get, ends
 * the image at once: to read all that would hold it up for too long.)
 *
 * FILE: the blocks of a file. It must be regular, opened for writing,
 * allocated without holes, on ext4 or XFS (data on one plain device), or on
 * vfat or exfat, which have no FIEMAP: there the kernel asks cluster by
 * cluster (bmap), and leaves the buffer alone. It is
 * pinned: S_SWAPFILE is set on its inode, so it can't be truncated, moved,
 * reflinked or unlinked while it serves. The kernel keeps a reference: unlink
 * it before (or use O_TMPFILE), and its blocks are free when it has served.
 * The kernel asks the file system for the mapping (FIEMAP) into the caller's
 * buffer, then copies it in once and checks it.
 *
 * DEVICE: a range of a block device, whose content is lost. The device is
 * claimed as by a mount, and must not be an origin, or hold a part of one;
 * one that is a partition of an origin may serve (it reads as zeros there).
 * `offset` and `length` are made of whole granules, but for a length of 0: up
 * to the end.
 *
 * The first MiB of the device stays unused, so that nobody takes it for a
 * second one of an origin's file system.
 *
 * MEMORY: `length` bytes of memory, up to BDSNAP_MAX_MEMORY, taken at once. A
 * tenth of the machine's memory must remain available.
 *
 * One of them has less than 512 TiB: EINVAL otherwise.
 *
 * Fields that the kind doesn't use are 0. ENOENT: no such store of this open
 * file, no such snapshot, or one that has failed. ENOSPC:
 * BDSNAP_MAX_PORTIONS or _LANES are reached. ENOMEM: also where so much
 * memory is not free. EINTR: a signal came while it was being taken. Others:
 * see `cause`.
 */
enum bdsnap_store_kind {
	BDSNAP_STORE_FILE = 1,
	BDSNAP_STORE_DEVICE = 2,
	BDSNAP_STORE_MEMORY = 3,
};
struct bdsnap_store_add {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u64 store;		/* in: 0: a new one; out: handle, valid in this open file only */
	__u32 kind;		/* in: enum bdsnap_store_kind */
	__s32 fd;		/* in: FILE */
	__u32 major;		/* in: DEVICE */
	__u32 minor;
	__u32 granule;		/* in: bytes; 0: the store's, or of a new one the default */
	__u32 extent_count;	/* in: FILE: room; out: extents used */
	__u64 buffer;		/* in: FILE: room for struct fiemap_extent[extent_count] */
	__u64 offset;		/* in: DEVICE: bytes */
	__u64 length;		/* in: DEVICE, MEMORY: bytes */
	__u64 capacity;		/* out: bytes, whole granules, of the store by now */
	__u32 cause;		/* out */
	__u32 run;		/* in: bytes; 0: the store's, or of a new one the granule */
	__u8 snapshot[16];	/* in: the snapshot whose store is to grow; else zero */
};

/*
 * BDSNAP_IOC_STORE_DROP: give back a store that has no snapshot. ENOENT: no
 * such store of this open file.
 */
struct bdsnap_store_drop {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u64 store;		/* in */
};

/* One origin of a snapshot to be. */
struct bdsnap_snapshot_device {
	__u32 major;		/* in: a tracked origin */
	__u32 minor;
	__u32 image_major;	/* out */
	__u32 image_minor;
	char image_name[BDSNAP_NAME_LEN]; /* out: "bdsnap-image0" */
	__u64 device_size;	/* out: bytes */
	__u8 generation[16];	/* out */
	__u64 number;		/* out: the number of this cut */
};

/*
 * BDSNAP_IOC_SNAPSHOT_CREATE: cut all the origins at one instant.
 * The store must not lie on a stack above an origin (a volume on the disk, a
 * loop file on it): each copy written to it would be a write to that origin
 * whose old data has to be copied, and so on until the store is full. (On the
 * origin itself, or its disk, it may lie: those blocks are known.)
 * The file systems of freeze_fds (any fd on them) are frozen in that order
 * and thawed in the reverse one; then the origins' gates are closed in the
 * order given (list upper devices of a stack first), the writes in flight are
 * drained, all switch, and everything opens again. On any failure everything
 * is rolled back and thawed, `cause` and `fail_index` tell the reason, and
 * the store remains usable. On success the store belongs to the snapshot.
 *
 * A store with a `store_limit` may grow: when what is left won't last for long
 * at the rate at which it is used, BDSNAP_EVENT_LOW is posted and the list of
 * snapshots says how much is wanted (`store_wanted`), until STORE_ADD brings
 * it. What is kept back by then is for the metadata of file systems, so that
 * portions can be allocated on the origin itself; other writes that need a copy
 * wait: `hold_ms`, and while the store may grow and somebody serves, at least
 * BDSNAP_PORTION_MS. Then all is used up, and the snapshot fails with cause
 * STORE_FULL. (While a cut freezes an origin its writes wait for no portion.)
 * The store's end is told by BDSNAP_EVENT_DELETED; its files are given back by
 * the kernel.
 * ENOENT: an origin is not tracked, no such store. EBUSY, ETIMEDOUT,
 * EOPNOTSUPP (the store's logical blocks are larger than an origin's), ENODEV
 * (an origin's disk is gone): see `cause`. ESTALE: see SINCE. EEXIST: an
 * origin is named twice. EINTR: a signal came. ENOSPC: a limit. ENOMEM.
 */
struct bdsnap_snapshot_create {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u8 id[16];		/* out */
	__u64 store;		/* in: from STORE_ADD */
	__u64 devices;		/* in: struct bdsnap_snapshot_device[device_count], also written */
	__u64 freeze_fds;	/* in: __s32[freeze_count] */
	__u32 device_count;
	__u32 freeze_count;
	__u32 freeze_timeout_ms;/* in: for all file systems together; 0: default */
	__u32 drain_timeout_ms;	/* in: for all origins together; 0: default */
	__u32 cause;		/* out */
	__u32 fail_index;	/* out: into devices or freeze_fds */
	__u64 created_ns;	/* out: CLOCK_REALTIME at the cut */
	__u64 freeze_ns;	/* out: first freeze begun to last thaw done */
	__u64 gate_ns;		/* out: first gate closed to all gates open */
	__u64 store_limit;	/* in: bytes of portions; 0: the store stays as it is. EINVAL: below that */
	__u64 store_portion;	/* in: bytes that are asked for at a time, at least; 0 without a limit */
	__u64 note;		/* in: note_len bytes that the kernel keeps with the snapshot */
	__u32 note_len;		/* in: up to BDSNAP_MAX_NOTE */
	__u32 hold_ms;		/* in: writes wait so long for a portion when the store is full */
};

/*
 * BDSNAP_IOC_SNAPSHOT_KEEP: the snapshot no longer ends with this open file.
 * BDSNAP_IOC_SNAPSHOT_DELETE: ENOENT: no such (which a script may take for
 * done). EBUSY: one of its images is open; with FORCE the snapshot goes all
 * the same, and an image that is open stays until it is closed: its readers get
 * EIO. ETIMEDOUT: its store's device does not answer, or the origin's does not
 * answer a read of an image; the snapshot has failed, and can be deleted when
 * that is over.
 */
#define BDSNAP_DELETE_FORCE	(1u << 0)	/* DELETE only */
struct bdsnap_snapshot_ref {
	__u32 size;
	__u32 flags;
	__u8 id[16];
};

/*
 * BDSNAP_IOC_SNAPSHOT_RELEASE (struct bdsnap_mark): whoever reads an image is
 * done with ranges of it: they are not copied any more, what has been copied of
 * them makes room in the store, but for what older snapshots need, and they
 * read as zeros, for ever. `major`/`minor` name the image. Ranges count inwards
 * in whole granules (the last one of a device may be short). EINVAL: a range is
 * empty or ends past the device: then none is released. EIO: the image has
 * failed. ETIMEDOUT: copies of what lies in a range were under way, and did not
 * get on for BDSNAP_STALL_MS, since the origin or the store does not answer;
 * it, and what comes after it, may not be released. ENOMEM: the same.
 *
 * BLKDISCARD on the image does so, too, once `blockdev --setrw` (BLKROSET) has
 * allowed it. Other writes to an image fail with EIO whatever that says: at
 * once if they are direct, else when they are written back, and until then who
 * reads the image by the page cache sees them there, which `blockdev --setro`
 * ends. So this is for programs that know nothing else.
 *
 * BDSNAP_IOC_SNAPSHOT_NOTE: read the note of a snapshot. It is for whoever
 * serves its store. ENOENT: no such snapshot.
 */
struct bdsnap_snapshot_note {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u8 id[16];
	__u64 buffer;
	__u32 length;		/* in: room; out: bytes of the note, of which as many as fit are there */
	__u32 reserved;		/* in: 0 */
};

/*
 * BDSNAP_IOC_SERVE: this open file of BDSNAP_DEVICE serves stores that may
 * grow, until it is closed: writes may wait for a portion. EBUSY: another one
 * does. What there is to do is in the list of snapshots (`store_wanted`).
 */
#define BDSNAP_SERVE_QUERY	(1u << 0)	/* only tell whether any does */
struct bdsnap_serve {
	__u32 size;
	__u32 flags;
	__u32 served;		/* out: 1: one does (this one, without QUERY) */
	__u32 reserved;		/* in: 0 */
};

/* States of a snapshot and of its versions. */
enum bdsnap_snapshot_state {
	BDSNAP_SNAPSHOT_OK = 0,
	BDSNAP_SNAPSHOT_DAMAGED = 1,	/* some granules are unreadable: EIO there */
	BDSNAP_SNAPSHOT_FAILED = 2,	/* EIO everywhere */
};

/* BDSNAP_IOC_LIST_SNAPSHOTS: array of these, oldest first. */
struct bdsnap_snapshot_info {
	__u8 id[16];
	__u64 created_ns;	/* CLOCK_REALTIME */
	__u32 state;		/* the worst of its versions */
	__u32 cause;
	__u32 device_count;
	__u32 granule;		/* bytes */
	__u64 store_capacity;	/* bytes; 0 where all its versions have failed: it is given back */
	__u64 store_used;	/* bytes */
	__u64 store_limit;	/* bytes; = capacity for a fixed store */
	__u32 kept;		/* 1: SNAPSHOT_KEEP was called */
	__u32 store_major;	/* a device that holds the store; 0, 0: it is in memory */
	__u32 store_minor;
	__u32 store_waiting;	/* 1: writes wait for a portion */
	__u64 store_wanted;	/* bytes that a portion should have; 0: none is needed */
	__u64 store_rate;	/* bytes used a second */
	__u64 store_seconds;	/* until it is full at this rate, growing included; ~0: it isn't used */
	__u32 hold_ms;		/* as in SNAPSHOT_CREATE */
	__u32 note_len;		/* bytes of its note */
	__u32 run;		/* bytes that are copied together */
	__u32 reserved;
};

/* BDSNAP_IOC_LIST_VERSIONS: array of these, in the order of creation. */
struct bdsnap_version_info {
	__u32 major;		/* origin */
	__u32 minor;
	char name[BDSNAP_NAME_LEN];
	__u32 image_major;
	__u32 image_minor;
	char image_name[BDSNAP_NAME_LEN];
	__u64 device_size;	/* bytes */
	__u8 generation[16];
	__u64 number;
	__u32 state;		/* enum bdsnap_snapshot_state */
	__u32 cause;
	/* Of these bytes whole granules count, the one in which the device ends, too. */
	__u64 bytes_copied;	/* to its store, what has been released since included */
	__u64 bytes_lost;	/* unreadable: the origin gave errors, or a store with newer data did */
	__u64 bytes_not_kept;	/* store extents: read as zeros */
	__u32 openers;		/* of the image */
	__u32 flags;		/* BDSNAP_VERSION_* */
	__u64 bytes_free;	/* free at the cut (FREE): read as zeros */
	__u64 bytes_unneeded;	/* not changed since `since`, and not free: read as zeros */
	__u64 bytes_released;	/* released (SNAPSHOT_RELEASE): read as zeros */
	__u64 since;		/* with VERSION_SINCE: it holds what changed after this snapshot */
};
#define BDSNAP_VERSION_SINCE	(1u << 0)	/* for an increment only: see SINCE */

/*
 * BDSNAP_IOC_MAP_READ: the change map. `major`/`minor` name an image (the map
 * as of its cut) or an origin (the map as of its newest snapshot's cut while
 * that lives, else, and with LIVE, as it is now). For each block of
 * [first_block, first_block + count) buffer gets a __u32: the number of the
 * snapshot before which the block last changed, 0 where it has not changed
 * since tracking began. A block differs between snapshots `since` and
 * `number` only if its value is above `since`. (Values are exact above
 * `oldest`, and at most `oldest` below.)
 * ESTALE: `generation` is not this map's, `since` is below `oldest` or above
 * `number`: take a full backup. (`oldest` of an image for an increment is at
 * least what it was made for: SINCE.) EINVAL: first_block beyond the end. `count`
 * is clamped to the end. All fields are filled in also with ESTALE.
 *
 * With DISCARDS, the value of a block that changed last by a discard has
 * BDSNAP_MAP_DISCARDED set beside its number: a discard (REQ_OP_DISCARD) that
 * covered the block wholly and succeeded, after all writes to the block had
 * completed; and nothing wrote to it since. What such a block reads as is not
 * defined: nobody wants it. Whatever else there is (writing zeros, secure
 * erase, a part of the block discarded, a discard that failed, one at the same
 * time as a write, MARK, memory that was short) counts as written; and so may
 * an older discard, never the other way round. With LIVE, a block with writes
 * or discards still in flight may be either. EOVERFLOW: with DISCARDS, where
 * the numbers reach that bit.
 */
#define BDSNAP_MAP_LIVE		(1u << 0)
#define BDSNAP_MAP_DISCARDS	(1u << 1)
#define BDSNAP_MAP_DISCARDED	(1u << 31)	/* in a value */
struct bdsnap_map_read {
	__u32 size;
	__u32 flags;
	__u32 major;
	__u32 minor;
	__u8 generation[16];	/* in: zero: any; out: the map's */
	__u64 since;		/* in */
	__u64 first_block;	/* in */
	__u64 count;		/* in/out: blocks; 0 with buffer 0: only the header */
	__u64 buffer;		/* in: __u32[count] */
	__u64 number;		/* out: the map is as of this snapshot */
	__u64 oldest;		/* out */
	__u64 device_size;	/* out: bytes */
	__u32 block_size;	/* out: bytes */
	__u32 reserved;		/* in: 0 */
};

/*
 * BDSNAP_IOC_MARK: record ranges as changed, outwards to whole CBT blocks.
 * EINVAL: a range is empty or ends past the device: then none is marked.
 * EINTR: the process is being killed; some of them are.
 */
struct bdsnap_range {
	__u64 offset;		/* bytes */
	__u64 length;		/* bytes, not 0 */
};
struct bdsnap_mark {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u32 major;
	__u32 minor;
	__u64 ranges;		/* in: struct bdsnap_range[count] */
	__u32 count;		/* in: 1 to BDSNAP_MAX_RANGES */
	__u32 reserved;		/* in: 0 */
};

/*
 * BDSNAP_IOC_RECORD: record all writes to an origin from now on, until this
 * open file takes a snapshot of it, ends the recording (END), or is closed: a
 * snapshot that can't be taken does not end it, and what was told by FREE and
 * SINCE goes on to count. To call it again changes nothing. EBUSY: another open
 * file has it recorded. ESTALE: its generation has ended. ENOENT: it is not
 * tracked; with END: this open file does not have it recorded.
 *
 * BDSNAP_IOC_FREE (struct bdsnap_mark): ranges of an origin that its file
 * system said to be free after RECORD: the next snapshot that this open file
 * takes of it does not keep them, but for what is written until the cut. They
 * read as zeros in its image, for ever. What is free at one cut and not at the
 * next, or the other way round, counts as changed in between (by a discard,
 * where it is free now). Ranges are made of whole sectors;
 * they count inwards, in whole BDSNAP_FREE_UNIT. EINVAL: a range is empty or ends past the
 * device: then none counts. ENOENT: this open file does not have it recorded.
 *
 * This is safe for a file system that the snapshot freezes (all that a frozen
 * one holds it has written by then) and that is not remounted in between, with
 * ranges that FS_IOC_GETFSMAP reported as FMR_OWN_FREE, for ext4, and for XFS
 * asked without CAP_SYS_ADMIN.
 */
struct bdsnap_record {
	__u32 size;
	__u32 flags;		/* in: BDSNAP_RECORD_END or 0 */
	__u32 major;
	__u32 minor;
};
#define BDSNAP_RECORD_END	(1u << 0)	/* end the recording */

/*
 * BDSNAP_IOC_SINCE: the next snapshot that this open file takes of an origin
 * is for an increment: it keeps only what changed after snapshot `since`, by
 * the change map as of its cut; outwards to whole blocks of the map, and to
 * whole BDSNAP_FREE_UNIT. What else there is reads as zeros in its image, for
 * ever. ENOENT: this open file does not have the origin recorded (RECORD).
 * ESTALE: `generation` is not the origin's, or `since` is below `oldest` or
 * above its newest number: take a full backup. SNAPSHOT_CREATE says ESTALE,
 * too, where other snapshots in between have made `since` too old.
 */
struct bdsnap_since {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__u32 major;
	__u32 minor;
	__u8 generation[16];	/* in: zero: any */
	__u64 since;		/* in */
};

/*
 * BDSNAP_IOC_EVENTS: a new file (close-on-exec) that delivers what happens
 * from now on. read(2) gives whole struct bdsnap_event, as many as fit
 * (EINVAL: not even one), and waits for the first unless the file is
 * O_NONBLOCK (EAGAIN) or a signal comes (EINTR). poll(2): POLLIN. Each file
 * gets every event; whoever falls behind by more than BDSNAP_MAX_EVENTS gets
 * one BDSNAP_EVENT_LOST, and looks at the lists, which are always right.
 * EMFILE, ENFILE: no more files may be open. ENOMEM.
 */
struct bdsnap_events {
	__u32 size;
	__u32 flags;		/* in: 0 */
	__s32 fd;		/* out */
	__u32 reserved;		/* in: 0 */
};

enum bdsnap_event_type {
	BDSNAP_EVENT_TRACKED = 1,	/* an origin: a generation begins */
	BDSNAP_EVENT_UNTRACKED = 2,	/* it is not tracked any more */
	BDSNAP_EVENT_ORIGIN_ENDED = 3,	/* its generation has ended: see cause */
	BDSNAP_EVENT_CREATED = 4,	/* one for each origin of a new snapshot */
	BDSNAP_EVENT_FAILED = 5,	/* of an origin of a snapshot: its image can't be read any more */
	BDSNAP_EVENT_DAMAGED = 6,	/* the same: parts can't be read */
	BDSNAP_EVENT_DELETED = 7,	/* a snapshot is gone: no origin */
	BDSNAP_EVENT_LOST = 8,		/* `number` events were overwritten before they were read */
	BDSNAP_EVENT_LOW = 9,		/* the store of a snapshot: at the rate of this origin's writes it
					   will be full in `number` seconds, growing included; ~0: it
					   is not known */
};

/* Fields that an event has nothing for are zero. */
struct bdsnap_event {
	__u64 sequence;			/* counts all events of the module */
	__u64 time_ns;			/* CLOCK_REALTIME */
	__u32 type;			/* enum bdsnap_event_type */
	__u32 cause;			/* enum bdsnap_cause */
	__u32 major;			/* the origin */
	__u32 minor;
	char name[BDSNAP_NAME_LEN];	/* its kernel name */
	__u8 generation[16];
	__u8 snapshot[16];		/* id */
	__u64 number;			/* of the snapshot for this origin; LOST, LOW: see there */
};

#define BDSNAP_IOC_VERSION		_IOWR(BDSNAP_IOC_TYPE, 0x00, struct bdsnap_version)
#define BDSNAP_IOC_TRACK		_IOWR(BDSNAP_IOC_TYPE, 0x01, struct bdsnap_track)
#define BDSNAP_IOC_UNTRACK		_IOWR(BDSNAP_IOC_TYPE, 0x02, struct bdsnap_untrack)
#define BDSNAP_IOC_LIST_ORIGINS		_IOWR(BDSNAP_IOC_TYPE, 0x03, struct bdsnap_list)
#define BDSNAP_IOC_STORE_ADD		_IOWR(BDSNAP_IOC_TYPE, 0x10, struct bdsnap_store_add)
#define BDSNAP_IOC_STORE_DROP		_IOWR(BDSNAP_IOC_TYPE, 0x11, struct bdsnap_store_drop)
#define BDSNAP_IOC_SNAPSHOT_CREATE	_IOWR(BDSNAP_IOC_TYPE, 0x20, struct bdsnap_snapshot_create)
#define BDSNAP_IOC_SNAPSHOT_KEEP	_IOWR(BDSNAP_IOC_TYPE, 0x21, struct bdsnap_snapshot_ref)
#define BDSNAP_IOC_SNAPSHOT_DELETE	_IOWR(BDSNAP_IOC_TYPE, 0x22, struct bdsnap_snapshot_ref)
#define BDSNAP_IOC_LIST_SNAPSHOTS	_IOWR(BDSNAP_IOC_TYPE, 0x23, struct bdsnap_list)
#define BDSNAP_IOC_LIST_VERSIONS	_IOWR(BDSNAP_IOC_TYPE, 0x24, struct bdsnap_list)
#define BDSNAP_IOC_SNAPSHOT_NOTE	_IOWR(BDSNAP_IOC_TYPE, 0x25, struct bdsnap_snapshot_note)
#define BDSNAP_IOC_SNAPSHOT_RELEASE	_IOWR(BDSNAP_IOC_TYPE, 0x26, struct bdsnap_mark)
#define BDSNAP_IOC_MAP_READ		_IOWR(BDSNAP_IOC_TYPE, 0x30, struct bdsnap_map_read)
#define BDSNAP_IOC_MARK			_IOWR(BDSNAP_IOC_TYPE, 0x31, struct bdsnap_mark)
#define BDSNAP_IOC_RECORD		_IOWR(BDSNAP_IOC_TYPE, 0x32, struct bdsnap_record)
#define BDSNAP_IOC_FREE			_IOWR(BDSNAP_IOC_TYPE, 0x33, struct bdsnap_mark)
#define BDSNAP_IOC_SINCE		_IOWR(BDSNAP_IOC_TYPE, 0x34, struct bdsnap_since)
#define BDSNAP_IOC_EVENTS		_IOWR(BDSNAP_IOC_TYPE, 0x40, struct bdsnap_events)
#define BDSNAP_IOC_SERVE		_IOWR(BDSNAP_IOC_TYPE, 0x41, struct bdsnap_serve)

#endif /* _UAPI_BDSNAP_H */
