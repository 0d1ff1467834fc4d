//! Writing a point of a chain back.

use crate::backup::buffer::zero_runs;
use crate::backup::chain::Chain;
use crate::backup::qcow2::Reader;
use crate::backup::Progress;
use crate::blockdev::Sysfs;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::freeze;
use crate::ioctl;
use crate::mounts;
use crate::paths;
use crate::signals::Signals;
use crate::size::human;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

/// Bytes copied at a time.
const CHUNK: u64 = 2 << 20;
/// Zeros are looked for in units of this many bytes.
const UNIT: usize = 4096;
/// Bytes zeroed at a time, so that a signal is seen.
const ZERO_CHUNK: u64 = 1 << 30;

/// What a restore did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The device that the backup is of.
    pub device: String,
    /// The point.
    pub point: u64,
    /// When its snapshot was cut, RFC 3339.
    pub created: String,
    /// Where it was written to.
    #[serde(serialize_with = "paths::one")]
    pub target: PathBuf,
    /// Bytes that the target holds now.
    pub size: u64,
    /// Bytes of data that were written.
    pub bytes_written: u64,
    /// Bytes that were zeroed or left as holes.
    pub bytes_zero: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// What is written to.
enum Target {
    /// A new file: all zeros from the start. Removed again on drop, unless `keep`.
    File {
        file: File,
        path: PathBuf,
        keep: bool,
    },
    /// A block device with whatever was on it.
    Device { file: File, path: PathBuf },
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Target::File {
            path, keep: false, ..
        } = self
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Target {
    /// Opens a block device that nobody uses and that has at least `size` bytes, or makes a new
    /// sparse file of `size` bytes.
    fn open(path: &Path, size: u64) -> Result<Self> {
        let shown = path.display();
        let stat = match rustix::fs::stat(path) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Self::create(path, size),
            Err(e) => return Err(Error::io(&shown, e)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Self::device(path, size),
            FileType::RegularFile => Err(Error::usage(format!("{shown} exists already"))
                .code("exists")
                .hint("name a new file or a block device")),
            _ => Err(
                Error::usage(format!("{shown} is neither a block device nor a new file"))
                    .code("not-a-block-device"),
            ),
        }
    }

    fn create(path: &Path, size: u64) -> Result<Self> {
        let fail = |e| Error::io(format!("can't make {}", path.display()), e);
        let dir = paths::parent(path).canonicalize().map_err(fail)?;
        if dir.starts_with("/dev") {
            return Err(
                Error::not_found(format!("{}: no such device", path.display()))
                    .code("no-device")
                    .hint("name a block device (see lsblk), or a new file outside of /dev"),
            );
        }
        // (A disk's secrets are in it: only for its owner.)
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let target = Target::File {
            file: file.map_err(fail)?,
            path: path.to_owned(),
            keep: false,
        };
        target.file().set_len(size).map_err(fail)?;
        Ok(target)
    }

    fn device(path: &Path, size: u64) -> Result<Self> {
        let shown = path.display();
        let sysfs = Sysfs::default();
        let num = sysfs.resolve(path)?.num;
        if let Some(user) = freeze::loop_on(&sysfs, &mounts::read()?, num) {
            return Err(Error::busy(format!("{shown} is used by {user}"))
                .hint("detach that first (losetup -d)"));
        }
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| match e {
            Errno::BUSY => Error::busy(format!(
                "{shown} is in use (mounted, or part of another device)"
            ))
            .hint("unmount it first"),
            Errno::ROFS => Error::failed(format!("{shown} is read-only")).code("read-only"),
            e => Error::io(format!("can't open {shown}"), e),
        })?;
        let file = File::from(fd);
        let room = ioctl::block_device_size(&file)
            .map_err(|e| Error::io(format!("can't tell the size of {shown}"), e))?;
        if room < size {
            return Err(Error::new(
                Kind::Failed,
                format!(
                    "{shown} is too small: {} of {} needed",
                    human(room),
                    human(size)
                ),
            )
            .code("too-small"));
        }
        Ok(Target::Device {
            file,
            path: path.to_owned(),
        })
    }

    fn file(&self) -> &File {
        match self {
            Target::File { file, .. } | Target::Device { file, .. } => file,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Target::File { path, .. } | Target::Device { path, .. } => path,
        }
    }

    fn error(&self, e: impl Into<std::io::Error>) -> Error {
        Error::io(format!("can't write {}", self.path().display()), e)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file()
            .write_all_at(bytes, offset)
            .map_err(|e| self.error(e))
    }

    /// Makes a range read as zeros.
    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let Target::Device { file, .. } = self else {
            return Ok(());
        };
        if ioctl::block_device_zero(file, offset, length).is_ok() {
            return Ok(());
        }
        // Not at whole logical blocks, or not possible at all.
        let zeros = vec![0; CHUNK.min(length) as usize];
        let end = offset + length;
        for start in (offset..end).step_by(CHUNK as usize) {
            self.write(start, &zeros[..CHUNK.min(end - start) as usize])?;
        }
        Ok(())
    }

    /// Makes all of it durable.
    fn finish(mut self) -> Result<()> {
        self.file().sync_all().map_err(|e| self.error(e))?;
        if let Target::File { path, .. } = &self {
            let sync = || File::open(paths::parent(path))?.sync_all();
            sync().map_err(|e: std::io::Error| self.error(e))?;
        }
        if let Target::File { keep, .. } = &mut self {
            *keep = true;
        }
        Ok(())
    }
}

/// Writes point number `point` (default: the last) of `chain` to `to`, a block device that is not
/// in use and large enough, or a file that does not exist. Every byte of the point's size equals
/// the backed up one afterwards; what a larger device has behind it is left alone. Where it fails
/// a file is removed, a device is left half written.
pub fn restore(
    chain: &Chain,
    point: Option<u64>,
    to: &Path,
    progress: &dyn Progress,
    signals: &Signals,
) -> Result<Summary> {
    let start = Instant::now();
    let point = match point {
        None => chain.points().last(),
        Some(number) => chain.points().iter().find(|p| p.point == number),
    };
    let point = point.ok_or_else(|| {
        let known: Vec<String> = chain.points().iter().map(|p| p.point.to_string()).collect();
        Error::not_found("there is no such point")
            .code("no-point")
            .hint(format!("there are: {}", known.join(", ")))
    })?;
    let reader = Reader::open(&chain.files(point.point)?)?;
    let size = reader.size();
    if size != point.size {
        return Err(Error::failed(format!(
            "{} has {size} bytes, the manifest says {}",
            point.file, point.size
        ))
        .code("chain-broken"));
    }
    let target = Target::open(to, size)?;
    progress.begin(&to.display().to_string(), size);
    let written = copy(&reader, &target, size, progress, signals);
    progress.end();
    let device = matches!(target, Target::Device { .. });
    let done = written.and_then(|written| target.finish().map(|()| written));
    let written = done.map_err(|mut error| {
        if device {
            error.message += &format!("; {} is overwritten in part", to.display());
        }
        error
    })?;
    Ok(Summary {
        device: chain.device().to_owned(),
        point: point.point,
        created: point.created.clone(),
        target: to.to_owned(),
        size,
        bytes_written: written,
        bytes_zero: size - written,
        seconds: (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    })
}

/// Copies all; returns how many bytes were not zero.
fn copy(
    reader: &Reader,
    target: &Target,
    size: u64,
    progress: &dyn Progress,
    signals: &Signals,
) -> Result<u64> {
    let mut buffer = vec![0; CHUNK.min(size) as usize];
    let mut written = 0;
    let mut offset = 0;
    while offset < size {
        signals.check()?;
        let (found, zero) = reader.look(offset, ZERO_CHUNK.min(size - offset))?;
        let length = if zero {
            target.zero(offset, found)?;
            found
        } else {
            let length = found.min(CHUNK);
            let bytes = &mut buffer[..length as usize];
            reader.read(bytes, offset)?;
            zero_runs(bytes, UNIT, |start, bytes, zero| {
                let at = offset + start as u64;
                if zero {
                    return target.zero(at, bytes.len() as u64);
                }
                written += bytes.len() as u64;
                target.write(at, bytes)
            })?;
            length
        };
        progress.advance(length);
        offset += length;
    }
    Ok(written)
}
