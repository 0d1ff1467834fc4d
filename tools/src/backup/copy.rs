//! The backup of one device: which kind of point it gets, and the copy.

use super::buffer::zero_runs;
use super::buffer::Aligned;
use super::chain::Chain;
use super::chain::Point;
use super::chain::PointKind;
use super::qcow2::Writer;
use super::qcow2::CLUSTER;
use super::source::Source;
use super::Progress;
use crate::changes;
use crate::changes::Changes;
use crate::changes::Extent;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::signals::Signals;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::mpsc::sync_channel;
use std::time::Instant;
use uuid::Uuid;

/// Bytes read at a time: a multiple of [`CLUSTER`].
const CHUNK: u64 = 2 << 20;
/// Bytes that are made zero at a time, between looks at signals: a multiple of [`CLUSTER`].
const HOLE: u64 = 4 << 30;
/// Buffers that are filled while one is written.
const BUFFERS: usize = 3;

/// What the backup of one device did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The device's path.
    pub device: String,
    /// The new file.
    #[serde(serialize_with = "crate::paths::one")]
    pub file: PathBuf,
    /// Its number in the chain, for `restore --point`.
    pub point: u64,
    /// Full or incremental.
    pub kind: PointKind,
    /// Why it is of this kind.
    pub reason: String,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes that were read from the image.
    pub bytes_read: u64,
    /// Bytes of the new file.
    pub bytes_written: u64,
    /// Bytes that changed since the base; all of them in a full point.
    pub changed_bytes: u64,
    /// Of these, bytes that were discarded and are stored as zeros without being read.
    pub discarded_bytes: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Number of the cut.
    pub number: u64,
    /// The snapshot had only what changed after this one; `None`: all.
    pub since: Option<u64>,
    /// Bytes copied to its store, all in all.
    pub bytes_copied: u64,
    /// Generation of the change map.
    pub generation: Uuid,
}

/// A point that was decided on.
struct Plan {
    base: Option<Point>,
    changes: Changes,
    reason: String,
}

impl Plan {
    /// Which clusters are read, and which get zeros unread: those that are discarded as a whole.
    fn clusters(&self, size: u64) -> (Vec<Extent>, Vec<Extent>) {
        let holes = changes::narrow(&self.changes.discarded, CLUSTER, size);
        let all = changes::widen(&self.changes.all(), CLUSTER, size);
        (changes::without(&all, &holes), holes)
    }
}

/// Removes an unfinished file, unless it became a point.
struct Partial(Option<PathBuf>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Backs up `source` as the next point of `chain`: incrementally where the last point is a valid
/// base, else (or with `full`) fully. Where it fails the chain is as it was.
pub fn back_up(
    source: &dyn Source,
    chain: &mut Chain,
    full: bool,
    progress: &dyn Progress,
    signals: &Signals,
) -> Result<Summary> {
    let start = Instant::now();
    let info = source.info();
    let plan = plan(source, chain, full)?;
    let changed_bytes = changes::total(&plan.changes.all());
    let (extents, holes) = plan.clusters(info.size);
    let bytes_read = changes::total(&extents);
    let path = chain.partial();
    let mut partial = Partial(Some(path.clone()));
    let backing = plan.base.as_ref().map(|p| p.file.as_str());
    let writer = Writer::create(&path, info.size, backing)?;
    source.release(&changes::without(&whole(info.size), &extents));
    progress.begin(&info.device, bytes_read);
    let copied = dig(&holes, &writer, signals).and_then(|()| {
        copy(
            source,
            &extents,
            &writer,
            backing.is_some(),
            progress,
            signals,
        )
    });
    progress.end();
    if let Err(error) = copied {
        // An image that failed meanwhile gives I/O errors: its own cause says more.
        source.check()?;
        return Err(error);
    }
    writer.finish()?;
    source.check()?;
    signals.check()?;
    let point = chain.commit(Point {
        point: 0,
        file: String::new(),
        kind: match plan.base {
            Some(_) => PointKind::Incremental,
            None => PointKind::Full,
        },
        base: plan.base.map(|p| p.point),
        snapshot: info.snapshot,
        created: info.created.clone(),
        size: info.size,
        generation: info.generation,
        number: info.number,
        block_size: info.block_size,
        changed_bytes,
        file_size: 0,
    })?;
    partial.0 = None;
    Ok(Summary {
        device: info.device.clone(),
        file: path.with_file_name(&point.file),
        point: point.point,
        kind: point.kind,
        reason: plan.reason,
        size: info.size,
        bytes_read,
        bytes_written: point.file_size,
        changed_bytes,
        discarded_bytes: changes::total(&holes),
        seconds: (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        number: info.number,
        since: info.since,
        bytes_copied: source.copied(),
        generation: info.generation,
    })
}

/// Decides what the next point holds.
fn plan(source: &dyn Source, chain: &Chain, full: bool) -> Result<Plan> {
    let info = source.info();
    let everything = |reason: String| {
        if let Some(since) = info.since {
            // It was to be an increment, when the snapshot was taken.
            return Err(Error::new(Kind::Tracking, format!(
                "{}: the snapshot has only what changed after {since}, and a full backup is due: {reason}",
                info.device
            ))
            .code("increment")
            .hint("run the backup again"));
        }
        Ok(Plan {
            base: None,
            changes: Changes {
                written: whole(info.size),
                discarded: Vec::new(),
            },
            reason,
        })
    };
    if full {
        return everything("--full was given".into());
    }
    let Some(base) = chain.points().last() else {
        return everything("no backup yet".into());
    };
    if let Err(error) = chain.files(base.point) {
        return everything(error.message);
    }
    if base.size != info.size {
        return everything(format!(
            "the size changed from {} to {}",
            base.size, info.size
        ));
    }
    if base.generation != info.generation {
        return everything("tracking began anew since the last backup (other generation)".into());
    }
    if base.number >= info.number {
        return everything(format!(
            "the last backup's snapshot {} is not older than {}",
            base.number, info.number
        ));
    }
    match source.changes(base.generation, base.number) {
        Ok(changes) => Ok(Plan {
            reason: format!("what changed since point {}", base.point),
            base: Some(base.clone()),
            changes,
        }),
        Err(error) if error.kind == Kind::Tracking => everything(error.message),
        Err(error) => Err(error),
    }
}

/// All of a device of `size` bytes.
fn whole(size: u64) -> Vec<Extent> {
    let all = Extent {
        offset: 0,
        length: size,
    };
    (size > 0).then_some(all).into_iter().collect()
}

/// The snapshot that the next point of `chain` is to build on, if it has one and its files are there.
pub fn base(chain: &Chain) -> Option<&Point> {
    let last = chain.points().last()?;
    chain.files(last.point).is_ok().then_some(last)
}

/// Splits extents (at clusters already) into pieces of at most `most` bytes.
fn pieces(extents: &[Extent], most: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    extents.iter().flat_map(move |extent| {
        let end = extent.offset + extent.length;
        let starts = (extent.offset..end).step_by(most as usize);
        starts.map(move |offset| (offset, most.min(end - offset)))
    })
}

/// Makes zero clusters of `holes`.
fn dig(holes: &[Extent], writer: &Writer, signals: &Signals) -> Result<()> {
    for (offset, length) in pieces(holes, HOLE) {
        writer.zero(offset, length)?;
        signals.check()?;
    }
    Ok(())
}

/// Copies `extents`; one thread reads ahead while this one writes. Zeros become zero clusters
/// where there is a backing file to hide, and nothing at all where there is none.
fn copy(
    source: &dyn Source,
    extents: &[Extent],
    writer: &Writer,
    backing: bool,
    progress: &dyn Progress,
    signals: &Signals,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (filled, to_write) = sync_channel(BUFFERS);
        let (empty, to_fill) = channel();
        for _ in 0..BUFFERS {
            let _ = empty.send(Aligned::new(CHUNK as usize));
        }
        scope.spawn(move || {
            for (offset, length) in pieces(extents, CHUNK) {
                let length = length as usize;
                // An error here: the writer gave up.
                let Ok(mut buffer) = to_fill.recv() else {
                    return;
                };
                let result = source.read(&mut buffer, length, offset);
                let failed = result.is_err();
                let item = result.map(|()| (offset, length, buffer));
                if filled.send(item).is_err() || failed {
                    return;
                }
            }
        });
        for item in to_write {
            let device = &source.info().device;
            let (offset, length, buffer) =
                item.map_err(|e| Error::io(format!("can't read the image of {device}"), e))?;
            zero_runs(
                buffer.get(length),
                CLUSTER as usize,
                |start, bytes, zero| {
                    let at = offset + start as u64;
                    match (zero, backing) {
                        (false, _) => writer.write(at, bytes),
                        (true, true) => writer.zero(at, bytes.len() as u64),
                        (true, false) => Ok(()),
                    }
                },
            )?;
            source.release(&[Extent {
                offset,
                length: length as u64,
            }]);
            progress.advance(length as u64);
            signals.check()?;
            // An error here: the reader has read all it wants.
            let _ = empty.send(buffer);
        }
        Ok(())
    })
}
