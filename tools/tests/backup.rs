//! Backup and restore with a file as the image and a made-up change map, checked with qemu-img
//! where that is installed.

use bdsnap::backup::buffer::Aligned;
use bdsnap::backup::chain::Chain;
use bdsnap::backup::chain::PointKind;
use bdsnap::backup::copy::back_up;
use bdsnap::backup::copy::Summary;
use bdsnap::backup::qcow2::Writer;
use bdsnap::backup::session::find_chain;
use bdsnap::backup::source::Info;
use bdsnap::backup::source::Source;
use bdsnap::backup::Progress;
use bdsnap::backup::Silent;
use bdsnap::changes::push;
use bdsnap::changes::Changes;
use bdsnap::changes::Extent;
use bdsnap::error::Error;
use bdsnap::error::Kind;
use bdsnap::error::Result;
use bdsnap::restore::restore;
use bdsnap::signals::Signals;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::Mutex;
use uuid::Uuid;

const BLOCK: u64 = 4096;

/// A device in memory with a change map.
struct Fake {
    bytes: Vec<u8>,
    map: Vec<u64>,
    /// Blocks that changed last by a discard.
    discarded: Vec<bool>,
    info: Info,
    /// Reads beyond this offset fail.
    fails_at: Option<u64>,
    damaged: bool,
    read: AtomicU64,
    /// What has been released: nobody may read it any more.
    released: Mutex<Vec<Extent>>,
    seed: u64,
}

impl Fake {
    /// A device of `size` bytes, a third of it data.
    fn new(size: u64) -> Self {
        let mut fake = Fake {
            bytes: vec![0; size as usize],
            map: vec![0; size.div_ceil(BLOCK) as usize],
            discarded: vec![false; size.div_ceil(BLOCK) as usize],
            info: Info {
                device: "/dev/fake".into(),
                snapshot: Uuid::nil(),
                created: "2024-01-01T00:00:00Z".into(),
                size,
                generation: Uuid::from_u128(1),
                number: 1,
                block_size: BLOCK as u32,
                since: None,
            },
            fails_at: None,
            damaged: false,
            read: AtomicU64::new(0),
            released: Mutex::new(Vec::new()),
            seed: size,
        };
        fake.change(20);
        fake
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.seed >> 33) % below
    }

    /// Writes some ranges, also zeros, and takes the next snapshot.
    fn change(&mut self, writes: u64) {
        let size = self.info.size;
        for i in 0..writes {
            let offset = self.random(size);
            let longest = (size - offset).min(size / 20 + 1);
            let length = 1 + self.random(longest);
            let byte = if i % 4 == 3 {
                0
            } else {
                self.random(255) as u8 + 1
            };
            self.bytes[offset as usize..(offset + length) as usize].fill(byte);
            for block in offset / BLOCK..(offset + length).div_ceil(BLOCK) {
                self.map[block as usize] = self.info.number + 1;
                self.discarded[block as usize] = false;
            }
        }
        self.info.number += 1;
        self.released.get_mut().unwrap().clear();
    }

    /// Discards blocks, which keep rubbish, in the interval that the next `change` ends.
    fn discard(&mut self, blocks: std::ops::Range<u64>) {
        for block in blocks {
            let end = self.info.size.min((block + 1) * BLOCK);
            self.bytes[(block * BLOCK) as usize..end as usize].fill(0xDD);
            self.map[block as usize] = self.info.number + 1;
            self.discarded[block as usize] = true;
        }
    }
}

impl Source for Fake {
    fn info(&self) -> &Info {
        &self.info
    }

    fn changes(&self, generation: Uuid, since: u64) -> Result<Changes> {
        if generation != self.info.generation || since == 0 {
            return Err(Error::new(Kind::Tracking, "too old"));
        }
        let mut changes = Changes::default();
        for (block, (value, discarded)) in (0..).zip(self.map.iter().zip(&self.discarded)) {
            if *value > since {
                let offset = block * BLOCK;
                let list = if *discarded {
                    &mut changes.discarded
                } else {
                    &mut changes.written
                };
                push(list, offset, BLOCK.min(self.info.size - offset));
            }
        }
        Ok(changes)
    }

    fn read(&self, buffer: &mut Aligned, length: usize, offset: u64) -> io::Result<()> {
        if self.fails_at.is_some_and(|at| offset + length as u64 > at) {
            return Err(io::Error::other("EIO"));
        }
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        let end = offset + length as u64;
        let released = self.released.lock().unwrap();
        let overlaps = |e: &&Extent| e.offset < end && offset < e.offset + e.length;
        assert!(
            !released.iter().any(|e| overlaps(&e)),
            "read after its release: {offset}"
        );
        drop(released);
        let start = offset as usize;
        buffer
            .get_mut(length)
            .copy_from_slice(&self.bytes[start..start + length]);
        Ok(())
    }

    fn release(&self, extents: &[Extent]) {
        self.released.lock().unwrap().extend_from_slice(extents);
    }

    fn copied(&self) -> u64 {
        0
    }

    fn check(&self) -> Result<()> {
        if self.damaged {
            return Err(Error::new(Kind::Damaged, "store full"));
        }
        Ok(())
    }
}

fn backup(fake: &Fake, dir: &Path) -> Result<Summary> {
    // Of a new snapshot.
    fake.released.lock().unwrap().clear();
    let mut chain = Chain::open(dir, &fake.info.device)?;
    back_up(fake, &mut chain, false, &Silent, &Signals::inert())
}

/// Restores a point into a new file and returns its bytes.
fn restored(dir: &Path, point: Option<u64>) -> Vec<u8> {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("restored");
    let chain = find_chain(dir, None).unwrap();
    let summary = restore(&chain, point, &path, &Silent, &Signals::inert()).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(summary.size, bytes.len() as u64);
    assert_eq!(summary.bytes_written + summary.bytes_zero, summary.size);
    bytes
}

/// qemu-img finds no fault in the file, and converts it to `expected`. Nothing where it is not
/// installed.
fn qemu_img_agrees(file: &Path, expected: &[u8]) {
    let run = |args: &[&std::ffi::OsStr]| {
        let output = Command::new("qemu-img").args(args).output().ok()?;
        let text =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "qemu-img {args:?}: {text}");
        Some(text.into_owned())
    };
    let raw = file.with_extension("raw");
    if run(&["check".as_ref(), file.as_ref()]).is_none() {
        return eprintln!("qemu-img is not installed: not compared with it");
    }
    let args = ["convert", "-O", "raw"].map(AsRef::as_ref);
    run(&[args[0], args[1], args[2], file.as_ref(), raw.as_ref()]);
    assert!(
        fs::read(&raw).unwrap() == expected,
        "qemu-img reads other bytes"
    );
    fs::remove_file(raw).unwrap();
}

#[test]
fn chains_of_several_sizes() {
    // Whole clusters; a part of one at the end; less than one; more than one chunk.
    for size in [1 << 20, (1 << 20) + 512, 4096, (9 << 20) + 4096 + 512] {
        let dir = tempfile::tempdir().unwrap();
        let mut fake = Fake::new(size);
        let mut past: Vec<Vec<u8>> = Vec::new();
        for round in 0..4 {
            let summary = backup(&fake, dir.path()).unwrap();
            let expected = if round == 0 {
                PointKind::Full
            } else {
                PointKind::Incremental
            };
            assert_eq!(summary.kind, expected, "{}", summary.reason);
            assert_eq!(summary.bytes_read, fake.read.swap(0, Ordering::Relaxed));
            assert!(round == 0 || size < 1 << 20 || summary.bytes_read < size);
            past.push(fake.bytes.clone());
            qemu_img_agrees(&summary.file, &fake.bytes);
            fake.change(2);
        }
        for (point, bytes) in (1..).zip(&past) {
            assert!(
                restored(dir.path(), Some(point)) == *bytes,
                "size {size} point {point}"
            );
        }
        assert!(&restored(dir.path(), None) == past.last().unwrap());
    }
}

/// Whatever kind of point it is, in the end all of the image has been released, once.
#[test]
fn releases_behind_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new((9 << 20) + 4096 + 512);
    for round in 0..3 {
        backup(&fake, dir.path()).unwrap();
        let mut released = std::mem::take(&mut *fake.released.lock().unwrap());
        released.sort_by_key(|e| e.offset);
        let mut at = 0;
        for extent in released {
            assert_eq!(extent.offset, at, "round {round}");
            at += extent.length;
        }
        assert_eq!(at, fake.info.size);
        fake.change(2);
    }
}

/// An image that has only what changed since the last point makes an increment, and never a full point.
#[test]
fn an_image_for_an_increment() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(3 << 20);
    backup(&fake, dir.path()).unwrap();
    let last = fake.info.number;
    fake.change(2);
    let whole = fake.bytes.clone();
    // What did not change since then is not kept, but for what shares a cluster with what did.
    const PER: usize = 65536 / BLOCK as usize;
    for cluster in 0..fake.map.len() / PER {
        if fake.map[cluster * PER..(cluster + 1) * PER]
            .iter()
            .all(|n| *n <= last)
        {
            fake.bytes[cluster * 65536..(cluster + 1) * 65536].fill(0);
        }
    }
    assert!(fake.bytes != whole);
    fake.info.since = Some(last);
    assert_eq!(
        backup(&fake, dir.path()).unwrap().kind,
        PointKind::Incremental
    );
    assert!(restored(dir.path(), None) == whole);
    for spoil in [0, 1] {
        fake.change(1);
        match spoil {
            0 => fake.info.generation = Uuid::from_u128(2),
            _ => fs::remove_file(dir.path().join("point-0002.qcow2")).unwrap(),
        }
        assert_eq!(backup(&fake, dir.path()).unwrap_err().code, "increment");
        fake.info.generation = Uuid::from_u128(1);
    }
}

/// Zeros over old data: an incremental point must hide what its base has there.
#[test]
fn zeros_hide_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new((3 << 20) + 512);
    fake.bytes.fill(7);
    backup(&fake, dir.path()).unwrap();
    fake.bytes.fill(0);
    fake.map.fill(fake.info.number + 1);
    fake.info.number += 1;
    let summary = backup(&fake, dir.path()).unwrap();
    assert_eq!(summary.kind, PointKind::Incremental);
    assert!(summary.bytes_written < 1 << 20, "zeros take space");
    qemu_img_agrees(&summary.file, &fake.bytes);
    assert!(restored(dir.path(), None) == fake.bytes);
}

/// Clusters that are discarded as a whole are not read and become zeros; parts of clusters are read
/// like all else. A full point holds what the image holds.
#[test]
fn discards_become_holes() {
    const CLUSTER: u64 = 65536;
    const PER: u64 = CLUSTER / BLOCK;
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(40 * CLUSTER + 4096 + 512);
    fake.bytes.fill(7);
    backup(&fake, dir.path()).unwrap();
    fake.read.store(0, Ordering::Relaxed);
    // Whole clusters 2 to 19 and a part of one on each side; one with a write in it; the last, short
    // one; less than a cluster.
    fake.discard(2 * PER - 3..20 * PER + 5);
    fake.discard(22 * PER..24 * PER);
    fake.discard(30 * PER + 1..30 * PER + 3);
    fake.discard(40 * PER..40 * PER + 2);
    let written = (23 * PER + 4) as usize;
    fake.bytes[written * BLOCK as usize] = 9;
    fake.map[written] = fake.info.number + 1;
    fake.discarded[written] = false;
    fake.info.number += 1;
    let mut expected = fake.bytes.clone();
    for hole in [2..20, 22..23] {
        expected[(hole.start * CLUSTER) as usize..(hole.end * CLUSTER) as usize].fill(0);
    }
    expected[40 * CLUSTER as usize..].fill(0);

    let summary = backup(&fake, dir.path()).unwrap();
    assert_eq!(summary.kind, PointKind::Incremental);
    assert_eq!(summary.discarded_bytes, 19 * CLUSTER + 4096 + 512);
    // Clusters 1, 20, 23 and 30.
    assert_eq!(summary.bytes_read, 4 * CLUSTER);
    assert_eq!(fake.read.swap(0, Ordering::Relaxed), 4 * CLUSTER);
    qemu_img_agrees(&summary.file, &expected);
    assert!(restored(dir.path(), None) == expected);

    // Nothing of it counts for the next one, and a full one reads all.
    fake.change(1);
    assert_eq!(backup(&fake, dir.path()).unwrap().discarded_bytes, 0);
    fake.info.generation = Uuid::from_u128(2);
    assert_eq!(backup(&fake, dir.path()).unwrap().kind, PointKind::Full);
    assert!(restored(dir.path(), None) == fake.bytes);
}

/// Zeros for many GiB make a small file.
#[test]
fn large_holes_are_cheap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hole");
    let size = 64 << 30;
    let writer = Writer::create(&path, size, Some("base")).unwrap();
    writer.zero(0, size).unwrap();
    writer.finish().unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    // 8 bytes a cluster are all that qcow2 needs.
    assert!(bytes < 3 * 8 * (size / 65536), "{bytes} bytes");
}

#[test]
fn full_again_where_tracking_has_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(1 << 20);
    let kind = |fake: &Fake| backup(fake, dir.path()).unwrap().kind;
    assert_eq!(kind(&fake), PointKind::Full);
    fake.change(1);
    assert_eq!(kind(&fake), PointKind::Incremental);
    fake.change(1);
    fake.info.generation = Uuid::from_u128(2);
    assert_eq!(kind(&fake), PointKind::Full, "other generation");
    fake.change(1);
    assert_eq!(kind(&fake), PointKind::Incremental);
    assert_eq!(kind(&fake), PointKind::Full, "the same number again");
    fake.change(1);
    fs::remove_file(dir.path().join("point-0005.qcow2")).unwrap();
    assert_eq!(kind(&fake), PointKind::Full, "its base is gone");
    let mut fake = Fake::new(2 << 20);
    fake.info.number = 100;
    fake.info.generation = Uuid::from_u128(2);
    let summary = backup(&fake, dir.path()).unwrap();
    assert_eq!(summary.kind, PointKind::Full, "another size");
    assert!(restored(dir.path(), None) == fake.bytes);
}

/// Stops the copy at a chosen place, as a signal would.
struct Stopper {
    after: AtomicU64,
}

impl Progress for Stopper {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, bytes: u64) {
        let left = self.after.load(Ordering::Relaxed);
        assert!(left > bytes, "stopped here");
        self.after.store(left - bytes, Ordering::Relaxed);
    }
    fn end(&self) {}
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| PathBuf::from(e.unwrap().file_name()))
        .collect();
    names.sort();
    names
}

#[test]
fn a_failed_one_leaves_the_chain_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(8 << 20);
    backup(&fake, dir.path()).unwrap();
    let before = names(dir.path());
    let first = fake.bytes.clone();
    fake.change(20);

    fake.fails_at = Some(1 << 20);
    assert_eq!(backup(&fake, dir.path()).unwrap_err().code, "io");
    assert_eq!(names(dir.path()), before);

    fake.damaged = true;
    assert_eq!(backup(&fake, dir.path()).unwrap_err().kind.exit_code(), 4);
    fake.fails_at = None;
    assert_eq!(backup(&fake, dir.path()).unwrap_err().kind.exit_code(), 4);
    assert_eq!(names(dir.path()), before);
    assert!(restored(dir.path(), None) == first);

    fake.damaged = false;
    assert_eq!(
        backup(&fake, dir.path()).unwrap().kind,
        PointKind::Incremental
    );
    assert!(restored(dir.path(), None) == fake.bytes);
}

/// A process that dies leaves a partial file: it never counts, and goes at the next run.
#[test]
fn a_killed_one_is_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(8 << 20);
    backup(&fake, dir.path()).unwrap();
    fake.change(5);
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut chain = Chain::open(dir.path(), "/dev/fake").unwrap();
        let stopper = Stopper {
            after: AtomicU64::new(1),
        };
        let _ = back_up(&fake, &mut chain, false, &stopper, &Signals::inert());
    }));
    assert!(killed.is_err());
    fs::write(dir.path().join("point-0002.qcow2.partial"), "rubbish").unwrap();
    fs::write(dir.path().join("manifest.json.partial"), "rubbish").unwrap();
    let summary = backup(&fake, dir.path()).unwrap();
    assert_eq!((summary.kind, summary.point), (PointKind::Incremental, 2));
    assert_eq!(names(dir.path()).len(), 3);
    assert!(restored(dir.path(), None) == fake.bytes);
}

#[test]
fn restore_refuses_what_it_must() {
    let dir = tempfile::tempdir().unwrap();
    backup(&Fake::new(1 << 20), dir.path()).unwrap();
    let chain = find_chain(dir.path(), None).unwrap();
    let target = tempfile::tempdir().unwrap();
    let exit = |point, path: &Path| {
        let result = restore(&chain, point, path, &Silent, &Signals::inert());
        result.unwrap_err().kind.exit_code()
    };
    let exists = target.path().join("exists");
    fs::write(&exists, "precious").unwrap();
    assert_eq!(exit(None, &exists), 2);
    assert_eq!(fs::read(&exists).unwrap(), b"precious");
    assert_eq!(exit(None, target.path()), 2);
    assert_eq!(exit(Some(7), &target.path().join("new")), 8);
    assert_eq!(names(target.path()).len(), 1);
}

#[test]
fn chains_are_found() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        find_chain(dir.path(), None).unwrap_err().kind.exit_code(),
        8
    );
    backup(&Fake::new(4096), &dir.path().join("vdb1")).unwrap();
    assert!(find_chain(dir.path(), None).is_ok());
    let mut other = Fake::new(4096);
    other.info.device = "/dev/vdc".into();
    backup(&other, &dir.path().join("vdc")).unwrap();
    assert_eq!(
        find_chain(dir.path(), None).unwrap_err().kind.exit_code(),
        2
    );
    for name in ["vdc", "/dev/vdc"] {
        assert_eq!(
            find_chain(dir.path(), Some(name)).unwrap().device(),
            "/dev/vdc"
        );
    }
    assert!(find_chain(&dir.path().join("vdc"), None).is_ok());
    let error = find_chain(dir.path(), Some("vdz")).unwrap_err();
    assert_eq!(error.kind.exit_code(), 8);
}
