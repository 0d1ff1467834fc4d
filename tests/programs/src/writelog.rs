//! Reads the log that the kernel's dm-log-writes target makes of all writes to
//! a device. (`drivers/md/dm-log-writes.c` describes the format.)
//!
//! The target logs plain writes in the order of their completion, but only at
//! the next flush, and writes with FUA at once, before plain ones that were
//! completed earlier. So a log is in true order only if the device has its
//! write cache switched off (`queue/write_cache`) except around the flush
//! before a mark, while nobody writes.

use crate::sys;
use crate::sys::Buf;
use crate::sys::Open;
use std::fs;
use std::fs::File;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use std::time::Instant;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Bytes of an entry's head before a mark's name.
const HEAD: usize = 32;
/// How long to wait for what is under way.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data written.
    Write,
    /// A range discarded.
    Discard,
    /// A flush without data.
    Flush,
    /// A mark, with its name.
    Mark(String),
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Where on the device, in bytes.
    pub offset: u64,
    /// Bytes written or discarded.
    pub len: u64,
    /// Where the data is in the log, in bytes.
    pub data: u64,
}

/// The entries of a log, and where to read their data.
pub struct Log {
    file: File,
    /// All entries, in order.
    pub entries: Vec<Entry>,
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut w = [0u8; 8];
    w.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(w)
}

/// The number of entries and the sector size that the super block names.
fn parse_super(b: &[u8]) -> Result<(u64, u64), String> {
    let sector = u64_at(b, 24) & 0xffff_ffff;
    if u64_at(b, 0) != MAGIC || u64_at(b, 8) != 1 {
        return Err("no log of dm-log-writes".into());
    }
    if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
        return Err(format!("sectors of {sector} bytes?"));
    }
    Ok((u64_at(b, 16), sector))
}

/// The entry whose head `b` (a sector at byte `at` of the log) is, and where
/// the next one is.
fn parse_entry(b: &[u8], at: u64, sector: u64) -> Result<(Entry, u64), String> {
    let (offset, count, flags, name) = (
        u64_at(b, 0).checked_mul(sector),
        u64_at(b, 8).checked_mul(sector),
        u64_at(b, 16),
        u64_at(b, 24),
    );
    let (Some(offset), Some(len)) = (offset, count) else {
        return Err(format!("nonsense at byte {at}"));
    };
    let kind = if flags & MARK != 0 {
        let text = b
            .get(HEAD..HEAD + name as usize)
            .ok_or_else(|| format!("a mark's name of {name} bytes at byte {at}"))?;
        Kind::Mark(String::from_utf8_lossy(text).into_owned())
    } else if flags & DISCARD != 0 {
        Kind::Discard
    } else if len > 0 {
        Kind::Write
    } else if flags & FLUSH != 0 {
        Kind::Flush
    } else {
        return Err(format!("no entry at byte {at}, where one should be"));
    };
    let data = at + sector;
    let next = if kind == Kind::Write {
        data + len
    } else {
        data
    };
    Ok((
        Entry {
            kind,
            offset,
            len,
            data,
        },
        next,
    ))
}

/// Waits until the device has no I/O in flight: the target does not wait for
/// its own writes to the log.
fn idle(f: &File) -> Result<(), String> {
    let Ok(m) = f.metadata() else { return Ok(()) };
    if !sys::is_block_device(f) {
        return Ok(());
    }
    let dev = m.st_rdev();
    let path = format!(
        "/sys/dev/block/{}:{}/inflight",
        libc::major(dev),
        libc::minor(dev)
    );
    let until = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        if text.split_whitespace().all(|n| n == "0") {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("{path} is never 0"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads heads of entries, many in one go where they are close to each other.
struct Heads {
    file: File,
    buf: Buf,
    start: u64,
    len: usize,
}

impl Heads {
    fn get(&mut self, at: u64, len: usize) -> Result<&[u8], String> {
        let inside =
            |start: u64, have: usize| at >= start && at + len as u64 <= start + have as u64;
        if !inside(self.start, self.len) {
            self.start = at / 4096 * 4096;
            self.len = 0;
            while self.len < self.buf.len() {
                let n = self
                    .file
                    .read_at(&mut self.buf[self.len..], self.start + self.len as u64)
                    .map_err(|e| format!("read at {}: {e}", self.start))?;
                if n == 0 {
                    break;
                }
                self.len += n;
            }
            if !inside(self.start, self.len) {
                return Err(format!("ends before {at}"));
            }
        }
        let from = (at - self.start) as usize;
        Ok(&self.buf[from..from + len])
    }
}

impl Log {
    fn read(path: &str) -> Result<Self, String> {
        // The target writes below the page cache. A file (in unit tests) may not take O_DIRECT.
        let direct = sys::is_block_device(&sys::open(path, Open::default())?);
        let how = Open {
            direct,
            ..Open::default()
        };
        let mut heads = Heads {
            file: sys::open(path, how)?,
            buf: Buf::new(64 << 10),
            start: 0,
            len: 0,
        };
        let at = |e: String| format!("{path}: {e}");
        let (count, sector) = parse_super(heads.get(0, 512).map_err(at)?).map_err(at)?;
        // What the super block counts may still be on its way to the log.
        idle(&heads.file)?;
        heads.len = 0;
        let mut entries = Vec::new();
        let mut next = sector;
        for _ in 0..count {
            let b = heads.get(next, sector as usize).map_err(at)?;
            let (entry, after) = parse_entry(b, next, sector).map_err(at)?;
            entries.push(entry);
            next = after;
        }
        Ok(Self {
            file: heads.file,
            entries,
        })
    }

    /// Opens the log at `path`, once it holds all of `marks`.
    pub fn open(path: &str, marks: &[&str]) -> Result<Self, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = Self::read(path).and_then(|log| {
                for m in marks {
                    log.position(m)?;
                }
                Ok(log)
            });
            if found.is_ok() || Instant::now() > until {
                return found;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How many entries there are up to this point: a mark's name, `@N` for the
    /// first N entries, `start` for none.
    pub fn position(&self, point: &str) -> Result<usize, String> {
        if point == "start" {
            return Ok(0);
        }
        if let Some(n) = point.strip_prefix('@') {
            return n
                .parse()
                .ok()
                .filter(|n| *n <= self.entries.len())
                .ok_or_else(|| format!("'{point}' is no place in {} entries", self.entries.len()));
        }
        let mut all = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, e)| matches!(&e.kind, Kind::Mark(m) if m == point));
        match (all.next(), all.next()) {
            (Some((i, _)), None) => Ok(i),
            (None, _) => Err(format!("no mark '{point}' in the log")),
            _ => Err(format!("several marks '{point}' in the log")),
        }
    }

    /// The data of a write.
    pub fn data(&self, e: &Entry) -> Result<Buf, String> {
        let mut buf = Buf::new(e.len as usize);
        self.file
            .read_exact_at(&mut buf, e.data)
            .map_err(|x| format!("read {} bytes of the log at {}: {x}", e.len, e.data))?;
        Ok(buf)
    }
}

/// A log as the kernel would write it, for tests.
#[cfg(test)]
pub mod fake {
    use super::*;

    /// Writes a log of these entries (kind, offset, data or only its length) to a new file.
    pub fn log(name: &str, sector: u64, entries: &[(Kind, u64, &[u8])]) -> String {
        let path = format!(
            "{}/log-{name}-{}",
            std::env::temp_dir().display(),
            std::process::id()
        );
        let head = |words: [u64; 4], rest: &[u8]| {
            let mut b: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            b.extend(rest);
            b.resize(sector as usize, 0);
            b
        };
        let mut out = head([MAGIC, 1, entries.len() as u64, sector], &[]);
        for (kind, offset, data) in entries {
            let (at, n) = (offset / sector, data.len() as u64 / sector);
            out.extend(match kind {
                Kind::Write => head([at, n, 0, 0], &[]),
                Kind::Discard => head([at, n, DISCARD, 0], &[]),
                Kind::Flush => head([0, 0, FLUSH, 0], &[]),
                Kind::Mark(m) => head([0, 0, MARK, m.len() as u64], m.as_bytes()),
            });
            if *kind == Kind::Write {
                out.extend(*data);
            }
        }
        out.resize(out.len().max(4096), 0);
        fs::write(&path, out).expect("write the log");
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_back() {
        for sector in [512u64, 4096] {
            let data = vec![7u8; 2 * sector as usize];
            let mark = |s: &str| (Kind::Mark(s.into()), 0, &[][..]);
            let path = fake::log(
                &format!("back{sector}"),
                sector,
                &[
                    mark("one"),
                    (Kind::Write, 3 * sector, &data),
                    (Kind::Discard, 8 * sector, &data),
                    (Kind::Flush, 0, &[]),
                    mark("two"),
                ],
            );
            let log = Log::open(&path, &["one", "two"]).expect("open");
            assert_eq!(log.position("start"), Ok(0));
            assert_eq!(log.position("two"), Ok(4));
            assert_eq!(log.position("@5"), Ok(5));
            assert!(log.position("@6").is_err());
            assert!(log.position("three").is_err());
            let w = &log.entries[1];
            assert_eq!((w.offset, w.len), (3 * sector, 2 * sector));
            assert_eq!(log.data(w).expect("data")[..], data[..]);
            assert_eq!(log.entries[2].kind, Kind::Discard);
            assert_eq!(log.entries[2].len, 2 * sector);
            fs::remove_file(path).expect("rm");
        }
    }

    #[test]
    fn what_is_no_log_is_refused() {
        assert!(parse_super(&[0; 4096]).is_err());
        assert!(parse_entry(&[0; 512], 512, 512).is_err());
        assert!(parse_entry(&[0xff; 512], 512, 512).is_err());
    }
}
