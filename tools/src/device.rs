//! `/dev/bdsnap`, typed: one method an ioctl.
//!
//! A [`Control`] owns the stores it made and the snapshots it took: the kernel deletes them when
//! it is dropped or the process dies, unless [`Control::snapshot_keep`] was called.

use crate::abi;
use crate::cause;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::ioctl;
use rustix::fd::AsFd;
use rustix::fd::BorrowedFd;
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fmt::Display;
use uuid::Uuid;

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevNum {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Display for DevNum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// An ioctl of the module that failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{call}: {errno}")]
pub struct CallError {
    /// What was asked for: "track", "snapshot create" ...
    pub call: &'static str,
    /// The error number.
    pub errno: Errno,
    /// `CAUSE_*`, [`abi::CAUSE_NONE`] where the kernel gave none.
    pub cause: u32,
    /// Which device or file system of several, where the cause is about one.
    pub index: u32,
}

impl CallError {
    fn new(call: &'static str, errno: Errno) -> Self {
        CallError {
            call,
            errno,
            cause: abi::CAUSE_NONE,
            index: 0,
        }
    }

    /// The class of an error number where no cause is known.
    fn kind(&self) -> Kind {
        match self.errno {
            Errno::PERM | Errno::ACCESS => Kind::Permission,
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Kind::NotFound,
            Errno::BUSY => Kind::Busy,
            Errno::OPNOTSUPP | Errno::ROFS | Errno::NOMEDIUM | Errno::NOTTY => Kind::Unsupported,
            Errno::STALE => Kind::Tracking,
            _ => Kind::Failed,
        }
    }

    /// The error to report, about `subject` (a device, a file, a snapshot).
    pub fn on(self, subject: impl Display) -> Error {
        if let Some(cause) = cause::look_up(self.cause) {
            let error = Error::new(
                cause.kind.unwrap_or_else(|| self.kind()),
                format!("{}: {subject}: {}", self.call, cause.text),
            )
            .code(cause.code);
            return match cause.hint {
                Some(hint) => error.hint(hint),
                None => error,
            };
        }
        let error = Error::new(
            self.kind(),
            format!("{}: {subject}: {}", self.call, self.errno_text()),
        );
        match self.errno {
            Errno::PERM | Errno::ACCESS => error.hint("run it as root (CAP_SYS_ADMIN)"),
            Errno::NOTTY => error
                .code("abi")
                .hint("load the module that belongs to this tool"),
            Errno::STALE => error.hint("take a full backup"),
            Errno::INTR => error.code("interrupted"),
            Errno::TIMEDOUT => error
                .code("store-stalled")
                .hint("see the kernel log for that device; try again later"),
            _ => error,
        }
    }

    fn errno_text(&self) -> String {
        match self.errno {
            Errno::PERM | Errno::ACCESS => "permission denied".into(),
            Errno::NOENT => "no such tracked device, snapshot or store".into(),
            Errno::NODEV | Errno::NXIO => "no such block device".into(),
            Errno::BUSY => "in use".into(),
            Errno::STALE => "change tracking has no answer to this".into(),
            Errno::NOTTY => "the loaded module does not know this call".into(),
            Errno::NOMEM => "the kernel has no memory for this".into(),
            Errno::NOSPC => "a limit of the module is reached".into(),
            Errno::INTR => "interrupted by a signal".into(),
            Errno::TIMEDOUT => "the device of the store, or the origin, does not answer".into(),
            errno => std::io::Error::from(errno).to_string(),
        }
    }
}

/// Results of the calls.
pub type CallResult<T> = std::result::Result<T, CallError>;

/// An open `/dev/bdsnap`.
#[derive(Debug)]
pub struct Control {
    fd: OwnedFd,
}

/// What a portion of a store is made of, for [`Control::store_add`].
#[derive(Clone, Copy, Debug)]
pub enum Portion<'a> {
    /// The blocks of a file.
    File(BorrowedFd<'a>),
    /// A range of a block device.
    Device {
        /// The device.
        num: DevNum,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes; 0: to its end.
        length: u64,
    },
    /// Memory.
    Memory {
        /// Bytes.
        length: u64,
    },
}

/// What [`Control::snapshot_create`] is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateOptions<'a> {
    /// Handle of the store, from [`Control::store_add`].
    pub store: u64,
    /// Time limit for freezing all file systems, milliseconds; 0: the module's default.
    pub freeze_timeout_ms: u32,
    /// Time limit for draining all origins, milliseconds; 0: the module's default.
    pub drain_timeout_ms: u32,
    /// The most that the store may have, bytes; 0: it stays as it is.
    pub limit: u64,
    /// What it asks for at a time at least, bytes; 0 only without a limit.
    pub portion: u64,
    /// How long writes may wait for a portion when it is full, milliseconds.
    pub hold_ms: u32,
    /// Kept by the kernel for [`Control::snapshot_note`]: up to [`abi::MAX_NOTE`] bytes.
    pub note: &'a [u8],
}

/// A change map's head, from [`Control::map_read`].
#[derive(Clone, Copy, Debug)]
pub struct MapHead {
    /// Generation of the map.
    pub generation: Uuid,
    /// The map is as of this snapshot.
    pub number: u64,
    /// A `since` below this can't be answered.
    pub oldest: u64,
    /// Size of the device, bytes.
    pub device_size: u64,
    /// Size of a CBT block, bytes.
    pub block_size: u32,
    /// How many values were filled in.
    pub count: u64,
}

/// What [`Control::map_read`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct MapQuery {
    /// An origin or an image.
    pub device: DevNum,
    /// `None`: any generation.
    pub generation: Option<Uuid>,
    /// The snapshot to compare with.
    pub since: u64,
    /// First block wanted, in CBT blocks.
    pub first_block: u64,
    /// Of an origin whose newest snapshot is gone: the map as it is now.
    pub live: bool,
    /// Set [`abi::MAP_DISCARDED`] in the values of blocks that changed last by a discard.
    pub discards: bool,
}

impl Control {
    /// Opens the device and checks that the module speaks this library's ABI.
    pub fn open() -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::open(abi::DEVICE, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Error::failed(format!(
                "the bdsnap module is not loaded (no {})",
                abi::DEVICE
            ))
            .code("module-not-loaded")
            .hint("modprobe bdsnap (or insmod bdsnap.ko)"),
            Errno::ACCESS | Errno::PERM => Error::new(
                Kind::Permission,
                format!("can't open {}: permission denied", abi::DEVICE),
            )
            .hint("run it as root (CAP_SYS_ADMIN)"),
            e => Error::io(format!("can't open {}", abi::DEVICE), e),
        })?;
        let control = Control { fd };
        let version = control.version().map_err(|e| e.on(abi::DEVICE))?;
        if version.abi < abi::ABI_VERSION {
            return Err(Error::unsupported(format!(
                "the loaded module speaks ABI {}, this tool needs {}",
                version.abi,
                abi::ABI_VERSION
            ))
            .code("abi")
            .hint("load the module that belongs to this tool"));
        }
        Ok(control)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What the module is.
    pub fn version(&self) -> CallResult<abi::Version> {
        ioctl::version(self.fd()).map_err(|e| CallError::new("version", e))
    }

    /// Whether the module tells discards from other changes.
    pub fn knows_discards(&self) -> CallResult<bool> {
        let features = self.version()?.features;
        Ok(features & u64::from(abi::FEATURE_DISCARDS) != 0)
    }

    /// Starts change tracking of `device`; `block_size` in bytes, 0: keep it, or the default.
    /// Tracking again is no error, with another block size it is EEXIST.
    pub fn track(&self, device: DevNum, block_size: u32) -> CallResult<abi::Track> {
        let mut arg = abi::Track {
            major: device.major,
            minor: device.minor,
            block_size,
            ..Default::default()
        };
        ioctl::track(self.fd(), &mut arg).map_err(|e| CallError {
            cause: arg.cause,
            ..CallError::new("track", e)
        })?;
        Ok(arg)
    }

    /// Stops change tracking; `force` deletes its snapshots first.
    pub fn untrack(&self, device: DevNum, force: bool) -> CallResult<()> {
        let mut arg = abi::Untrack {
            flags: if force { abi::UNTRACK_FORCE } else { 0 },
            major: device.major,
            minor: device.minor,
            ..Default::default()
        };
        ioctl::untrack(self.fd(), &mut arg).map_err(|e| CallError::new("untrack", e))
    }

    /// All tracked origins, in the order of tracking.
    pub fn origins(&self) -> CallResult<Vec<abi::OriginInfo>> {
        list("list origins", |items| {
            ioctl::list_origins(self.fd(), items)
        })
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> CallResult<Vec<abi::SnapshotInfo>> {
        list("list snapshots", |items| {
            ioctl::list_snapshots(self.fd(), items)
        })
    }

    /// The versions of snapshot `id`, in the order of its creation.
    pub fn versions(&self, id: Uuid) -> CallResult<Vec<abi::VersionInfo>> {
        list("list versions", |items| {
            ioctl::list_versions(self.fd(), id.into_bytes(), items)
        })
    }

    /// Adds a portion to a store for the next snapshot taken through this object: to `store`, or to a
    /// new one for 0. `granule` and `run` (what is copied together) in bytes, 0: the defaults, or the
    /// store's. Returns the handle and the capacity of the store in bytes.
    pub fn store_add(
        &self,
        store: u64,
        granule: u32,
        run: u32,
        portion: &Portion<'_>,
    ) -> CallResult<abi::StoreAdd> {
        let arg = abi::StoreAdd {
            store,
            granule,
            run,
            ..Default::default()
        };
        self.add(arg, portion)
    }

    /// Gives back a store that has no snapshot.
    pub fn store_drop(&self, store: u64) -> CallResult<()> {
        ioctl::store_drop(self.fd(), store).map_err(|e| CallError::new("store drop", e))
    }

    /// Adds a portion to the store of a snapshot that may grow. ENOENT: it is gone.
    pub fn store_grow(&self, snapshot: Uuid, portion: &Portion<'_>) -> CallResult<abi::StoreAdd> {
        let arg = abi::StoreAdd {
            snapshot: snapshot.into_bytes(),
            ..Default::default()
        };
        self.add(arg, portion)
    }

    fn add(&self, mut arg: abi::StoreAdd, portion: &Portion<'_>) -> CallResult<abi::StoreAdd> {
        let mut room = Vec::new();
        let file = match portion {
            Portion::File(file) => {
                arg.kind = abi::STORE_FILE;
                room.resize_with(abi::MAX_EXTENTS as usize, Default::default);
                Some((*file, room.as_mut_slice()))
            }
            Portion::Device {
                num,
                offset,
                length,
            } => {
                arg.kind = abi::STORE_DEVICE;
                (arg.major, arg.minor) = (num.major, num.minor);
                (arg.offset, arg.length) = (*offset, *length);
                None
            }
            Portion::Memory { length } => {
                arg.kind = abi::STORE_MEMORY;
                arg.length = *length;
                None
            }
        };
        ioctl::store_add(self.fd(), &mut arg, file).map_err(|e| CallError {
            cause: arg.cause,
            ..CallError::new("store", e)
        })?;
        Ok(arg)
    }

    /// Cuts `devices` (upper ones of a stack first) at one instant, with the file systems of
    /// `freeze` (top first) frozen. [`CallError::index`] tells which device or file system failed.
    pub fn snapshot_create(
        &self,
        options: CreateOptions<'_>,
        devices: &mut [abi::SnapshotDevice],
        freeze: &[BorrowedFd<'_>],
    ) -> CallResult<abi::SnapshotCreate> {
        let mut arg = abi::SnapshotCreate {
            store: options.store,
            freeze_timeout_ms: options.freeze_timeout_ms,
            drain_timeout_ms: options.drain_timeout_ms,
            store_limit: options.limit,
            store_portion: options.portion,
            hold_ms: options.hold_ms,
            ..Default::default()
        };
        let result = ioctl::snapshot_create(self.fd(), &mut arg, devices, freeze, options.note);
        result.map_err(|e| CallError {
            cause: arg.cause,
            index: arg.fail_index,
            ..CallError::new("snapshot", e)
        })?;
        Ok(arg)
    }

    /// Lets the snapshot live on when this object is gone.
    pub fn snapshot_keep(&self, id: Uuid) -> CallResult<()> {
        ioctl::snapshot_keep(self.fd(), id.into_bytes())
            .map_err(|e| CallError::new("snapshot keep", e))
    }

    /// Deletes a snapshot; `force`: also while an image of it is open.
    pub fn snapshot_delete(&self, id: Uuid, force: bool) -> CallResult<()> {
        let flags = if force { abi::DELETE_FORCE } else { 0 };
        ioctl::snapshot_delete(self.fd(), id.into_bytes(), flags)
            .map_err(|e| CallError::new("snapshot delete", e))
    }

    /// Reads the change map into `values`, one a CBT block; an empty one reads the head only.
    /// The head is also returned beside an ESTALE.
    pub fn map_read(
        &self,
        query: MapQuery,
        values: &mut [u32],
    ) -> std::result::Result<MapHead, (CallError, MapHead)> {
        let live = if query.live { abi::MAP_LIVE } else { 0 };
        let discards = if query.discards { abi::MAP_DISCARDS } else { 0 };
        let mut arg = abi::MapRead {
            flags: live | discards,
            major: query.device.major,
            minor: query.device.minor,
            generation: query.generation.map_or([0; 16], Uuid::into_bytes),
            since: query.since,
            first_block: query.first_block,
            ..Default::default()
        };
        let result = ioctl::map_read(self.fd(), &mut arg, values);
        let head = MapHead {
            generation: Uuid::from_bytes(arg.generation),
            number: arg.number,
            oldest: arg.oldest,
            device_size: arg.device_size,
            block_size: arg.block_size,
            count: arg.count,
        };
        match result {
            Ok(()) => Ok(head),
            Err(e) => Err((CallError::new("changes", e), head)),
        }
    }

    /// A new file that delivers all events from now on: see [`crate::events`].
    pub fn events(&self) -> CallResult<OwnedFd> {
        ioctl::events(self.fd()).map_err(|e| CallError::new("events", e))
    }

    /// Records all writes to an origin until this object takes a snapshot of it or is gone. EBUSY:
    /// somebody else has it recorded.
    pub fn record(&self, device: DevNum) -> CallResult<()> {
        ioctl::record(self.fd(), 0, device.major, device.minor)
            .map_err(|e| CallError::new("record", e))
    }

    /// Ends that, and forgets what was told since. ENOENT: this object does not have it recorded.
    pub fn record_end(&self, device: DevNum) -> CallResult<()> {
        ioctl::record(self.fd(), abi::RECORD_END, device.major, device.minor)
            .map_err(|e| CallError::new("record", e))
    }

    /// Tells what the file system of an origin said to be free after [`Control::record`]: up to
    /// [`abi::MAX_RANGES`] ranges of bytes.
    pub fn free(&self, device: DevNum, ranges: &[abi::Range]) -> CallResult<()> {
        let mut arg = abi::Mark {
            major: device.major,
            minor: device.minor,
            ..Default::default()
        };
        ioctl::free(self.fd(), &mut arg, ranges).map_err(|e| CallError::new("free", e))
    }

    /// The next snapshot of an origin that this object takes holds only what changed after snapshot
    /// `since` (of `generation`, if that is known), which [`Control::record`] must come before. ESTALE:
    /// change tracking can't tell.
    pub fn since(&self, device: DevNum, generation: Option<Uuid>, since: u64) -> CallResult<()> {
        let mut arg = abi::Since {
            major: device.major,
            minor: device.minor,
            generation: generation.map_or([0; 16], Uuid::into_bytes),
            since,
            ..Default::default()
        };
        ioctl::since(self.fd(), &mut arg).map_err(|e| CallError::new("since", e))
    }

    /// Ranges of bytes of an image, up to [`abi::MAX_RANGES`], are not needed any more: they read as
    /// zeros from then on. EINVAL: one is empty, or ends past the device.
    pub fn snapshot_release(&self, image: DevNum, ranges: &[abi::Range]) -> CallResult<()> {
        let mut arg = abi::Mark {
            major: image.major,
            minor: image.minor,
            ..Default::default()
        };
        ioctl::snapshot_release(self.fd(), &mut arg, ranges)
            .map_err(|e| CallError::new("snapshot release", e))
    }

    /// What was kept with a snapshot by [`CreateOptions::note`].
    pub fn snapshot_note(&self, id: Uuid) -> CallResult<Vec<u8>> {
        let mut note = vec![0; abi::MAX_NOTE as usize];
        let length = ioctl::snapshot_note(self.fd(), id.into_bytes(), &mut note)
            .map_err(|e| CallError::new("snapshot note", e))?;
        note.truncate(length);
        Ok(note)
    }

    /// Serves stores that may grow, as long as this object lives. EBUSY: somebody else does.
    pub fn serve(&self) -> CallResult<()> {
        ioctl::serve(self.fd(), 0)
            .map(|_| ())
            .map_err(|e| CallError::new("serve", e))
    }

    /// Whether anybody serves stores that may grow.
    pub fn is_served(&self) -> CallResult<bool> {
        ioctl::serve(self.fd(), abi::SERVE_QUERY).map_err(|e| CallError::new("serve", e))
    }

    /// Records `ranges` (bytes) of an origin as changed: all of them or none.
    pub fn mark(&self, device: DevNum, ranges: &[abi::Range]) -> CallResult<()> {
        let mut arg = abi::Mark {
            major: device.major,
            minor: device.minor,
            ..Default::default()
        };
        ioctl::mark(self.fd(), &mut arg, ranges).map_err(|e| CallError::new("mark", e))
    }
}

/// Calls `fill` with more and more room, until all that there is fits.
fn list<T: ioctl::Item>(
    call: &'static str,
    fill: impl Fn(&mut [T]) -> rustix::io::Result<usize>,
) -> CallResult<Vec<T>> {
    let mut items = vec![T::default(); 16];
    loop {
        let count = fill(&mut items).map_err(|e| CallError::new(call, e))?;
        if count <= items.len() {
            items.truncate(count);
            return Ok(items);
        }
        items.resize(count + 8, T::default());
    }
}
