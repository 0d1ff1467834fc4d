//! What changed between two snapshots.

use crate::abi::MAP_DISCARDED;
use crate::device::Control;
use crate::device::DevNum;
use crate::device::MapHead;
use crate::device::MapQuery;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::state::Origin;
use crate::state::Snapshot;
use crate::state::Version;
use rustix::io::Errno;
use serde::Serialize;
use uuid::Uuid;

/// Values read at a time.
const CHUNK: usize = 1 << 18;

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Bytes.
    pub offset: u64,
    /// Bytes, not 0.
    pub length: u64,
}

/// A range of bytes that last changed before the same snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Bytes.
    pub offset: u64,
    /// Bytes, not 0.
    pub length: u64,
    /// The snapshot before which it last changed; 0: not since tracking began.
    pub number: u64,
}

/// Appends a range to a sorted list, joined with the last one where they touch.
pub fn push(extents: &mut Vec<Extent>, offset: u64, length: u64) {
    match extents.last_mut() {
        Some(last) if offset <= last.offset + last.length => {
            last.length = last.length.max(offset + length - last.offset);
        }
        _ => extents.push(Extent { offset, length }),
    }
}

/// Widens sorted extents outwards to multiples of `unit`, joined again and cut at `size`.
pub fn widen(extents: &[Extent], unit: u64, size: u64) -> Vec<Extent> {
    let mut wide = Vec::with_capacity(extents.len());
    for extent in extents {
        let start = extent.offset / unit * unit;
        let end = (extent.offset + extent.length)
            .next_multiple_of(unit)
            .min(size);
        if end > start {
            push(&mut wide, start, end - start);
        }
    }
    wide
}

/// Narrows sorted extents inwards to multiples of `unit`; the end of a device of `size` bytes
/// counts as one.
pub fn narrow(extents: &[Extent], unit: u64, size: u64) -> Vec<Extent> {
    let mut narrow = Vec::with_capacity(extents.len());
    for extent in extents {
        let start = extent.offset.next_multiple_of(unit);
        let end = match extent.offset + extent.length {
            end if end >= size => size,
            end => end / unit * unit,
        };
        if end > start {
            push(&mut narrow, start, end - start);
        }
    }
    narrow
}

/// What is in either of two sorted lists.
pub fn union(a: &[Extent], b: &[Extent]) -> Vec<Extent> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut union = Vec::new();
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x.offset <= y.offset => a.next(),
            (_, Some(_)) => b.next(),
            (Some(_), None) => a.next(),
            (None, None) => return union,
        };
        if let Some(next) = next {
            push(&mut union, next.offset, next.length);
        }
    }
}

/// What is in the sorted list `from` and not in the sorted list `what`.
pub fn without(from: &[Extent], what: &[Extent]) -> Vec<Extent> {
    let mut rest = Vec::new();
    let mut what = what.iter().peekable();
    for extent in from {
        let (mut at, end) = (extent.offset, extent.offset + extent.length);
        while at < end {
            match what.peek() {
                Some(hole) if hole.offset + hole.length <= at => {
                    what.next();
                }
                Some(hole) if hole.offset < end => {
                    if hole.offset > at {
                        push(&mut rest, at, hole.offset - at);
                    }
                    at = hole.offset + hole.length;
                }
                _ => {
                    push(&mut rest, at, end - at);
                    at = end;
                }
            }
        }
    }
    rest
}

/// The sum of the lengths, bytes.
pub fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|e| e.length).sum()
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// An origin or an image.
    pub device: DevNum,
    /// The generation that `since` belongs to; `None`: the present one.
    pub generation: Option<Uuid>,
    /// The snapshot to compare with.
    pub since: u64,
    /// Of an origin: as it is now, if its newest snapshot is gone.
    pub live: bool,
}

/// Reads the whole map, calling `each` with the number of the first block and the values.
/// `name` is for messages. Generation, age or reset that can't be answered: [`Kind::Tracking`].
pub fn read_map(
    control: &Control,
    query: Query,
    name: &str,
    each: impl FnMut(&MapHead, u64, &[u32]),
) -> Result<MapHead> {
    read_values(control, query, false, name, each)
}

/// The same; with `discards`, values have [`MAP_DISCARDED`] set where it applies.
fn read_values(
    control: &Control,
    query: Query,
    discards: bool,
    name: &str,
    mut each: impl FnMut(&MapHead, u64, &[u32]),
) -> Result<MapHead> {
    let mut map_query = MapQuery {
        device: query.device,
        generation: query.generation,
        since: query.since,
        first_block: 0,
        live: query.live,
        discards,
    };
    let read = |map_query, values: &mut [u32]| {
        control
            .map_read(map_query, values)
            .map_err(|(error, head)| {
                if error.errno == Errno::STALE {
                    stale(name, &query, &head)
                } else {
                    error.on(name)
                }
            })
    };
    let head = read(map_query, &mut [])?;
    // What follows must be of the same life of the map.
    map_query.generation = Some(head.generation);
    let blocks = match head.block_size {
        0 => 0,
        block => head.device_size.div_ceil(u64::from(block)),
    };
    let mut values = vec![0; CHUNK.min(usize::try_from(blocks).unwrap_or(CHUNK))];
    while map_query.first_block < blocks {
        let part = read(map_query, &mut values)?;
        if part.number != head.number {
            return Err(Error::busy(format!(
                "changes: {name}: snapshot {} was taken while the map as of {} was being read",
                part.number, head.number
            ))
            .hint("ask again"));
        }
        let count = usize::try_from(part.count).unwrap_or(0).min(values.len());
        if count == 0 {
            return Err(Error::failed(format!(
                "changes: {name}: the map ends early"
            )));
        }
        each(&head, map_query.first_block, &values[..count]);
        map_query.first_block += count as u64;
    }
    Ok(head)
}

/// Why the map has no answer.
fn stale(name: &str, query: &Query, head: &MapHead) -> Error {
    let (code, why) = match query.generation {
        Some(generation) if generation != head.generation => (
            "other-generation",
            format!("tracking began anew (generation {})", head.generation),
        ),
        _ if query.since > head.number => (
            "since-future",
            format!(
                "snapshot {} is newer than the map ({})",
                query.since, head.number
            ),
        ),
        _ if query.since < head.oldest => (
            "too-old",
            format!(
                "snapshot {} is too old (oldest: {})",
                query.since, head.oldest
            ),
        ),
        _ => ("tracking", "it was reset".to_owned()),
    };
    Error::new(
        Kind::Tracking,
        format!("changes: {name}: change tracking can't answer: {why}"),
    )
    .code(code)
    .hint("take a full backup")
}

/// The bytes of a block, clamped to the device's end.
fn block_range(head: &MapHead, block: u64) -> (u64, u64) {
    let size = u64::from(head.block_size);
    let offset = block * size;
    (offset, size.min(head.device_size.saturating_sub(offset)))
}

/// The extents that differ from snapshot `query.since`: sorted, joined, cut at the device's end.
pub fn extents(control: &Control, query: Query, name: &str) -> Result<(MapHead, Vec<Extent>)> {
    let mut extents = Vec::new();
    let head = read_map(control, query, name, |head, first, values| {
        collect(&mut extents, head, first, values, query.since);
    })?;
    Ok((head, extents))
}

/// Appends what of `values` is above `since`.
fn collect(extents: &mut Vec<Extent>, head: &MapHead, first: u64, values: &[u32], since: u64) {
    for (block, value) in (first..).zip(values) {
        if u64::from(*value) > since {
            let (offset, length) = block_range(head, block);
            push(extents, offset, length);
        }
    }
}

/// What changed, by how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Written.
    pub written: Vec<Extent>,
    /// Discarded as a whole and not written since: nobody wants what they hold.
    pub discarded: Vec<Extent>,
}

impl Changes {
    /// All of it: sorted and joined.
    pub fn all(&self) -> Vec<Extent> {
        union(&self.written, &self.discarded)
    }
}

/// As [`extents`], with blocks apart that changed last by a discard. Both lists are sorted, joined
/// and cut at the device's end. Where the module doesn't know of discards all is written.
pub fn by_kind(control: &Control, query: Query, name: &str) -> Result<(MapHead, Changes)> {
    let known = control.knows_discards().map_err(|e| e.on(name))?;
    let mut changes = Changes::default();
    let head = read_values(control, query, known, name, |head, first, values| {
        collect_by_kind(&mut changes, head, first, values, query.since);
    })?;
    Ok((head, changes))
}

/// Appends what of `values` is above `since`, [`MAP_DISCARDED`] being no part of the number.
fn collect_by_kind(changes: &mut Changes, head: &MapHead, first: u64, values: &[u32], since: u64) {
    for (block, value) in (first..).zip(values) {
        if u64::from(value & !MAP_DISCARDED) > since {
            let (offset, length) = block_range(head, block);
            let list = match value & MAP_DISCARDED {
                0 => &mut changes.written,
                _ => &mut changes.discarded,
            };
            push(list, offset, length);
        }
    }
}

/// The whole map as runs of equal numbers.
pub fn runs(control: &Control, query: Query, name: &str) -> Result<(MapHead, Vec<Run>)> {
    let mut runs: Vec<Run> = Vec::new();
    let head = read_map(control, query, name, |head, first, values| {
        for (block, value) in (first..).zip(values) {
            let (offset, length) = block_range(head, block);
            let number = u64::from(*value);
            match runs.last_mut() {
                Some(last) if last.number == number => last.length += length,
                _ => runs.push(Run {
                    offset,
                    length,
                    number,
                }),
            }
        }
    })?;
    Ok((head, runs))
}

/// One bit a block, the first block in the lowest bit of the first byte: 1 where it differs.
pub fn bitmap(control: &Control, query: Query, name: &str) -> Result<(MapHead, Vec<u8>)> {
    let mut bits = Vec::new();
    let head = read_map(control, query, name, |_, first, values| {
        for (block, value) in (first..).zip(values) {
            if block % 8 == 0 {
                bits.push(0);
            }
            if let Some(byte) = bits.last_mut().filter(|_| u64::from(*value) > query.since) {
                *byte |= 1 << (block % 8);
            }
        }
    })?;
    Ok((head, bits))
}

/// Which device to ask for the map of `device` as of its newest snapshot, and of which generation (`None`:
/// any): that one's image, if it lives and can tell what changed after `since`, so that all that is read
/// is of one cut; else the device itself.
pub fn as_of_newest(
    snapshots: &[Snapshot],
    origins: &[Origin],
    device: DevNum,
    generation: Option<Uuid>,
    since: u64,
) -> (DevNum, Option<Uuid>) {
    let origin = origins.iter().find(|o| o.num == device);
    let origin = origin.filter(|o| generation.is_none_or(|g| g == o.generation));
    let mut versions = snapshots.iter().flat_map(|s| &s.devices);
    let newest = origin.and_then(|o| {
        let is_newest = |v: &&Version| {
            v.origin == device && (v.number, v.generation) == (o.number, o.generation)
        };
        versions.find(is_newest)
    });
    match newest.filter(|v| v.since.is_none_or(|s| s <= since)) {
        Some(version) => (version.image_num, Some(version.generation)),
        None => (device, generation),
    }
}

/// Which device to ask for the map of `device` (`path` for people) as of snapshot number `until`, and of which
/// generation (`None`: any): the device itself, or the image of that number (and of that generation, if
/// given).
pub fn as_of(
    snapshots: &[Snapshot],
    device: DevNum,
    path: &str,
    generation: Option<Uuid>,
    until: u64,
) -> Result<(DevNum, Option<Uuid>)> {
    let mut versions = snapshots.iter().flat_map(|s| &s.devices);
    if let Some(image) = versions.clone().find(|v| v.image_num == device) {
        if image.number == until {
            return Ok((device, generation));
        }
        return Err(Error::usage(format!(
            "{path} is the image of snapshot {}, not {until}",
            image.number
        ))
        .hint("leave out --until, or name the origin"));
    }
    // Generations may share a number: the newest one is meant.
    let found = versions.rfind(|v| {
        v.origin == device && v.number == until && generation.is_none_or(|g| g == v.generation)
    });
    found
        .map(|v| (v.image_num, Some(v.generation)))
        .ok_or_else(|| {
            Error::not_found(format!("{path} has no living snapshot with number {until}"))
                .code("no-snapshot")
                .hint("see `bdsnap snapshot list`; the map as of a deleted snapshot is gone")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { offset, length }
    }

    #[test]
    fn joined_and_clamped() {
        let head = MapHead {
            generation: Uuid::nil(),
            number: 5,
            oldest: 0,
            device_size: 4 * 4096 + 512,
            block_size: 4096,
            count: 0,
        };
        let mut found = Vec::new();
        collect(&mut found, &head, 0, &[4, 5, 3], 3);
        collect(&mut found, &head, 3, &[4, 6], 3);
        assert_eq!(found, [extent(0, 8192), extent(3 * 4096, 4096 + 512)]);
        assert_eq!(total(&found), 8192 + 4096 + 512);
    }

    #[test]
    fn kinds_apart() {
        let head = MapHead {
            generation: Uuid::nil(),
            number: 5,
            oldest: 0,
            device_size: 5 * 4096 + 512,
            block_size: 4096,
            count: 0,
        };
        let mut found = Changes::default();
        let values = [
            4,
            5 | MAP_DISCARDED,
            3 | MAP_DISCARDED,
            5,
            5 | MAP_DISCARDED,
        ];
        collect_by_kind(&mut found, &head, 0, &values, 3);
        collect_by_kind(&mut found, &head, 5, &[6 | MAP_DISCARDED], 3);
        assert_eq!(found.written, [extent(0, 4096), extent(3 * 4096, 4096)]);
        let last = extent(4 * 4096, 4096 + 512);
        assert_eq!(found.discarded, [extent(4096, 4096), last]);
        let all = [extent(0, 8192), extent(3 * 4096, 2 * 4096 + 512)];
        assert_eq!(found.all(), all);
    }

    #[test]
    fn narrowed() {
        let unit = 65536;
        let inside = narrow(&[extent(4096, 2 * unit)], unit, 1 << 20);
        assert_eq!(inside, [extent(unit, unit)]);
        assert_eq!(narrow(&[extent(4096, 8192)], unit, 1 << 20), []);
        assert_eq!(narrow(&[extent(0, 4096)], unit, 1 << 20), []);
        // A short last unit.
        let size = unit + 512;
        assert_eq!(
            narrow(&[extent(4096, size - 4096)], unit, size),
            [extent(unit, 512)]
        );
        assert_eq!(narrow(&[extent(unit + 4, 508)], unit, size), []);
    }

    /// Against lists of booleans, for all pairs of some bit patterns.
    #[test]
    fn sets() {
        let list = |bits: u32| {
            let mut list = Vec::new();
            for at in (0..8).filter(|at| (bits >> at) & 1 == 1) {
                push(&mut list, at, 1);
            }
            list
        };
        for a in 0..256 {
            for b in 0..256 {
                assert_eq!(union(&list(a), &list(b)), list(a | b), "{a:b} {b:b}");
                assert_eq!(without(&list(a), &list(b)), list(a & !b), "{a:b} {b:b}");
            }
        }
    }

    #[test]
    fn widened() {
        let wide = widen(&[extent(4096, 4096), extent(65536, 512)], 65536, 1 << 20);
        assert_eq!(wide, [extent(0, 131072)]);
        let wide = widen(&[extent(100_000, 512)], 65536, 100_864);
        assert_eq!(wide, [extent(65536, 100_864 - 65536)]);
        assert_eq!(widen(&[], 65536, 1), []);
    }
}
