// SPDX-License-Identifier: GPL-2.0

//! What a version need not keep, from its cut on: what is free in its origin's file system, and for an
//! increment what has not changed.
//!
//! Somebody has the file system's map of free space read while all writes are recorded. What is free
//! in the map, and not written between the beginning of the recording and the cut, is free at the cut
//! as well: a frozen file system has written all that it holds. In the same way, what had not changed
//! when the change map was read has not at the cut.

use crate::kapi::abi;
use bdsnap_logic::bits;
use bdsnap_logic::units::Chunks;
use bdsnap_logic::units::Granules;
use bdsnap_logic::units::Sectors;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use core::sync::atomic::fence;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Sectors in a chunk, as a shift. Not less than those of a granule.
const CHUNK_SHIFT: u32 = abi::BDSNAP_FREE_UNIT.trailing_zeros() - SECTOR_SHIFT;
const _: () = assert!(abi::BDSNAP_GRANULE_MAX <= abi::BDSNAP_FREE_UNIT);

/// One bit a chunk.
struct Map(KVVec<AtomicU64>);

impl Map {
    /// All bits clear, for an origin of `sectors` sectors. ENOMEM. May sleep.
    fn new(sectors: u64) -> Result<Self> {
        let all = Span::<Sectors>::of_len(0, sectors).ok_or(EINVAL)?;
        let chunks = all.outward::<Chunks>(CHUNK_SHIFT).len();
        let words = usize::try_from(chunks.div_ceil(64))?;
        let mut map = KVVec::with_capacity(words, GFP_KERNEL)?;
        for _ in 0..words {
            map.push(AtomicU64::new(0), GFP_KERNEL)?;
        }
        Ok(Self(map))
    }
}

/// The first bit of some chunks, and the bit after the last.
fn bits_of(chunks: Span<Chunks>) -> (usize, usize) {
    (chunks.start() as usize, chunks.end() as usize)
}

/// Chunks that are free, or that need not be kept.
pub(crate) struct Free(Map);

/// What a version need not keep, from its cut on.
#[derive(Clone)]
pub(crate) struct Spared {
    /// What is free.
    pub(crate) free: Arc<Free>,
    /// That, and what has not changed.
    all: Arc<Free>,
    /// It is for an increment: what changed after this snapshot is kept.
    pub(crate) since: Option<u64>,
}

impl Spared {
    /// All of it.
    pub(super) fn all(&self) -> &Free {
        &self.all
    }

    /// Whether all of these sectors, which are some, are among it, and not all of them free: then they
    /// have not changed since [`Spared::since`].
    pub(crate) fn is_unchanged(&self, span: Span<Sectors>) -> bool {
        let (first, last) = bits_of(span.outward::<Chunks>(CHUNK_SHIFT));
        let is_in = |map: &Free| bits::first_clear(&map.0 .0, first, last).is_none();
        is_in(&self.all) && !is_in(&self.free)
    }
}

impl Free {
    /// The first granule from `granule` on, up to `end`, that may be in use. `shift` is sectors in a
    /// granule.
    pub(super) fn first_used(&self, granule: u64, end: u64, shift: u32) -> u64 {
        let (first, last) = self.chunks(granule, end, shift);
        match bits::first_clear(&self.0 .0, first, last) {
            Some(chunk) => ((chunk as u64) << (CHUNK_SHIFT - shift)).clamp(granule, end),
            None => end,
        }
    }

    /// The first granule from `granule` on, up to `end`, that is free.
    pub(super) fn first_free(&self, granule: u64, end: u64, shift: u32) -> u64 {
        let (first, last) = self.chunks(granule, end, shift);
        match bits::first_set(&self.0 .0, first, last) {
            Some(chunk) => ((chunk as u64) << (CHUNK_SHIFT - shift)).clamp(granule, end),
            None => end,
        }
    }

    /// The bits of all chunks that these granules touch.
    fn chunks(&self, granule: u64, end: u64, shift: u32) -> (usize, usize) {
        let granules = Span::<Granules>::new(granule, end).unwrap_or(Span::EMPTY);
        let sectors = granules.sectors(shift, u64::MAX);
        bits_of(sectors.outward::<Chunks>(CHUNK_SHIFT))
    }

    /// Calls `each` with what of `span` is not free (any more). Who has cleared a bit before this looks
    /// is seen; who does so later comes after what the caller did before.
    pub(crate) fn each_used(&self, span: Span<Sectors>, mut each: impl FnMut(Span<Sectors>)) {
        fence(Ordering::SeqCst);
        let (mut from, to) = bits_of(span.outward::<Chunks>(CHUNK_SHIFT));
        while let Some(bit) = bits::first_clear(&self.0 .0, from, to) {
            let chunk = Span::<Chunks>::of_len(bit as u64, 1).unwrap_or(Span::EMPTY);
            each(chunk.sectors(CHUNK_SHIFT, u64::MAX));
            from = bit + 1;
        }
    }

    /// How many granules are in it, of a device of `sectors` sectors.
    pub(super) fn granules(&self, shift: u32, sectors: u64) -> u64 {
        let all = Span::<Sectors>::of_len(0, sectors).unwrap_or(Span::EMPTY);
        let (_, end) = bits_of(all.outward::<Chunks>(CHUNK_SHIFT));
        let whole = |chunks: usize| (chunks as u64) << (CHUNK_SHIFT - shift);
        let count = |from, to| whole(bits::count(&self.0 .0, from, to));
        // The last one may go past the end of the device.
        let beyond = whole(end).saturating_sub(all.outward::<Granules>(shift).len());
        let last = count(end.saturating_sub(1), end);
        count(0, end.saturating_sub(1)) + last.saturating_sub(beyond)
    }
}

/// Calls `each` with all that is free in one of two cuts only, and whether in the newer one.
pub(crate) fn differences(
    old: Option<&Free>,
    new: Option<&Free>,
    mut each: impl FnMut(Span<Sectors>, bool),
) {
    let words = |free: Option<&Free>| free.map_or(0, |f| f.0 .0.len());
    let word = |free: Option<&Free>, n: usize| {
        let word = free.and_then(|f| f.0 .0.get(n));
        word.map_or(0, |w| w.load(Ordering::Acquire))
    };
    // The run so far: chunks, and whether they are free in the newer one.
    let mut run = (Span::<Chunks>::EMPTY, false);
    let mut add = |first: u64, len: u64, is_new: bool| {
        let (span, kind) = run;
        run = match Span::new(span.start(), first.saturating_add(len)) {
            Some(longer) if span.end() == first && kind == is_new => (longer, is_new),
            _ => {
                each(span.sectors(CHUNK_SHIFT, u64::MAX), kind);
                (Span::of_len(first, len).unwrap_or(Span::EMPTY), is_new)
            }
        };
    };
    for n in 0..words(old).max(words(new)) {
        let (before, now) = (word(old, n), word(new, n));
        let first = (n as u64).saturating_mul(64);
        match before ^ now {
            0 => (),
            u64::MAX if now == 0 || before == 0 => add(first, 64, now != 0),
            differ => {
                for bit in (0..64).filter(|bit| differ >> bit & 1 == 1) {
                    add(first + bit, 1, now >> bit & 1 == 1);
                }
            }
        }
    }
    // What is left; the bit after the last is of nobody.
    add(u64::MAX, 0, false);
}

/// Records writes to an origin, and what is free.
pub(crate) struct Recorder {
    /// The session that asked for it.
    owner: u64,
    /// Sectors of the origin.
    sectors: u64,
    /// Chunks written to.
    written: Arc<Map>,
    /// Chunks free in the map, and not written to.
    free: Arc<Free>,
    /// Where the cut is for an increment.
    increment: Option<Increment>,
}

/// What is not needed for an increment.
struct Increment {
    /// Chunks that are free, or of which no block has changed.
    all: Arc<Free>,
    /// The snapshot after which what changes is needed.
    since: u64,
    /// Chunks in a block of the change map, as a shift; 0 where that is not larger than a chunk.
    shift: u32,
}

impl Increment {
    /// Blocks that these chunks touch have changed.
    fn changed(&self, free: &Free, chunks: Span<Chunks>) {
        let block = 1u64 << self.shift;
        let bits = self.all.0 .0.len().saturating_mul(64);
        let from = (chunks.start() & !(block - 1)) as usize;
        let to = chunks.end().next_multiple_of(block).min(bits as u64) as usize;
        // (What is free reads as zeros all the same.)
        let mut at = from;
        while let Some(used) = bits::first_clear(&free.0 .0, at, to) {
            let end = bits::first_set(&free.0 .0, used, to).unwrap_or(to);
            bits::clear_range(&self.all.0 .0, used, end);
            // What has become free in between is spared all the same, if it has not been written since.
            fence(Ordering::SeqCst);
            let mut bit = used;
            while let Some(now) = bits::first_set(&free.0 .0, bit, end) {
                bits::set_range(&self.all.0 .0, now, now + 1);
                fence(Ordering::SeqCst);
                if !bits::test(&free.0 .0, now) {
                    bits::clear_range(&self.all.0 .0, now, now + 1);
                }
                bit = now + 1;
            }
            at = end;
        }
    }
}

impl Recorder {
    /// For an origin of `sectors` sectors. ENOMEM. May sleep.
    pub(crate) fn new(owner: u64, sectors: u64) -> Result<Self> {
        Ok(Self {
            owner,
            sectors,
            written: Arc::new(Map::new(sectors)?, GFP_KERNEL)?,
            free: Arc::new(Free(Map::new(sectors)?), GFP_KERNEL)?,
            increment: None,
        })
    }

    /// A second one that goes on with this one's maps. Any context.
    pub(crate) fn shared(&self) -> Self {
        Self {
            owner: self.owner,
            sectors: self.sectors,
            written: self.written.clone(),
            free: self.free.clone(),
            increment: None,
        }
    }

    /// The same, for a cut that keeps what changed after `since`; `block` is sectors in a block of the
    /// change map, as a shift. What has not changed is told with [`Recorder::set_unchanged`], and then
    /// [`Recorder::spare_free`], once no hook uses another one any more. ENOMEM. May sleep.
    pub(crate) fn for_increment(self, since: u64, block: u32) -> Result<Self> {
        let increment = Increment {
            all: Arc::new(Free(Map::new(self.sectors)?), GFP_KERNEL)?,
            since,
            shift: block.saturating_sub(CHUNK_SHIFT),
        };
        Ok(Self {
            increment: Some(increment),
            ..self
        })
    }

    /// The session that asked for it.
    pub(crate) fn owner(&self) -> u64 {
        self.owner
    }

    /// What need not be kept. It changes no more once the recorder is gone.
    pub(crate) fn spared(&self) -> Spared {
        let increment = self.increment.as_ref();
        Spared {
            free: self.free.clone(),
            all: increment.map_or(&self.free, |i| &i.all).clone(),
            since: increment.map(|i| i.since),
        }
    }

    /// Takes note of a write, before it is let through. Any context.
    #[inline]
    pub(crate) fn written(&self, span: Span<Sectors>) {
        let chunks = span.outward::<Chunks>(CHUNK_SHIFT);
        let (from, to) = bits_of(chunks);
        bits::set_range(&self.written.0, from, to);
        // Either `set_free` sees this, or we see what it did.
        fence(Ordering::SeqCst);
        bits::clear_range(&self.free.0 .0, from, to);
        if let Some(increment) = &self.increment {
            increment.changed(&self.free, chunks);
        }
    }

    /// Takes note that blocks have been marked as changed, but for a write: where they are not free they
    /// are needed. Any context.
    pub(crate) fn marked(&self, span: Span<Sectors>) {
        if let Some(increment) = &self.increment {
            increment.changed(&self.free, span.outward::<Chunks>(CHUNK_SHIFT));
        }
    }

    /// Takes note of blocks that have not changed, by the change map. Sectors up to the end of the
    /// device, or of a block; only after all hooks use this recorder.
    pub(crate) fn set_unchanged(&self, span: Span<Sectors>) {
        let Some(increment) = &self.increment else {
            return;
        };
        let chunks = span.inward::<Chunks>(CHUNK_SHIFT, self.sectors);
        let (mut from, to) = bits_of(chunks);
        bits::set_range(&increment.all.0 .0, from, to);
        fence(Ordering::SeqCst);
        while let Some(bit) = bits::first_set(&self.written.0, from, to) {
            let chunk = Span::of_len(bit as u64, 1).unwrap_or(Span::EMPTY);
            increment.changed(&self.free, chunk);
            from = bit + 1;
        }
    }

    /// Takes over what was free before it was known that the cut is for an increment. Only after all
    /// hooks use this recorder.
    pub(crate) fn spare_free(&self) {
        let Some(increment) = &self.increment else {
            return;
        };
        let words = increment.all.0 .0.iter().zip(self.free.0 .0.iter());
        for (all, free) in words {
            all.fetch_or(free.load(Ordering::Acquire), Ordering::AcqRel);
        }
        fence(Ordering::SeqCst);
        // (Not all of a block of which some has been written: that is `set_unchanged`'s.)
        for (all, written) in increment.all.0 .0.iter().zip(self.written.0.iter()) {
            let written = written.load(Ordering::Acquire);
            if written != 0 {
                all.fetch_and(!written, Ordering::AcqRel);
            }
        }
    }

    /// Takes note of what the map says to be free.
    pub(crate) fn set_free(&self, span: Span<Sectors>) {
        let chunks = span.inward::<Chunks>(CHUNK_SHIFT, self.sectors);
        let (mut from, to) = bits_of(chunks);
        bits::set_range(&self.free.0 .0, from, to);
        if let Some(increment) = &self.increment {
            bits::set_range(&increment.all.0 .0, from, to);
        }
        fence(Ordering::SeqCst);
        while let Some(bit) = bits::first_set(&self.written.0, from, to) {
            bits::clear_range(&self.free.0 .0, bit, bit + 1);
            if let Some(increment) = &self.increment {
                bits::clear_range(&increment.all.0 .0, bit, bit + 1);
            }
            from = bit + 1;
        }
    }
}
