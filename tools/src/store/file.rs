//! The file of a store.

use super::generic;
use super::MIN_SIZE;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::paths;
use crate::signals::Signals;
use crate::size::human;
use rustix::fd::AsFd;
use rustix::fs::FallocateFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

/// The least that is taken where no size is given, bytes.
const DEFAULT_MIN: u64 = 64 << 20;
/// Where a store goes if the origins have no fit file system of their own.
const DEFAULT_DIR: &str = "/var/lib/bdsnap";
/// `MSDOS_SUPER_MAGIC` (`linux/magic.h`): "vfat" and "msdos".
const FAT: u64 = 0x4d44;
/// Files on FAT are smaller than this, bytes (`s_maxbytes` in `fat_fill_super()` of Linux' fs/fat/inode.c).
const FAT_FILE_END: u64 = 1 << 32;

/// A file made for a store: its blocks allocated, written back, about to be handed to the kernel.
#[derive(Debug)]
pub struct StoreFile {
    /// The file, open for reading and writing.
    pub file: File,
    /// Where it is: for messages. Its directory, where it has no name.
    pub place: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Its name, to be taken away before the kernel holds the file: then it can't be any more.
    name: Option<PathBuf>,
}

impl StoreFile {
    /// Makes an empty file named `name`, which nothing has yet, to get `size` bytes; messages call it
    /// `place`. Errors of open(2), EEXIST among them.
    pub(super) fn create(name: PathBuf, place: &Path, size: u64) -> rustix::io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::open(&name, flags | OFlags::CLOEXEC, mode)?;
        Ok(StoreFile {
            file: File::from(fd),
            place: place.to_owned(),
            size,
            name: Some(name),
        })
    }

    /// Makes an empty file without a name in `dir`, to get `size` bytes. Errors of open(2).
    fn create_unnamed(dir: &Path, size: u64) -> rustix::io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(StoreFile {
            file: File::from(fd),
            place: dir.to_owned(),
            size,
            name: None,
        })
    }

    /// Its name, as long as it has one, or else its place.
    pub(super) fn path(&self) -> &Path {
        self.name.as_deref().unwrap_or(&self.place)
    }

    /// Takes its name away, if it has one; the open file keeps the blocks.
    pub fn unname(&mut self) -> Result<()> {
        match self.name.take() {
            Some(name) => fs::remove_file(&name)
                .map_err(|e| Error::io(format!("store: can't unlink {}", name.display()), e)),
            None => Ok(()),
        }
    }
}

impl Drop for StoreFile {
    /// Takes the name away, where nothing came of it.
    fn drop(&mut self) {
        let _ = self.unname();
    }
}

/// How the blocks of a file become a store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Not at all.
    Unfit,
    /// It is fallocated, and the kernel asks FIEMAP where it is.
    Mapped,
    /// It is written, and found again on the device: see [`generic`].
    Generic,
}

/// What `fstatfs` says of a file system that matters here.
struct FsInfo {
    name: &'static str,
    method: Method,
    /// Where files end at the latest, bytes: all are smaller than that.
    file_end: u64,
    size: u64,
    available: u64,
}

/// Looks at the file system that `fd` is on.
fn fs_info(fd: impl AsFd) -> Result<FsInfo> {
    let stat = rustix::fs::fstatfs(fd).map_err(|e| Error::io("can't look at a file system", e))?;
    let magic = stat.f_type as u64 & 0xffff_ffff;
    let (name, method) = match magic {
        0xef53 => ("ext4", Method::Mapped),
        0x5846_5342 => ("xfs", Method::Mapped),
        FAT => ("FAT", Method::Generic),
        0x2011_bab0 => ("exFAT", Method::Generic),
        0x9123_683e => ("btrfs", Method::Unfit),
        0x0102_1994 => ("tmpfs", Method::Unfit),
        0x794c_7630 => ("overlayfs", Method::Unfit),
        0x8584_58f6 => ("ramfs", Method::Unfit),
        0x2fc1_2fc1 => ("zfs", Method::Unfit),
        0x6969 => ("nfs", Method::Unfit),
        0xf2f5_2010 => ("f2fs", Method::Unfit),
        _ => ("this kind of file system", Method::Unfit),
    };
    let unit = stat.f_bsize as u64;
    Ok(FsInfo {
        name,
        method,
        file_end: if magic == FAT { FAT_FILE_END } else { u64::MAX },
        size: stat.f_blocks.saturating_mul(unit),
        available: stat.f_bavail.saturating_mul(unit),
    })
}

/// Opens a directory, for its file system.
fn open_dir(path: &Path) -> Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::io(format!("store: can't open {}", path.display()), e))
}

/// How large a store for `origins` bytes of origins shall be on a file system of `size` bytes
/// with `available` bytes free: 10 % of the origins and at least 64 MiB, but no more than the
/// origins have, and 5 % of the file system stay free. `None`: too little room.
fn default_size(origins: u64, size: u64, available: u64) -> Option<u64> {
    let wanted = (origins / 10).max(DEFAULT_MIN).min(origins.max(MIN_SIZE));
    let room = available.saturating_sub(size / 20);
    let bytes = wanted.min(room) & !(MIN_SIZE - 1);
    // Half of what is wanted is better than none; less would only be full at once.
    (bytes >= MIN_SIZE && bytes >= wanted.min(DEFAULT_MIN) / 2).then_some(bytes)
}

/// The directory of a store at `path`, a directory or a new file.
pub fn directory(path: &Path) -> &Path {
    if path.is_dir() {
        path
    } else {
        paths::parent(path)
    }
}

/// Bytes that a portion in `dir` may have, of its file system's free ones: 5 % stay free.
pub fn available(dir: &Path) -> Result<u64> {
    let info = fs_info(open_dir(dir)?)?;
    Ok(info.available.saturating_sub(info.size / 20))
}

/// Looks at the file system of `dir`. It is an error if that is of no use for a store.
fn fit_info(dir: &Path) -> Result<FsInfo> {
    let info = fs_info(open_dir(dir)?)?;
    if info.method != Method::Unfit {
        return Ok(info);
    }
    Err(unfit(format!(
        "store: {} is on {}, whose blocks can't serve as a store",
        dir.display(),
        info.name
    ))
    .hint("put the store on ext4 or XFS: --store file:PATH"))
}

/// The file system is of no use for this.
fn unfit(message: String) -> Error {
    Error::unsupported(message).code("store-filesystem")
}

/// It is an error if a store at `path`, a directory or a new file, can't get portions while its snapshot
/// lives: where they have to be written from end to end, that takes too long.
pub fn check_growth(path: &Path) -> Result<()> {
    let dir = directory(path);
    let info = fs_info(open_dir(dir)?)?;
    match info.method {
        Method::Generic => Err(cant_grow(dir, &info)),
        Method::Mapped | Method::Unfit => Ok(()),
    }
}

fn cant_grow(dir: &Path, info: &FsInfo) -> Error {
    unfit(format!(
        "store: {}: a store on {} can't grow: give it its whole size",
        dir.display(),
        info.name
    ))
    .hint("leave the limit out, or put the store on ext4 or XFS: --store file:PATH")
}

/// Makes a file of `size` bytes at `path`, a directory or a new file; [`None`]: as large as
/// [`default_size`] says for `origins` bytes of origins, and at most `most`. Nothing is left behind when it
/// fails, or when a signal ends it, as it may where a file has to be written.
pub fn make(
    path: &Path,
    size: Option<u64>,
    origins: u64,
    most: u64,
    signals: &Signals,
) -> Result<StoreFile> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(Error::usage(format!("store: {shown} exists already"))
                .code("store-exists")
                .hint("name a directory or a new file"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(format!("store: {shown}"), e)),
    }
    let info = fit_info(directory(path))?;
    make_on(path, size, origins, most, &info, signals)
}

/// The same, on the file system that `info` is about.
fn make_on(
    path: &Path,
    size: Option<u64>,
    origins: u64,
    most: u64,
    info: &FsInfo,
    signals: &Signals,
) -> Result<StoreFile> {
    let size = match size {
        Some(size) => size,
        None => default_size(origins, info.size, info.available)
            .ok_or_else(|| no_space(path, DEFAULT_MIN.min(origins), info.available))?
            .min(info.file_end - MIN_SIZE)
            .min(most),
    };
    let store = match info.method {
        Method::Generic => write(path, size, info, signals)?,
        Method::Mapped | Method::Unfit => allocate(path, size, info)?,
    };
    let synced = store.file.sync_all();
    synced.map_err(|e| Error::io(format!("store: can't write back {}", path.display()), e))?;
    Ok(store)
}

/// Makes a file without a name of `size` bytes in `dir`, and does not wait for it to be on the disk: where
/// the store's origin is that disk, that may need the room that this is to bring.
pub fn make_unsynced(dir: &Path, size: u64) -> Result<StoreFile> {
    let info = fit_info(dir)?;
    if info.method == Method::Generic {
        return Err(cant_grow(dir, &info));
    }
    allocate(dir, size, &info)
}

/// Writes a file of `size` bytes at `path`, a directory or a new file, on the file system that `info` is
/// about, if there is room for it.
fn write(path: &Path, size: u64, info: &FsInfo, signals: &Signals) -> Result<StoreFile> {
    if size >= info.file_end {
        return Err(unfit(format!(
            "store: {}: files on {} end at {}",
            path.display(),
            info.name,
            human(info.file_end)
        ))
        .hint("give a smaller size, or several places: repeat --store"));
    }
    if size > info.available {
        return Err(no_space(path, size, info.available));
    }
    generic::make(path, size, info.available, signals)
}

/// Makes a file of `size` bytes at `path`, a directory or a new file, on the file system that `info` is
/// about.
fn allocate(path: &Path, size: u64, info: &FsInfo) -> Result<StoreFile> {
    let shown = path.display();
    let created = if path.is_dir() {
        StoreFile::create_unnamed(path, size)
    } else {
        StoreFile::create(path.to_owned(), path, size)
    };
    let store =
        created.map_err(|e| Error::io(format!("store: can't make a file at {shown}"), e))?;
    rustix::fs::fallocate(&store.file, FallocateFlags::empty(), 0, size).map_err(|e| match e {
        Errno::NOSPC | Errno::FBIG => no_space(path, size, info.available),
        Errno::OPNOTSUPP => unfit(format!("store: {shown}: fallocate is not supported")),
        e => Error::io(
            format!("store: can't allocate {} at {shown}", human(size)),
            e,
        ),
    })?;
    Ok(store)
}

pub(super) fn no_space(path: &Path, size: u64, available: u64) -> Error {
    Error::new(
        Kind::Failed,
        format!(
            "store: no room for {} at {} ({} free)",
            human(size),
            path.display(),
            human(available)
        ),
    )
    .code("no-space")
    .hint("put the store elsewhere: --store file:PATH[,size=SIZE]")
}

/// Makes a store in a sensible place: on one of `own` (mount points of the origins' own file
/// systems) where that is ext4 or XFS, the one with the most space free first, or else in
/// /var/lib/bdsnap. A file that would have to be written is only made where that is asked for.
pub fn make_default(own: &[PathBuf], origins: u64) -> Result<StoreFile> {
    let free = |path: &PathBuf| {
        let info = open_dir(path).and_then(|fd| fs_info(&fd)).ok()?;
        (info.method == Method::Mapped).then_some((info.available, path.clone()))
    };
    let mut places: Vec<(u64, PathBuf)> = own.iter().filter_map(free).collect();
    places.sort();
    let mut last = None;
    let common = std::iter::once_with(|| {
        // Nothing to say if this fails: opening it will.
        let _ = fs::create_dir_all(DEFAULT_DIR);
        PathBuf::from(DEFAULT_DIR)
    });
    for path in places.into_iter().rev().map(|(_, path)| path).chain(common) {
        let made = fit_info(&path).and_then(|info| match info.method {
            Method::Mapped => make_on(&path, None, origins, u64::MAX, &info, &Signals::inert()),
            Method::Generic | Method::Unfit => Err(unfit(format!(
                "store: {} is on {}, where none is put unasked",
                path.display(),
                info.name
            ))
            .hint("say where it shall be: --store file:PATH")),
        });
        match made {
            Ok(store) => return Ok(store),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| Error::failed("no place for a store")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_sizes() {
        let (mib, gib) = (1 << 20, 1 << 30);
        assert_eq!(
            default_size(100 * gib, 1000 * gib, 500 * gib),
            Some(10 * gib)
        );
        assert_eq!(default_size(gib / 4, 1000 * gib, 500 * gib), Some(64 * mib));
        assert_eq!(
            default_size(16 * mib, 1000 * gib, 500 * gib),
            Some(16 * mib)
        );
        assert_eq!(default_size(100 * gib, 100 * gib, 11 * gib), Some(6 * gib));
        assert_eq!(default_size(100 * gib, 100 * gib, 5 * gib), None);
    }

    #[test]
    fn bad_places() {
        let exists = tempfile::NamedTempFile::new().unwrap();
        let made = |path: &str| {
            make(
                Path::new(path),
                Some(MIN_SIZE),
                0,
                u64::MAX,
                &Signals::inert(),
            )
            .unwrap_err()
        };
        assert_eq!(made(exists.path().to_str().unwrap()).code, "store-exists");
        assert_eq!(made("/nonexistent/x/y").kind.exit_code(), 8);
        assert_eq!(made("/proc").kind.exit_code(), 6);
    }
}
