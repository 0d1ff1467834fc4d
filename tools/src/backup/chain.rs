//! The directory of one device's backups and its manifest.

use crate::error::Error;
use crate::error::Result;
use rustix::fs::FlockOperation;
use serde::Deserialize;
use serde::Serialize;
use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io::ErrorKind;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use uuid::Uuid;

/// The name of the manifest.
const MANIFEST: &str = "manifest.json";
/// What is appended to the names of unfinished files.
const PARTIAL: &str = ".partial";
/// What to do where it does not fit the points.
const HINT: &str = "put the right manifest back, or move this directory away and begin anew";
/// The form of the manifest that is written here.
const FORMAT: u32 = 1;

/// Whether a point holds everything or what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PointKind {
    /// All of the device.
    Full,
    /// What changed since its base.
    Incremental,
}

/// One backup of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its number in the chain, from 1.
    pub point: u64,
    /// The qcow2 file, beside the manifest.
    pub file: String,
    /// Full or incremental.
    pub kind: PointKind,
    /// The point that it builds on.
    pub base: Option<u64>,
    /// The snapshot that it was read from; points of several devices with the same one belong
    /// together.
    pub snapshot: Uuid,
    /// When that was cut, RFC 3339.
    pub created: String,
    /// Bytes of the device.
    pub size: u64,
    /// Generation of the change map.
    pub generation: Uuid,
    /// Number of the cut.
    pub number: u64,
    /// Bytes of a CBT block.
    pub block_size: u32,
    /// Bytes that changed since the base; all of them in a full point.
    pub changed_bytes: u64,
    /// Bytes of the file.
    pub file_size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    device: String,
    points: Vec<Point>,
}

/// The chain of one device.
#[derive(Debug)]
pub struct Chain {
    dir: PathBuf,
    device: String,
    points: Vec<Point>,
}

/// An exclusive lock of a backup directory, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directory where it is missing, and locks it. Locked already:
    /// [`crate::error::Kind::Busy`].
    pub fn take(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        make_dir(dir).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                Error::usage(format!("{shown} is not a directory"))
            }
            _ => Error::io(format!("can't make {shown}"), e),
        })?;
        let path = dir.join(".bdsnap.lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|e| Error::io(format!("can't open {}", path.display()), e))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            if e == rustix::io::Errno::WOULDBLOCK {
                return Error::busy(format!("another backup is at work in {shown}"));
            }
            Error::io(format!("can't lock {shown}"), e)
        })?;
        Ok(Lock { _file: file })
    }
}

impl Chain {
    /// Reads the chain in `dir`, changing nothing. No manifest:
    /// [`crate::error::Kind::NotFound`].
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = fs::read(&path)
            .map_err(|e| Error::io(format!("no backup: can't read {}", path.display()), e))?;
        let damaged = |why: String| {
            Error::failed(format!("{}: {why}", path.display()))
                .code("manifest")
                .hint(HINT)
        };
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|e| damaged(format!("this manifest makes no sense: {e}")))?;
        if manifest.format != FORMAT {
            return Err(damaged(format!(
                "its format {} is not known",
                manifest.format
            )));
        }
        let mut last = 0;
        for point in &manifest.points {
            let base_fits = match (point.kind, point.base) {
                (PointKind::Full, None) => true,
                (PointKind::Incremental, Some(base)) => base < point.point,
                _ => false,
            };
            if point.point <= last || !base_fits || !is_plain(&point.file) {
                return Err(damaged(format!("its point {} makes no sense", point.point)));
            }
            last = point.point;
        }
        Ok(Chain {
            dir: dir.to_owned(),
            device: manifest.device,
            points: manifest.points,
        })
    }

    /// The chain in `dir` as it would be for a new point of `device`; changes nothing. None there yet is
    /// an empty one. Points that the manifest does not know: code "manifest".
    pub fn peek(dir: &Path, device: &str) -> Result<Self> {
        Self::find(dir, device).map(|(chain, ..)| chain)
    }

    /// Opens the chain in `dir` for a new point of `device`: makes what is missing, removes what
    /// an interrupted run left. Errors as of [`Chain::peek`]: then all is left as it is. Only for the holder of
    /// the [`Lock`].
    pub fn open(dir: &Path, device: &str) -> Result<Self> {
        make_dir(dir).map_err(|e| Error::io(format!("can't make {}", dir.display()), e))?;
        let (chain, left, has_manifest) = Self::find(dir, device)?;
        left.iter()
            .try_for_each(fs::remove_file)
            .map_err(|e| Error::io(format!("can't clean up {}", dir.display()), e))?;
        if !has_manifest {
            // Before there is a point that it does not name.
            chain.save()?;
        }
        Ok(chain)
    }

    /// The chain in `dir`, what an interrupted run has left there, and whether there is a manifest.
    fn find(dir: &Path, device: &str) -> Result<(Self, Vec<PathBuf>, bool)> {
        let manifest = dir.join(MANIFEST);
        // (That it can't be looked at doesn't mean that it isn't there.)
        let is_there = manifest.try_exists();
        let is_there =
            is_there.map_err(|e| Error::io(format!("can't read {}", manifest.display()), e))?;
        let mut chain = if is_there {
            Chain::read(dir)?
        } else {
            Chain {
                dir: dir.to_owned(),
                device: String::new(),
                points: Vec::new(),
            }
        };
        device.clone_into(&mut chain.device);
        let left = chain.leftovers(is_there)?;
        Ok((chain, left, is_there))
    }

    /// Unfinished files, and the finished one that did not make it into the manifest: there can be one, of
    /// the next point, and only beside a manifest.
    fn leftovers(&self, has_manifest: bool) -> Result<Vec<PathBuf>> {
        let fail = |e| Error::io(format!("can't read {}", self.dir.display()), e);
        let mut left = Vec::new();
        let list = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(left),
            list => list.map_err(fail)?,
        };
        for entry in list {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                continue;
            };
            let whole = name.strip_suffix(PARTIAL).unwrap_or(name);
            let number = whole
                .strip_prefix("point-")
                .and_then(|n| n.strip_suffix(".qcow2"))
                .and_then(|n| n.parse::<u64>().ok());
            let is_ours = number.is_some() || whole == MANIFEST;
            if is_ours && whole != name {
                left.push(entry.path());
                continue;
            }
            match number {
                Some(number) if number == self.next() && has_manifest => left.push(entry.path()),
                Some(number) if number >= self.next() => {
                    let about = if has_manifest {
                        "which its manifest does not name"
                    } else {
                        "and no manifest"
                    };
                    return Err(Error::failed(format!(
                        "{} holds {name}, {about}",
                        self.dir.display()
                    ))
                    .code("manifest")
                    .hint(HINT));
                }
                _ => {}
            }
        }
        Ok(left)
    }

    /// The number of the next point.
    pub fn next(&self) -> u64 {
        self.points.last().map_or(1, |p| p.point + 1)
    }

    /// The points, oldest first.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The device that was backed up last.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The files that point number `point` needs, the full one first.
    pub fn files(&self, point: u64) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut wanted = Some(point);
        while let Some(number) = wanted {
            let Some(point) = self.points.iter().find(|p| p.point == number) else {
                return Err(Error::not_found(format!(
                    "{} has no point {number}",
                    self.dir.display()
                ))
                .code("no-point"));
            };
            let path = self.dir.join(&point.file);
            let length = fs::metadata(&path).map(|meta| meta.len());
            if length.as_ref().ok() != Some(&point.file_size) {
                let what = match length {
                    Ok(length) => format!("has {length} bytes instead of {}", point.file_size),
                    Err(e) => e.to_string(),
                };
                return Err(
                    Error::failed(format!("point {number}: {}: {what}", path.display()))
                        .code("chain-broken")
                        .hint("restore another point; the next backup will be a full one"),
                );
            }
            files.push(path);
            wanted = point.base;
        }
        files.reverse();
        Ok(files)
    }

    /// Where the next point is written until it is finished.
    pub fn partial(&self) -> PathBuf {
        self.dir.join(file_name(self.next()) + PARTIAL)
    }

    /// Makes the finished, synced file at [`Chain::partial`] the next point, described by `point`
    /// (its number, name and file size are filled in here). Afterwards it is on disk for good.
    pub fn commit(&mut self, mut point: Point) -> Result<Point> {
        let partial = self.partial();
        point.point = self.next();
        point.file = file_name(point.point);
        let fail = |e| Error::io(format!("can't finish {}", partial.display()), e);
        point.file_size = fs::metadata(&partial).map_err(fail)?.len();
        fs::rename(&partial, self.dir.join(&point.file)).map_err(fail)?;
        sync_dir(&self.dir)?;
        self.points.push(point.clone());
        if let Err(e) = self.save() {
            self.points.pop();
            return Err(e);
        }
        Ok(point)
    }

    /// Writes the manifest, the old or the new one being there at any time.
    fn save(&self) -> Result<()> {
        let manifest = Manifest {
            format: FORMAT,
            device: self.device.clone(),
            points: self.points.clone(),
        };
        let path = self.dir.join(MANIFEST);
        let temporary = self.dir.join(format!("{MANIFEST}{PARTIAL}"));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            serde_json::to_writer_pretty(&mut file, &manifest)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|e| Error::io(format!("can't write {}", path.display()), e))?;
        sync_dir(&self.dir)
    }
}

/// Makes a directory and those above it, where they are missing. What is in it is a whole disk's, with all
/// of its secrets: only for its owner. Its name is durable then.
fn make_dir(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    File::open(dir.join(".."))?.sync_all()
}

/// The name of a point's file.
fn file_name(point: u64) -> String {
    format!("point-{point:04}.qcow2")
}

/// Whether a name is one of a file in the same directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> Result<()> {
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(|e: std::io::Error| Error::io(format!("can't sync {}", dir.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(kind: PointKind, base: Option<u64>) -> Point {
        Point {
            point: 0,
            file: String::new(),
            kind,
            base,
            snapshot: Uuid::nil(),
            created: String::new(),
            size: 512,
            generation: Uuid::nil(),
            number: 1,
            block_size: 65536,
            changed_bytes: 512,
            file_size: 0,
        }
    }

    #[test]
    fn commits_and_cleans() {
        let dir = tempfile::tempdir().unwrap();
        let mut chain = Chain::open(dir.path(), "/dev/x").unwrap();
        fs::write(chain.partial(), "full").unwrap();
        chain.commit(point(PointKind::Full, None)).unwrap();
        fs::write(chain.partial(), "more").unwrap();
        chain
            .commit(point(PointKind::Incremental, Some(1)))
            .unwrap();
        fs::write(chain.partial(), "unfinished").unwrap();
        fs::write(dir.path().join("point-0003.qcow2"), "not in the manifest").unwrap();
        fs::write(dir.path().join("notes"), "somebody's").unwrap();
        fs::write(dir.path().join("notes.partial"), "somebody's, too").unwrap();

        let chain = Chain::open(dir.path(), "/dev/x").unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let kept = [
            "manifest.json",
            "notes",
            "notes.partial",
            "point-0001.qcow2",
            "point-0002.qcow2",
        ];
        assert_eq!(names, kept);
        assert_eq!(chain.files(2).unwrap().len(), 2);
        assert_eq!(chain.files(3).unwrap_err().kind.exit_code(), 8);
        fs::write(dir.path().join("point-0001.qcow2"), "cut").unwrap();
        assert_eq!(chain.files(2).unwrap_err().code, "chain-broken");
    }

    #[test]
    fn points_without_their_manifest_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut chain = Chain::open(dir.path(), "/dev/x").unwrap();
        let manifest = dir.path().join(MANIFEST);
        for _ in 0..3 {
            let old = fs::read(&manifest).unwrap();
            fs::write(chain.partial(), "full").unwrap();
            chain.commit(point(PointKind::Full, None)).unwrap();
            fs::write(dir.path().join("old"), old).unwrap();
        }
        let names = || fs::read_dir(dir.path()).unwrap().count();
        let all = names();
        let refused = || Chain::open(dir.path(), "/dev/x").unwrap_err().code;
        let right = fs::read(&manifest).unwrap();
        fs::remove_file(&manifest).unwrap();
        assert_eq!(refused(), "manifest");
        // One that knows two, one that knows none.
        fs::rename(dir.path().join("old"), &manifest).unwrap();
        fs::write(dir.path().join("point-0004.qcow2"), "").unwrap();
        assert_eq!(refused(), "manifest");
        fs::write(&manifest, r#"{"format":1,"device":"/dev/x","points":[]}"#).unwrap();
        assert_eq!(refused(), "manifest");
        assert_eq!(names(), all);
        fs::write(&manifest, right).unwrap();
        assert_eq!(Chain::open(dir.path(), "/dev/x").unwrap().next(), 4);
        assert_eq!(names(), all - 1, "the fourth was never finished");
    }

    #[test]
    fn bad_manifests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Chain::read(dir.path()).unwrap_err().kind.exit_code(), 8);
        let mut evil = point(PointKind::Full, None);
        evil.point = 1;
        evil.file = "../../etc/passwd".into();
        let manifest = Manifest {
            format: FORMAT,
            device: "/dev/x".into(),
            points: vec![evil],
        };
        for text in ["{}", "", &serde_json::to_string(&manifest).unwrap()] {
            fs::write(dir.path().join(MANIFEST), text).unwrap();
            assert_eq!(
                Chain::read(dir.path()).unwrap_err().code,
                "manifest",
                "{text}"
            );
        }
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        assert_eq!(Lock::take(dir.path()).unwrap_err().kind.exit_code(), 3);
        drop(lock);
        Lock::take(dir.path()).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(Lock::take(&file).unwrap_err().kind.exit_code(), 2);
    }
}
