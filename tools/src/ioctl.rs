//! The ioctls themselves: the only unsafe code of the library.
//!
//! Each function takes the structs and buffers of one ioctl by reference, sets `size` and the
//! pointers, and makes the call. What the structs mean is in [`crate::abi`] and the header; the
//! convenient form is [`crate::device::Control`]. Where a call fails, the struct holds what the
//! kernel reported (`cause`, `fail_index`).

use crate::abi;
use crate::abi::op;
use rustix::fd::AsFd;
use rustix::fd::AsRawFd;
use rustix::fd::BorrowedFd;
use rustix::fd::FromRawFd;
use rustix::fd::OwnedFd;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::io::Result;
use rustix::ioctl::ioctl;
use rustix::ioctl::opcode;
use rustix::ioctl::Getter;
use rustix::ioctl::Opcode;
use rustix::ioctl::Setter;
use rustix::ioctl::Updater;

/// The size of `T`, as its `size` field wants it.
const fn size_of<T>() -> u32 {
    std::mem::size_of::<T>() as u32
}

/// Types that the kernel may fill with any bytes.
///
/// # Safety
///
/// `repr(C)`, without padding, and valid for every bit pattern.
pub unsafe trait Item: Copy + Default {}

// SAFETY: integers and arrays of integers, laid out without padding (asserted by tests/abi.rs).
unsafe impl Item for abi::OriginInfo {}
// SAFETY: as above.
unsafe impl Item for abi::SnapshotInfo {}
// SAFETY: as above.
unsafe impl Item for abi::VersionInfo {}

// SAFETY: as above.
unsafe impl Item for abi::Event {}

/// Makes an ioctl that reads and writes the struct `arg`.
///
/// # Safety
///
/// `OP` takes a `T`, and every address in `arg` is 0 or that of memory which may be accessed as
/// `OP` does, for as much as `arg` says, until the call returns.
unsafe fn update<const OP: Opcode, T>(fd: BorrowedFd<'_>, arg: &mut T) -> Result<()> {
    // SAFETY: by this function's contract; `arg` itself is borrowed mutably.
    unsafe { ioctl(fd, Updater::<OP, T>::new(arg)) }
}

/// `BDSNAP_IOC_VERSION`.
pub fn version(fd: BorrowedFd<'_>) -> Result<abi::Version> {
    let mut arg = abi::Version {
        size: size_of::<abi::Version>(),
        ..Default::default()
    };
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::VERSION }, _>(fd, &mut arg)? };
    Ok(arg)
}

/// `BDSNAP_IOC_TRACK`.
pub fn track(fd: BorrowedFd<'_>, arg: &mut abi::Track) -> Result<()> {
    arg.size = size_of::<abi::Track>();
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::TRACK }, _>(fd, arg) }
}

/// `BDSNAP_IOC_UNTRACK`.
pub fn untrack(fd: BorrowedFd<'_>, arg: &mut abi::Untrack) -> Result<()> {
    arg.size = size_of::<abi::Untrack>();
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::UNTRACK }, _>(fd, arg) }
}

/// One of the `BDSNAP_IOC_LIST_*`, `OP`: fills `items` and returns how many there are.
fn list<const OP: Opcode, T: Item>(
    fd: BorrowedFd<'_>,
    id: [u8; 16],
    items: &mut [T],
) -> Result<usize> {
    let mut arg = abi::List {
        size: size_of::<abi::List>(),
        count: u32::try_from(items.len()).unwrap_or(u32::MAX),
        item_size: size_of::<T>(),
        buffer: if items.is_empty() {
            0
        } else {
            items.as_mut_ptr() as u64
        },
        id,
        ..Default::default()
    };
    // SAFETY: all list ioctls take this struct; `buffer` has room for `count` (at most
    // `items.len()`) items of `item_size` bytes, and an Item may hold any bytes.
    unsafe { update::<OP, _>(fd, &mut arg)? };
    Ok(arg.count as usize)
}

/// `BDSNAP_IOC_LIST_ORIGINS`: fills `items`, returns how many there are.
pub fn list_origins(fd: BorrowedFd<'_>, items: &mut [abi::OriginInfo]) -> Result<usize> {
    list::<{ op::LIST_ORIGINS }, _>(fd, [0; 16], items)
}

/// `BDSNAP_IOC_LIST_SNAPSHOTS`: fills `items`, returns how many there are.
pub fn list_snapshots(fd: BorrowedFd<'_>, items: &mut [abi::SnapshotInfo]) -> Result<usize> {
    list::<{ op::LIST_SNAPSHOTS }, _>(fd, [0; 16], items)
}

/// `BDSNAP_IOC_LIST_VERSIONS` of snapshot `id`: fills `items`, returns how many there are.
pub fn list_versions(
    fd: BorrowedFd<'_>,
    id: [u8; 16],
    items: &mut [abi::VersionInfo],
) -> Result<usize> {
    list::<{ op::LIST_VERSIONS }, _>(fd, id, items)
}

/// `BDSNAP_IOC_STORE_ADD`; with a file, `room` is what the kernel asks the file system's mapping into.
pub fn store_add(
    fd: BorrowedFd<'_>,
    arg: &mut abi::StoreAdd,
    file: Option<(BorrowedFd<'_>, &mut [abi::FiemapExtent])>,
) -> Result<()> {
    arg.size = size_of::<abi::StoreAdd>();
    if let Some((file, room)) = file {
        arg.fd = file.as_raw_fd();
        arg.buffer = room.as_mut_ptr() as u64;
        arg.extent_count = u32::try_from(room.len()).unwrap_or(u32::MAX);
    }
    // SAFETY: the struct of this ioctl; `buffer` has room for `extent_count` extents, which are
    // integers only.
    unsafe { update::<{ op::STORE_ADD }, _>(fd, arg) }
}

/// `BDSNAP_IOC_STORE_DROP`.
pub fn store_drop(fd: BorrowedFd<'_>, store: u64) -> Result<()> {
    let mut arg = abi::StoreDrop {
        size: size_of::<abi::StoreDrop>(),
        flags: 0,
        store,
    };
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::STORE_DROP }, _>(fd, &mut arg) }
}

/// `BDSNAP_IOC_SNAPSHOT_CREATE` of `devices`, with the file systems of `freeze` frozen.
pub fn snapshot_create(
    fd: BorrowedFd<'_>,
    arg: &mut abi::SnapshotCreate,
    devices: &mut [abi::SnapshotDevice],
    freeze: &[BorrowedFd<'_>],
    note: &[u8],
) -> Result<()> {
    let fds: Vec<i32> = freeze.iter().map(|fd| fd.as_raw_fd()).collect();
    arg.size = size_of::<abi::SnapshotCreate>();
    arg.devices = devices.as_mut_ptr() as u64;
    arg.device_count = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    arg.freeze_fds = if fds.is_empty() {
        0
    } else {
        fds.as_ptr() as u64
    };
    arg.freeze_count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
    arg.note = note.as_ptr() as u64;
    arg.note_len = u32::try_from(note.len()).unwrap_or(u32::MAX);
    // SAFETY: the struct of this ioctl; `devices` is borrowed mutably and holds integers only, the
    // kernel only reads `freeze_fds` and `note`, and all live until the call returns.
    unsafe { update::<{ op::SNAPSHOT_CREATE }, _>(fd, arg) }
}

/// `BDSNAP_IOC_SNAPSHOT_KEEP`.
pub fn snapshot_keep(fd: BorrowedFd<'_>, id: [u8; 16]) -> Result<()> {
    let mut arg = abi::SnapshotRef {
        size: size_of::<abi::SnapshotRef>(),
        flags: 0,
        id,
    };
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::SNAPSHOT_KEEP }, _>(fd, &mut arg) }
}

/// `BDSNAP_IOC_SNAPSHOT_DELETE`.
pub fn snapshot_delete(fd: BorrowedFd<'_>, id: [u8; 16], flags: u32) -> Result<()> {
    let mut arg = abi::SnapshotRef {
        size: size_of::<abi::SnapshotRef>(),
        flags,
        id,
    };
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::SNAPSHOT_DELETE }, _>(fd, &mut arg) }
}

/// `BDSNAP_IOC_MAP_READ`: fills `values`, one a block; `arg.count` says how many it filled.
pub fn map_read(fd: BorrowedFd<'_>, arg: &mut abi::MapRead, values: &mut [u32]) -> Result<()> {
    arg.size = size_of::<abi::MapRead>();
    arg.buffer = if values.is_empty() {
        0
    } else {
        values.as_mut_ptr() as u64
    };
    arg.count = values.len() as u64;
    // SAFETY: the struct of this ioctl; `buffer` has room for `count` values.
    unsafe { update::<{ op::MAP_READ }, _>(fd, arg) }
}

/// `BDSNAP_IOC_MARK` of `ranges`.
pub fn mark(fd: BorrowedFd<'_>, arg: &mut abi::Mark, ranges: &[abi::Range]) -> Result<()> {
    arg.size = size_of::<abi::Mark>();
    arg.ranges = ranges.as_ptr() as u64;
    arg.count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    // SAFETY: the struct of this ioctl; the kernel only reads the `count` ranges.
    unsafe { update::<{ op::MARK }, _>(fd, arg) }
}

/// `BDSNAP_IOC_RECORD`.
pub fn record(fd: BorrowedFd<'_>, flags: u32, major: u32, minor: u32) -> Result<()> {
    let mut arg = abi::Record {
        size: size_of::<abi::Record>(),
        flags,
        major,
        minor,
    };
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::RECORD }, _>(fd, &mut arg) }
}

/// `BDSNAP_IOC_SINCE`.
pub fn since(fd: BorrowedFd<'_>, arg: &mut abi::Since) -> Result<()> {
    arg.size = size_of::<abi::Since>();
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::SINCE }, _>(fd, arg) }
}

/// `BDSNAP_IOC_SNAPSHOT_RELEASE` of `ranges`.
pub fn snapshot_release(
    fd: BorrowedFd<'_>,
    arg: &mut abi::Mark,
    ranges: &[abi::Range],
) -> Result<()> {
    arg.size = size_of::<abi::Mark>();
    arg.ranges = ranges.as_ptr() as u64;
    arg.count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    // SAFETY: the struct of this ioctl; the kernel only reads the `count` ranges.
    unsafe { update::<{ op::SNAPSHOT_RELEASE }, _>(fd, arg) }
}

/// `BDSNAP_IOC_FREE` of `ranges`.
pub fn free(fd: BorrowedFd<'_>, arg: &mut abi::Mark, ranges: &[abi::Range]) -> Result<()> {
    arg.size = size_of::<abi::Mark>();
    arg.ranges = ranges.as_ptr() as u64;
    arg.count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    // SAFETY: the struct of this ioctl; the kernel only reads the `count` ranges.
    unsafe { update::<{ op::FREE }, _>(fd, arg) }
}

/// `struct fsmap` of `linux/fsmap.h`; the head of `struct fsmap_head` has the same size.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FsMap {
    /// Device number; of the head: flags that go in.
    pub device: u32,
    /// `FMR_OF_*`; of the head: `FMH_OF_*` that come out.
    pub flags: u32,
    /// Bytes on the device; of the head: room (low half) and records (high half).
    pub physical: u64,
    /// `FMR_OWN_*`, with the flag SPECIAL_OWNER.
    pub owner: u64,
    /// Bytes in the owner.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

/// How many records [`getfsmap`] gives at a time.
pub const FSMAP_ROOM: usize = 1024;

/// `struct fsmap_head` with room for records.
#[repr(C)]
#[derive(Debug)]
pub struct FsMapHead {
    head: FsMap,
    keys: [FsMap; 2],
    /// The records; see [`getfsmap`].
    pub records: [FsMap; FSMAP_ROOM],
}

/// `FS_IOC_GETFSMAP` (`linux/fsmap.h`): fills in the records that follow `after` (the last one of the call
/// before, or none at first); returns how many there are, and the flags of the head. EOPNOTSUPP, ENOTTY:
/// the file system can't tell.
pub fn getfsmap(
    fd: impl AsFd,
    after: Option<FsMap>,
    buffer: &mut Box<FsMapHead>,
) -> Result<(usize, u32)> {
    const GETFSMAP: Opcode = opcode::read_write::<[FsMap; 3]>(b'X', 59);
    buffer.head = FsMap {
        physical: FSMAP_ROOM as u64,
        ..Default::default()
    };
    buffer.keys[0] = after.unwrap_or_default();
    buffer.keys[1] = FsMap {
        device: u32::MAX,
        flags: u32::MAX,
        physical: u64::MAX,
        owner: u64::MAX,
        offset: u64::MAX,
        ..Default::default()
    };
    // SAFETY: this ioctl reads the head and the keys, and writes as many records as the head has room for.
    unsafe { ioctl(fd, Updater::<GETFSMAP, FsMapHead>::new(&mut **buffer))? };
    let count = usize::try_from(buffer.head.physical >> 32).unwrap_or(0);
    Ok((count.min(FSMAP_ROOM), buffer.head.flags))
}

impl FsMapHead {
    /// An empty one.
    pub fn new() -> Box<Self> {
        Box::new(FsMapHead {
            head: FsMap::default(),
            keys: [FsMap::default(); 2],
            records: [FsMap::default(); FSMAP_ROOM],
        })
    }
}

/// `BDSNAP_IOC_EVENTS`: a new file that delivers events.
pub fn events(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut arg = abi::Events {
        size: size_of::<abi::Events>(),
        ..Default::default()
    };
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::EVENTS }, _>(fd, &mut arg)? };
    // SAFETY: the kernel has made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(arg.fd) })
}

/// `BDSNAP_IOC_SNAPSHOT_NOTE`: reads the note of snapshot `id` into `note`; how long it is.
pub fn snapshot_note(fd: BorrowedFd<'_>, id: [u8; 16], note: &mut [u8]) -> Result<usize> {
    let mut arg = abi::SnapshotNote {
        size: size_of::<abi::SnapshotNote>(),
        id,
        buffer: note.as_mut_ptr() as u64,
        length: u32::try_from(note.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    // SAFETY: the struct of this ioctl; `buffer` has room for `length` bytes.
    unsafe { update::<{ op::SNAPSHOT_NOTE }, _>(fd, &mut arg)? };
    Ok(arg.length as usize)
}

/// `BDSNAP_IOC_SERVE`: whether somebody serves stores then.
pub fn serve(fd: BorrowedFd<'_>, flags: u32) -> Result<bool> {
    let mut arg = abi::Serve {
        size: size_of::<abi::Serve>(),
        flags,
        ..Default::default()
    };
    // SAFETY: the struct of this ioctl; it holds no address.
    unsafe { update::<{ op::SERVE }, _>(fd, &mut arg)? };
    Ok(arg.served != 0)
}

/// Reads as many events as fit: how many. EAGAIN where the file is O_NONBLOCK and there is none.
pub fn read_events(fd: BorrowedFd<'_>, events: &mut [abi::Event]) -> Result<usize> {
    let item = std::mem::size_of::<abi::Event>();
    // SAFETY: an Item may hold any bytes, and has no padding.
    let bytes = unsafe {
        std::slice::from_raw_parts_mut(events.as_mut_ptr().cast::<u8>(), size_of_val(events))
    };
    Ok(rustix::io::read(fd, bytes)? / item)
}

/// `BLKGETSIZE64` (`linux/fs.h`): the size of a block device in bytes.
pub fn block_device_size(device: impl AsFd) -> Result<u64> {
    // The header declares the argument as size_t; the kernel writes 64 bits.
    const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
    // SAFETY: this ioctl writes one u64; on other files it fails and writes nothing.
    unsafe { ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }
}

/// `BLKZEROOUT` (`linux/fs.h`): makes `length` bytes at `offset` of a block device read as zeros.
/// EINVAL where these are not multiples of its logical block size.
pub fn block_device_zero(device: impl AsFd, offset: u64, length: u64) -> Result<()> {
    const BLKZEROOUT: Opcode = opcode::none(0x12, 127);
    // SAFETY: this ioctl reads two u64 (offset and length) and writes no memory of ours.
    unsafe {
        ioctl(
            device,
            Setter::<BLKZEROOUT, [u64; 2]>::new([offset, length]),
        )
    }
}

/// `FIGETBSZ` (`linux/fs.h`, `do_vfs_ioctl()` of Linux' fs/ioctl.c): bytes in a block of the file system that
/// `file` is on, the unit of [`file_blocks`]. EINVAL: it has none.
pub fn file_block_size(file: impl AsFd) -> Result<u32> {
    const FIGETBSZ: Opcode = opcode::none(0, 2);
    // SAFETY: this ioctl, which the kernel answers itself for every file, writes one int.
    unsafe { ioctl(file, Getter::<FIGETBSZ, u32>::new()) }
}

/// `FIBMAP` (`linux/fs.h`, `ioctl_fibmap()` of Linux' fs/ioctl.c; needs CAP_SYS_RAWIO) for each of `blocks`:
/// fills in which block of the file system's device is under that of the regular file `file`, from block
/// `first` of it on. The unit is [`file_block_size`]; 0 is a hole. EPERM; EINVAL: no regular file, or the file
/// system can't tell; ERANGE: a number, of the file or of the device, that is no positive int.
pub fn file_blocks(file: impl AsFd, first: u64, blocks: &mut [u32]) -> Result<()> {
    const FIBMAP: Opcode = opcode::none(0, 1);
    // Of other files this ioctl is whatever their driver takes it for.
    let mode = rustix::fs::fstat(&file)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    for (number, block) in (first..).zip(blocks) {
        let mut arg = i32::try_from(number).map_err(|_| Errno::RANGE)?;
        // SAFETY: this ioctl, which the kernel answers itself for a regular file, reads and writes one int.
        unsafe { ioctl(&file, Updater::<FIBMAP, i32>::new(&mut arg))? };
        *block = u32::try_from(arg).map_err(|_| Errno::RANGE)?;
    }
    Ok(())
}
