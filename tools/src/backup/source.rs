//! What is backed up: one device of a snapshot.

use super::buffer::Aligned;
use crate::abi::Range;
use crate::changes;
use crate::changes::Changes;
use crate::changes::Extent;
use crate::changes::Query;
use crate::device::Control;
use crate::error::Error;
use crate::error::Result;
use crate::snapshot;
use crate::snapshot::Created;
use crate::snapshot::CreatedDevice;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::FileExt;
use uuid::Uuid;

/// What is known about a source.
#[derive(Clone, Debug)]
pub struct Info {
    /// The device's path.
    pub device: String,
    /// The snapshot.
    pub snapshot: Uuid,
    /// When it was cut, RFC 3339.
    pub created: String,
    /// Bytes.
    pub size: u64,
    /// Generation of the change map.
    pub generation: Uuid,
    /// Number of the cut.
    pub number: u64,
    /// Bytes of a CBT block.
    pub block_size: u32,
    /// It has only what changed after this snapshot, and zeros else.
    pub since: Option<u64>,
}

/// One device of a snapshot, as the backup sees it.
pub trait Source: Sync {
    /// What it is.
    fn info(&self) -> &Info;

    /// What differs from snapshot `since` of `generation`. No answer:
    /// [`crate::error::Kind::Tracking`].
    fn changes(&self, generation: Uuid, since: u64) -> Result<Changes>;

    /// Reads the first `length` bytes of `buffer` from `offset`.
    fn read(&self, buffer: &mut Aligned, length: usize, offset: u64) -> std::io::Result<()>;

    /// These parts are not needed, or have been read.
    fn release(&self, extents: &[Extent]);

    /// Bytes copied for it by now.
    fn copied(&self) -> u64;

    /// Fails if what was read can't be trusted: [`crate::error::Kind::Damaged`].
    fn check(&self) -> Result<()>;
}

/// A version of a snapshot of the kernel module.
#[derive(Debug)]
pub struct Image<'a> {
    control: &'a Control,
    device: &'a CreatedDevice,
    info: Info,
    file: File,
    /// Whether parts are released that are not needed any more.
    release: bool,
}

impl<'a> Image<'a> {
    /// Opens the image of `device` for reading past the page cache, where it lets itself be; `release`:
    /// nobody else wants to read it.
    pub fn open(
        control: &'a Control,
        created: &Created,
        device: &'a CreatedDevice,
        release: bool,
    ) -> Result<Self> {
        let open = |flags| {
            let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(&device.image, flags, Mode::empty())
        };
        let fd = open(OFlags::DIRECT)
            .or_else(|e| match e {
                rustix::io::Errno::INVAL => open(OFlags::empty()),
                e => Err(e),
            })
            .map_err(|e| Error::io(format!("can't open {}", device.image), e))?;
        let head = control
            .map_read(
                crate::device::MapQuery {
                    device: device.image_num,
                    generation: None,
                    since: device.number,
                    first_block: 0,
                    live: false,
                    discards: false,
                },
                &mut [],
            )
            .map_err(|(e, _)| e.on(&device.image))?;
        Ok(Image {
            control,
            device,
            info: Info {
                device: device.device.clone(),
                snapshot: created.id,
                created: created.created.clone(),
                size: device.size,
                generation: device.generation,
                number: device.number,
                block_size: head.block_size,
                since: device.since,
            },
            file: File::from(fd),
            release,
        })
    }
}

impl Source for Image<'_> {
    fn info(&self) -> &Info {
        &self.info
    }

    fn changes(&self, generation: Uuid, since: u64) -> Result<Changes> {
        let query = Query {
            device: self.device.image_num,
            generation: Some(generation),
            since,
            live: false,
        };
        changes::by_kind(self.control, query, &self.info.device).map(|(_, changes)| changes)
    }

    fn read(&self, buffer: &mut Aligned, length: usize, offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buffer.get_mut(length), offset)
    }

    fn release(&self, extents: &[Extent]) {
        if !self.release {
            return;
        }
        let range = |e: &Extent| Range {
            offset: e.offset,
            length: e.length,
        };
        let ranges: Vec<Range> = extents.iter().map(range).collect();
        for ranges in ranges.chunks(crate::abi::MAX_RANGES as usize) {
            // It only saves work.
            let _ = self.control.snapshot_release(self.device.image_num, ranges);
        }
    }

    fn copied(&self) -> u64 {
        let version = snapshot::version(self.control, self.info.snapshot, self.device.origin.num);
        version.ok().flatten().map_or(0, |v| v.bytes_copied)
    }

    fn check(&self) -> Result<()> {
        let version = snapshot::check(self.control, self.info.snapshot, self.device.origin.num)?;
        if !self.release && version.bytes_released > 0 {
            return Err(Error::new(
                crate::error::Kind::Damaged,
                format!("somebody has released parts of {}", self.device.image),
            )
            .code("released")
            .hint("they read as zeros: run the backup again"));
        }
        Ok(())
    }
}
