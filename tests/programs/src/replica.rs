//! What a device holds after a part of its log was replayed, kept as the pages
//! that differ from a base: memory does not depend on the device's size.

use crate::digests::Extent;
use crate::writelog::Entry;
use crate::writelog::Kind;
use crate::writelog::Log;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
const SECTOR: u64 = 512;

/// What the device under the log does with a discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Discards {
    /// Nothing.
    Keep,
    /// The range reads as zeros.
    Zeros,
    /// Anything: such sectors aren't compared, but count as changed.
    Any,
}

/// The content of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    data: Box<[u8]>,
    /// A bit for each sector that may hold anything.
    any: u8,
}

impl Page {
    fn differs(&self, other: &Self) -> bool {
        (self.any | other.any) != 0 || self.data != other.data
    }

    /// True if `b` (shorter at the device's end) can be this page.
    pub fn matches(&self, b: &[u8]) -> bool {
        if self.any == 0 {
            return self.data[..b.len()] == *b;
        }
        b.chunks(SECTOR as usize).enumerate().all(|(i, s)| {
            self.any & (1 << i) != 0 || self.data[i * SECTOR as usize..][..s.len()] == *s
        })
    }

    /// The bytes, up to the device's end.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }
}

/// A device, replayed.
pub struct Replica {
    base: Option<File>,
    discards: Discards,
    /// Bytes of the device.
    pub size: u64,
    pages: BTreeMap<u64, Page>,
}

impl Replica {
    /// The state before the first entry: that of `base`, or zeros.
    pub fn new(base: Option<File>, size: u64, discards: Discards) -> Self {
        Self {
            base,
            discards,
            size,
            pages: BTreeMap::new(),
        }
    }

    /// Page number `n`.
    pub fn page(&self, n: u64) -> Result<Page, String> {
        if let Some(p) = self.pages.get(&n) {
            return Ok(p.clone());
        }
        let mut data = vec![0u8; PAGE as usize].into_boxed_slice();
        if let Some(f) = &self.base {
            let len = PAGE.min(self.size - n * PAGE) as usize;
            f.read_exact_at(&mut data[..len], n * PAGE)
                .map_err(|e| format!("read the base at {}: {e}", n * PAGE))?;
        }
        Ok(Page { data, any: 0 })
    }

    /// Replays one entry, and names the pages it has touched.
    pub fn apply(&mut self, log: &Log, e: &Entry) -> Result<std::ops::Range<u64>, String> {
        let (fill, data) = match (&e.kind, self.discards) {
            (Kind::Write, _) => (None, Some(log.data(e)?)),
            (Kind::Discard, Discards::Zeros) => (Some(0u8), None),
            (Kind::Discard, Discards::Any) => (Some(1), None),
            _ => return Ok(0..0),
        };
        let end = e.offset.saturating_add(e.len);
        if end > self.size {
            return Err(format!("an entry past the device's end: {e:?}"));
        }
        let pages = e.offset / PAGE..end.div_ceil(PAGE);
        for n in pages.clone() {
            let mut page = match self.pages.remove(&n) {
                Some(p) => p,
                None => self.page(n)?,
            };
            let from = e.offset.max(n * PAGE);
            let to = end.min((n + 1) * PAGE);
            let (a, b) = ((from - n * PAGE) as usize, (to - n * PAGE) as usize);
            let bits = (a as u64 / SECTOR..b as u64 / SECTOR).fold(0u8, |m, i| m | (1 << i));
            match (&data, fill) {
                (Some(d), _) => {
                    page.data[a..b].copy_from_slice(&d[(from - e.offset) as usize..][..b - a]);
                    page.any &= !bits;
                }
                (None, Some(0)) => {
                    page.data[a..b].fill(0);
                    page.any &= !bits;
                }
                (None, _) => page.any |= bits,
            }
            self.pages.insert(n, page);
        }
        Ok(pages)
    }

    /// Replays the entries from `from` to before `to`; gives each page touched with what it was
    /// before.
    pub fn replay(
        &mut self,
        log: &Log,
        from: usize,
        to: usize,
    ) -> Result<BTreeMap<u64, Page>, String> {
        let mut before = BTreeMap::new();
        for e in log.entries.get(from..to).unwrap_or_default() {
            if matches!(e.kind, Kind::Flush | Kind::Mark(_)) {
                continue;
            }
            for n in e.offset / PAGE..(e.offset + e.len).div_ceil(PAGE) {
                if let std::collections::btree_map::Entry::Vacant(v) = before.entry(n) {
                    v.insert(self.page(n)?);
                }
            }
            self.apply(log, e)?;
        }
        Ok(before)
    }

    /// Of the pages in `before`, those that are not the same now.
    pub fn changed(&self, before: &BTreeMap<u64, Page>) -> Result<Vec<Extent>, String> {
        let mut out = Vec::new();
        for (n, old) in before {
            if old.differs(&self.page(*n)?) {
                push(&mut out, *n, self.size);
            }
        }
        Ok(out)
    }

    /// Whether `b`, what the image shows there, is page `n` of this state.
    fn same(&self, n: u64, b: &[u8]) -> Result<bool, String> {
        match self.pages.get(&n) {
            Some(p) => Ok(p.matches(b)),
            None => Ok(self.page(n)?.matches(b)),
        }
    }

    /// The pages of `image` that are not those of this state.
    pub fn compare(&self, image: &File) -> Result<BTreeSet<u64>, String> {
        let mut wrong = BTreeSet::new();
        let mut buf = vec![0u8; 1 << 20];
        let mut base = buf.clone();
        let mut at = 0;
        while at < self.size {
            let len = (buf.len() as u64).min(self.size - at) as usize;
            let read = |f: &File, b: &mut [u8], what: &str| {
                f.read_exact_at(b, at)
                    .map_err(|e| format!("read the {what} at {at}: {e}"))
            };
            read(image, &mut buf[..len], "image")?;
            if let Some(f) = &self.base {
                read(f, &mut base[..len], "base")?;
            }
            let parts = buf[..len].chunks(PAGE as usize);
            for (i, (b, base)) in parts.zip(base[..len].chunks(PAGE as usize)).enumerate() {
                let n = at / PAGE + i as u64;
                if !self.pages.get(&n).map_or(b == base, |p| p.matches(b)) {
                    wrong.insert(n);
                }
            }
            at += len as u64;
        }
        Ok(wrong)
    }
}

/// Adds page `n` to a sorted list of extents.
pub fn push(list: &mut Vec<Extent>, n: u64, size: u64) {
    let (offset, length) = (n * PAGE, PAGE.min(size - n * PAGE));
    match list.last_mut() {
        Some(e) if e.offset + e.length == offset => e.length += length,
        _ => list.push(Extent { offset, length }),
    }
}

/// Where in the log an image was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// After so many entries the device was first what the image is.
    pub first: usize,
    /// ... and last.
    pub last: usize,
}

/// Looks for the one instant at which the device was `image`, from entry
/// `from` (the state of `r`) to entry `to`; an error names what differs at the
/// best guess.
pub fn find(
    r: &mut Replica,
    log: &Log,
    from: usize,
    to: usize,
    image: &File,
) -> Result<Found, String> {
    let mut wrong = r.compare(image)?;
    let mut found: Option<Found> = None;
    let mut best = (from, wrong.clone());
    let mut i = from;
    loop {
        if wrong.is_empty() {
            let first = found.map_or(i, |f| f.first);
            found = Some(Found { first, last: i });
        } else if wrong.len() < best.1.len() {
            best = (i, wrong.clone());
        }
        if i >= to {
            break;
        }
        let pages = r.apply(log, &log.entries[i])?;
        let start = pages.start * PAGE;
        let mut shown = vec![0u8; (r.size.min(pages.end * PAGE) - start.min(r.size)) as usize];
        image
            .read_exact_at(&mut shown, start)
            .map_err(|e| format!("read the image at {start}: {e}"))?;
        for (n, b) in pages.zip(shown.chunks(PAGE as usize)) {
            if r.same(n, b)? {
                wrong.remove(&n);
            } else {
                wrong.insert(n);
            }
        }
        i += 1;
    }
    found.ok_or_else(|| {
        let mut where_ = Vec::new();
        for n in &best.1 {
            push(&mut where_, *n, r.size);
        }
        let shown: Vec<String> = where_
            .iter()
            .take(10)
            .map(|e| format!("{}+{}", e.offset, e.length))
            .collect();
        format!(
            "the device never was what the image shows, from entry {from} to {to}; closest after {}: \
             {} pages differ: {}",
            best.0,
            best.1.len(),
            shown.join(" ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writelog::fake;
    use std::fs;

    const SIZE: u64 = 4 * PAGE + 512;

    fn image(name: &str, data: &[u8]) -> (String, File) {
        let path = format!(
            "{}/replica-{name}-{}",
            std::env::temp_dir().display(),
            std::process::id()
        );
        fs::write(&path, data).expect("write");
        let f = File::open(&path).expect("open");
        (path, f)
    }

    #[test]
    fn every_prefix_is_found_and_nothing_else() {
        let (a, b) = ([1u8; 1024], [2u8; 4096]);
        let log = fake::log(
            "prefix",
            512,
            &[
                (Kind::Write, 3584, &a),
                (Kind::Write, PAGE * 3, &b),
                (Kind::Discard, PAGE * 3 + 512, &a),
                (Kind::Write, PAGE * 4, &a[..512]),
                (Kind::Mark("end".into()), 0, &[]),
            ],
        );
        let open = Log::open(&log, &["end"]).expect("log");
        let mut truth = vec![0u8; SIZE as usize];
        for k in 0..=4usize {
            match k {
                1 => truth[3584..4608].fill(1),
                2 => truth[12288..16384].fill(2),
                3 => truth[12800..13824].fill(0),
                4 => truth[16384..].fill(1),
                _ => {}
            }
            let (path, f) = image("prefix", &truth);
            let search = || {
                let mut r = Replica::new(None, SIZE, Discards::Zeros);
                find(&mut r, &open, 0, 4, &f)
            };
            assert_eq!(search(), Ok(Found { first: k, last: k }));
            for at in [0, 3584, 12288, 13000, SIZE as usize - 1] {
                truth[at] ^= 0x80;
                fs::write(&path, &truth).expect("spoil");
                assert!(search().is_err(), "prefix {k}, byte {at}");
                truth[at] ^= 0x80;
            }
            fs::remove_file(path).expect("rm");
        }
        fs::remove_file(log).expect("rm");
    }

    #[test]
    fn discarded_sectors_may_be_anything_and_count_as_changed() {
        let a = [1u8; 1024];
        let log = fake::log(
            "any",
            512,
            &[
                (Kind::Write, 0, &a),
                (Kind::Discard, 512, &a),
                (Kind::Write, 8192, &a),
                (Kind::Write, 8192, &a),
            ],
        );
        let open = Log::open(&log, &[]).expect("log");
        let mut data = vec![0u8; SIZE as usize];
        data[..512].fill(1);
        data[600] = 99;
        data[8192..9216].fill(1);
        let (path, f) = image("any", &data);
        let mut r = Replica::new(None, SIZE, Discards::Any);
        assert_eq!(
            find(&mut r, &open, 0, 4, &f),
            Ok(Found { first: 3, last: 4 })
        );

        let mut r = Replica::new(None, SIZE, Discards::Any);
        r.replay(&open, 0, 1).expect("replay");
        let before = r.replay(&open, 1, 2).expect("replay");
        assert_eq!(r.changed(&before).expect("changed").len(), 1);
        r.replay(&open, 2, 3).expect("replay");
        let before = r.replay(&open, 3, 4).expect("replay");
        assert_eq!(before.len(), 1);
        assert_eq!(r.changed(&before), Ok(vec![]), "the same data again");

        // with a device that ignores discards, byte 600 is wrong
        let mut r = Replica::new(None, SIZE, Discards::Keep);
        assert!(find(&mut r, &open, 0, 4, &f).is_err());
        fs::remove_file(path).expect("rm");
        fs::remove_file(log).expect("rm");
    }
}
