//! A store's file where there is neither fallocate nor FIEMAP: on FAT and exFAT.
//!
//! The file is written from end to end. Each sector says which file it belongs to, by a number that nobody
//! can guess, and where in it. Then the file system is asked for the block of the device under each block of
//! the file (`FIBMAP`), and what is there is read from the device: only if each of its sectors says so is the
//! file where the file system says. The kernel asks the file system once more, when it has pinned the file.
//!
//! A tool that is killed meanwhile leaves the file behind, named `.bdsnap-` and 16 hexadecimal digits (or
//! what the user said); it may be deleted.
//!
//! Source: `->bmap` in Linux' Documentation/filesystems/vfs.rst, which demands that the blocks stay where they
//! are; `_fat_bmap()` of fs/fat/inode.c, `exfat_aop_bmap()` of fs/exfat/inode.c.

use super::file::no_space;
use super::file::StoreFile;
use crate::abi;
use crate::backup::buffer::Aligned;
use crate::blockdev::dev_num;
use crate::blockdev::dev_path;
use crate::blockdev::Sysfs;
use crate::error::Error;
use crate::error::Result;
use crate::ioctl;
use crate::signals::Signals;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a sector: blocks of file systems consist of whole ones.
const SECTOR: usize = 512;
/// How much is written, or proven, at a time, bytes. A signal is looked for each time.
const CHUNK: usize = 1 << 20;
/// How much is written before it is waited for, bytes: for no more than that a signal has to wait.
const SYNC: u64 = 64 << 20;
/// A file system with so many blocks has some whose numbers `FIBMAP` can't give: they are no int.
const TOO_MANY_BLOCKS: u64 = 1 << 31;
/// What each sector begins with, bytes: a [`Nonce`], then where it is in the file, in bytes, as a
/// little-endian u64.
const HEADER: usize = 24;

/// What all sectors of a file have in common, and none of another one.
type Nonce = [u8; 16];

/// Makes a file of `size` bytes at `path`, a directory or a new file, and proves where it is. What is no
/// whole granule at its end is left out. `available`: bytes that are free, for messages.
///
/// Nothing is left behind when it fails, or when a signal ends it. Errors: "no-space"; "store-filesystem"
/// where the file system can't tell where the file is, or doesn't tell the truth;
/// [`crate::error::Kind::Permission`] without CAP_SYS_RAWIO.
pub(super) fn make(path: &Path, size: u64, available: u64, signals: &Signals) -> Result<StoreFile> {
    let size = size & !u64::from(abi::GRANULE_DEFAULT - 1);
    let nonce = random()?;
    let store = create(path, size)?;
    let device = Device::under(&store)?;
    write(&store, &nonce, available, signals)?;
    if !prove(&device, device.unit, size, &nonce, signals)? {
        return Err(unfit(format!(
            "store: the blocks of {} are not where the file system says",
            store.path().display()
        )));
    }
    Ok(store)
}

/// This file system is of no use.
fn unfit(message: String) -> Error {
    Error::unsupported(message)
        .code("store-filesystem")
        .hint("put the store in another place: --store file:PATH")
}

/// Bytes that nobody can guess.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    read.map_err(|e| Error::io("can't read /dev/urandom", e))?;
    Ok(bytes)
}

/// Makes the empty file. It has a name: there are no files without one here.
fn create(path: &Path, size: u64) -> Result<StoreFile> {
    let number = u64::from_le_bytes(random()?);
    let created = if path.is_dir() {
        match StoreFile::create(path.join(format!(".bdsnap-{number:016x}")), path, size) {
            // Mounted as "msdos", FAT has short names only, and none that begins with a dot.
            Err(Errno::INVAL) => {
                let name = path.join(format!("{:08x}.bds", number >> 32));
                StoreFile::create(name, path, size)
            }
            created => created,
        }
    } else {
        StoreFile::create(path.to_owned(), path, size)
    };
    created.map_err(|e| Error::io(format!("store: can't make a file at {}", path.display()), e))
}

/// What the sector at byte `offset` of a file begins with.
fn header(nonce: &Nonce, offset: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let (first, second) = header.split_at_mut(nonce.len());
    first.copy_from_slice(nonce);
    second.copy_from_slice(&offset.to_le_bytes());
    header
}

/// Makes each sector of `bytes`, which are to be at byte `offset` of a file, say so.
fn mark(nonce: &Nonce, offset: u64, bytes: &mut [u8]) {
    let offsets = (offset..).step_by(SECTOR);
    for (at, sector) in offsets.zip(bytes.chunks_exact_mut(SECTOR)) {
        sector[..HEADER].copy_from_slice(&header(nonce, at));
    }
}

/// Whether `bytes` are whole sectors of which each says that it belongs at its place, the first one at byte
/// `offset` of the file.
fn is_marked(nonce: &Nonce, offset: u64, bytes: &[u8]) -> bool {
    let offsets = (offset..).step_by(SECTOR);
    let mut sectors = offsets.zip(bytes.chunks(SECTOR));
    bytes.len() % SECTOR == 0 && sectors.all(|(at, sector)| sector.starts_with(&header(nonce, at)))
}

/// Writes all of a file, marked, and waits until it is on the disk.
fn write(store: &StoreFile, nonce: &Nonce, available: u64, signals: &Signals) -> Result<()> {
    let failed = |e: io::Error| match e.kind() {
        ErrorKind::StorageFull | ErrorKind::FileTooLarge => {
            no_space(&store.place, store.size, available)
        }
        _ => Error::io(format!("store: can't write {}", store.path().display()), e),
    };
    let mut chunk = vec![0; CHUNK];
    for start in (0..store.size).step_by(CHUNK) {
        signals.check()?;
        let length = (store.size - start).min(CHUNK as u64);
        let bytes = &mut chunk[..length as usize];
        mark(nonce, start, bytes);
        store.file.write_all_at(bytes, start).map_err(failed)?;
        if (start + length) % SYNC == 0 {
            store.file.sync_data().map_err(failed)?;
        }
    }
    store.file.sync_all().map_err(failed)
}

/// A part of a file that is in one piece on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Where it is in the file, bytes.
    offset: u64,
    /// Where it is on the device, bytes.
    device: u64,
    /// Bytes.
    length: u64,
}

/// Joins blocks of `unit` bytes of the device, under those of a file from byte `offset` on, to runs. `None`:
/// one of them is 0, a hole.
fn runs(offset: u64, unit: u64, blocks: &[u32]) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for (&block, offset) in blocks.iter().zip((offset..).step_by(unit as usize)) {
        if block == 0 {
            return None;
        }
        let device = u64::from(block) * unit;
        match runs.last_mut() {
            Some(last) if last.device + last.length == device => last.length += unit,
            _ => runs.push(Run {
                offset,
                device,
                length: unit,
            }),
        }
    }
    Some(runs)
}

/// A file, as its file system sees it, and the device of that.
trait Ground {
    /// Fills in the blocks of the device under those of the file from block `first` of it on; 0: a hole.
    fn blocks(&self, first: u64, blocks: &mut [u32]) -> Result<()>;

    /// Reads the device from byte `offset` on. Whether it has as much.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<bool>;
}

/// Whether all `size` bytes of a marked file are where its file system, with blocks of `unit` bytes, says.
/// No two of its blocks can be in the same place then: each sector says one thing only.
fn prove(
    ground: &impl Ground,
    unit: u64,
    size: u64,
    nonce: &Nonce,
    signals: &Signals,
) -> Result<bool> {
    let mut buffer = Aligned::new(CHUNK);
    let mut proven = 0;
    for start in (0..size).step_by(CHUNK) {
        signals.check()?;
        let length = (size - start).min(CHUNK as u64);
        let mut blocks = vec![0; (length / unit) as usize];
        ground.blocks(start / unit, &mut blocks)?;
        let Some(runs) = runs(start, unit, &blocks) else {
            return Ok(false);
        };
        for run in runs {
            let bytes = buffer.get_mut(run.length as usize);
            if !ground.read(run.device, bytes)? || !is_marked(nonce, run.offset, bytes) {
                return Ok(false);
            }
            proven += run.length;
        }
    }
    Ok(proven == size)
}

/// A store's file and the block device that its file system is on.
struct Device<'a> {
    store: &'a StoreFile,
    device: File,
    /// Bytes of a block.
    unit: u64,
}

impl<'a> Device<'a> {
    /// Opens the device under a file, for reading past the page cache, and sees whether the file system can
    /// tell where a file is.
    fn under(store: &'a StoreFile) -> Result<Self> {
        let shown = store.path().display();
        let failed = |e: io::Error| Error::io(format!("store: {shown}"), e);
        let dev = store.file.metadata().map_err(failed)?.dev();
        let num = dev_num(dev);
        let none = || unfit(format!("store: {shown} is on no block device"));
        let path = dev_path(&Sysfs::default().name(num).ok_or_else(none)?);
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let device = rustix::fs::open(&path, flags, Mode::empty())
            .map(File::from)
            .map_err(|e| Error::io(format!("can't open {path}"), e))?;
        let meta = device.metadata().map_err(failed)?;
        if !meta.file_type().is_block_device() || meta.rdev() != dev {
            return Err(Error::failed(format!("{path} is not device {num}")));
        }
        let unit = ioctl::file_block_size(&store.file).map_err(|e| failed(e.into()))?;
        let size = ioctl::block_device_size(&device).map_err(|e| failed(e.into()))?;
        let unit = u64::from(unit);
        if let Some(why) = unusable(unit, size) {
            return Err(unfit(format!("store: {shown}: {why}")));
        }
        let device = Device {
            store,
            device,
            unit,
        };
        // It has none yet: but what can't be asked for is known before all is written.
        device.blocks(0, &mut [0])?;
        Ok(device)
    }
}

/// Why the blocks of files can't be told on a device of `size` bytes whose file system has blocks of `unit`
/// bytes. `None`: they can.
fn unusable(unit: u64, size: u64) -> Option<&'static str> {
    // All sizes here are then multiples of it.
    if unit < SECTOR as u64 || u64::from(abi::GRANULE_DEFAULT) % unit != 0 {
        return Some("the blocks of its file system have an odd size");
    }
    let many = size / unit >= TOO_MANY_BLOCKS;
    many.then_some("its file system has 2^31 blocks or more: they can't be told by their numbers")
}

impl Ground for Device<'_> {
    fn blocks(&self, first: u64, blocks: &mut [u32]) -> Result<()> {
        let shown = self.store.path().display();
        ioctl::file_blocks(&self.store.file, first, blocks).map_err(|e| match e {
            Errno::INVAL | Errno::NOTTY | Errno::RANGE => unfit(format!(
                "store: the file system can't tell where {shown} is"
            )),
            Errno::PERM => Error::io(format!("store: can't ask where {shown} is"), e)
                .hint("run it as root (CAP_SYS_RAWIO)"),
            e => Error::io(format!("store: can't ask where {shown} is"), e),
        })
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<bool> {
        match self.device.read_exact_at(bytes, offset) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => {
                let shown = self.store.path().display();
                let what = format!("store: can't read the device of {shown}");
                Err(Error::io(what, e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = *b"0123456789abcdef";
    const UNIT: u64 = 1024;

    /// A device, and where a file is said to be on it.
    struct Fake {
        device: Vec<u8>,
        map: Vec<u32>,
    }

    impl Ground for Fake {
        fn blocks(&self, first: u64, blocks: &mut [u32]) -> Result<()> {
            let first = first as usize;
            blocks.copy_from_slice(&self.map[first..first + blocks.len()]);
            Ok(())
        }

        fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<bool> {
            let offset = offset as usize;
            let Some(found) = self.device.get(offset..offset + bytes.len()) else {
                return Ok(false);
            };
            bytes.copy_from_slice(found);
            Ok(true)
        }
    }

    impl Fake {
        /// A file of so many blocks, each where `place` says.
        fn new(blocks: u32, place: impl Fn(u32) -> u32) -> Self {
            let map: Vec<u32> = (0..blocks).map(place).collect();
            let last = map.iter().max().unwrap();
            let mut device = vec![0; (u64::from(last + 1) * UNIT) as usize];
            for (offset, &block) in (0..).step_by(UNIT as usize).zip(&map) {
                let start = (u64::from(block) * UNIT) as usize;
                mark(&NONCE, offset, &mut device[start..start + UNIT as usize]);
            }
            Fake { device, map }
        }

        /// Whether so many blocks of the file are proven.
        fn proves(&self, blocks: u64) -> bool {
            prove(self, UNIT, blocks * UNIT, &NONCE, &Signals::inert()).unwrap()
        }
    }

    fn marked(sectors: usize, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; sectors * SECTOR];
        mark(&NONCE, offset, &mut bytes);
        bytes
    }

    #[test]
    fn marks() {
        let bytes = marked(4, 8192);
        assert!(is_marked(&NONCE, 8192, &bytes));
        assert_eq!(bytes[512..528], NONCE);
        assert_eq!(bytes[528..536], [0, 0x22, 0, 0, 0, 0, 0, 0]);
        // Another offset, another file, a part of a sector.
        for offset in [0, 8192 - 512, 8192 + 512, 8192 + (1 << 32)] {
            assert!(!is_marked(&NONCE, offset, &bytes), "{offset}");
        }
        assert!(!is_marked(b"0123456789abcdeF", 8192, &bytes));
        assert!(!is_marked(&NONCE, 8192, &bytes[..1000]));
        assert!(!is_marked(&NONCE, 8192, &[0; 512]));
    }

    #[test]
    fn each_sector_counts() {
        for sector in 0..4 {
            let start = sector * SECTOR;
            // Each byte of its header.
            for byte in start..start + HEADER {
                let mut bytes = marked(4, 8192);
                bytes[byte] ^= 1;
                assert!(!is_marked(&NONCE, 8192, &bytes), "byte {byte}");
            }
            // Of another file.
            let mut bytes = marked(4, 8192);
            let at = 8192 + start as u64;
            mark(&[7; 16], at, &mut bytes[start..start + SECTOR]);
            assert!(!is_marked(&NONCE, 8192, &bytes), "sector {sector}");
        }
    }

    #[test]
    fn swapped_sectors() {
        for (a, b) in [(0, 1), (1, 2), (0, 3)] {
            let mut bytes = marked(4, 0);
            let (first, second) = bytes.split_at_mut(b * SECTOR);
            first[a * SECTOR..(a + 1) * SECTOR].swap_with_slice(&mut second[..SECTOR]);
            assert!(!is_marked(&NONCE, 0, &bytes), "{a} and {b}");
        }
    }

    #[test]
    fn joins() {
        let run = |offset, device, length| Run {
            offset,
            device,
            length,
        };
        assert_eq!(runs(0, 512, &[]), Some(vec![]));
        assert_eq!(
            runs(4096, 512, &[8, 9, 10, 20, 19, 20, 21]),
            Some(vec![
                run(4096, 4096, 1536),
                run(5632, 10240, 512),
                run(6144, 9728, 1536),
            ])
        );
        // The same block twice isn't one after the other.
        assert_eq!(
            runs(0, 4096, &[5, 5]),
            Some(vec![run(0, 20480, 4096), run(4096, 20480, 4096)])
        );
        let last = (1 << 31) - 1;
        let end = u64::from(last) * 4096;
        assert_eq!(runs(0, 4096, &[last]), Some(vec![run(0, end, 4096)]));
        for hole in 0..3 {
            let mut blocks = [7, 8, 9];
            blocks[hole] = 0;
            assert_eq!(runs(0, 512, &blocks), None);
        }
    }

    #[test]
    fn proofs() {
        // In one piece, backwards, scattered; more than a chunk of it.
        let blocks = 2500;
        assert!(Fake::new(blocks, |i| i + 3).proves(2500));
        assert!(Fake::new(blocks, |i| blocks - i).proves(2500));
        assert!(Fake::new(blocks, |i| 1 + (i % 50) * 50 + i / 50).proves(2500));
    }

    #[test]
    fn lies() {
        let (last, blocks) = (2499, 2500);
        let good = || Fake::new(blocks, |i| i + 3);
        for i in [0, 1, 1023, 1024, last] {
            let lies = |lie: &dyn Fn(&mut Fake)| {
                let mut fake = good();
                lie(&mut fake);
                assert!(!fake.proves(2500), "block {i}");
            };
            // A hole, another block of the file, one of nobody's, one past the end of the device.
            lies(&|fake| fake.map[i] = 0);
            lies(&|fake| fake.map[i] = fake.map[(i + 1) % blocks as usize]);
            lies(&|fake| fake.map[i] = 1);
            lies(&|fake| fake.map[i] = 2503);
            // Two of them in each other's place.
            lies(&|fake| fake.map.swap(i, (i + 2) % blocks as usize));
            // Any sector of it.
            let end = (i + 4) * UNIT as usize;
            lies(&|fake| fake.device[end - SECTOR] ^= 1);
            lies(&|fake| fake.device[end - 2 * SECTOR] ^= 1);
        }
        // All of it one block further on.
        assert!(!Fake {
            map: good().map.iter().map(|b| b + 1).collect(),
            ..good()
        }
        .proves(2499));
        // What is no whole block isn't proven.
        assert!(!prove(&good(), UNIT, 5 * UNIT + 512, &NONCE, &Signals::inert()).unwrap());
    }

    #[test]
    fn file_systems() {
        for unit in [512, 1024, 4096] {
            assert_eq!(unusable(unit, 1 << 30), None);
            assert_eq!(unusable(unit, (unit << 31) - 1), None);
            assert!(unusable(unit, unit << 31).unwrap().contains("2^31"));
        }
        for unit in [0, 1, 256, 768, 1000, 8192] {
            assert!(unusable(unit, 1 << 30).unwrap().contains("odd"), "{unit}");
        }
    }

    #[test]
    fn written_from_end_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let size = (3 << 20) + 4096;
        let store = create(dir.path(), size).unwrap();
        let name = store.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(name.strip_prefix(".bdsnap-").unwrap().len(), 16);
        write(&store, &NONCE, 0, &Signals::inert()).unwrap();
        let bytes = std::fs::read(store.path()).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert!(is_marked(&NONCE, 0, &bytes));
        drop(store);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_taken_name_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(create(file.path(), 4096).is_err());
        assert!(file.path().exists());
    }

    #[test]
    fn only_files_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        assert!(ioctl::file_block_size(&file).unwrap().is_power_of_two());
        let opened = File::open(dir.path()).unwrap();
        for first in [0, 1 << 31] {
            let asked = ioctl::file_blocks(&opened, first, &mut [0]);
            assert_eq!(asked, Err(Errno::INVAL));
        }
        let asked = ioctl::file_blocks(&file, 1 << 31, &mut [0]);
        assert_eq!(asked, Err(Errno::RANGE));
    }

    #[test]
    fn no_two_numbers_are_alike() {
        assert_ne!(random::<16>().unwrap(), random::<16>().unwrap());
    }
}
