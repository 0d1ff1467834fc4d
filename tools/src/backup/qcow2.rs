//! Writing one qcow2 file, and reading a chain of them: the `imago` crate in the form needed here.

use crate::error::Error;
use crate::error::Result;
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::DenyImplicitOpenGate;
use imago::FormatAccess;
use imago::FormatCreateBuilder;
use imago::FormatDriverBuilder;
use imago::Mapping;
use imago::StorageOpenOptions;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use rustix::process::Resource;
use rustix::process::Rlimit;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

/// Bytes of a cluster, the unit of a qcow2 file.
pub const CLUSTER: u64 = 65536;

/// A qcow2 file being written. Its backing file is named in it but not read: whoever writes a
/// part of a cluster must write all of it.
pub struct Writer {
    image: FormatAccess<Storage>,
    file: File,
    path: PathBuf,
    size: u64,
}

impl Writer {
    /// Makes a new file of `size` virtual bytes; `backing` is the name of a qcow2 file in the same
    /// directory.
    pub fn create(path: &Path, size: u64, backing: Option<&str>) -> Result<Self> {
        let fail = |e| Error::io(format!("can't make {}", path.display()), e);
        // (A disk's secrets are in it: only for its owner.)
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = file.map_err(fail)?;
        let handle = file.try_clone().map_err(fail)?;
        let options = StorageOpenOptions::new().filename(path).write(true);
        let storage = Storage::from_open_file(handle, options).map_err(fail)?;
        let mut builder = Qcow2::<Storage>::create_builder(storage)
            .size(size)
            .cluster_size(CLUSTER as usize);
        if let Some(name) = backing {
            builder = builder.backing(name.to_owned(), "qcow2".to_owned());
        }
        let image = builder
            .create_open(DenyImplicitOpenGate::default(), |storage| {
                Ok(Qcow2::builder(storage).backing(None).write(true))
            })
            .map_err(fail)?;
        Ok(Writer {
            image: FormatAccess::new(image),
            file,
            path: path.to_owned(),
            size,
        })
    }

    fn error(&self, e: std::io::Error) -> Error {
        Error::io(format!("can't write {}", self.path.display()), e)
    }

    /// Whether a range begins and ends at clusters or the end of the image.
    fn is_whole(&self, offset: u64, length: u64) -> bool {
        let end = offset + length;
        offset % CLUSTER == 0 && (end % CLUSTER == 0 || end == self.size)
    }

    /// Writes `bytes` at `offset`, which are whole clusters but for the image's last one.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        debug_assert!(self.is_whole(offset, bytes.len() as u64));
        self.image.write(bytes, offset).map_err(|e| self.error(e))
    }

    /// Makes a range read as zeros, whatever the backing file has there. Whole clusters but for
    /// the image's last one; they take no space.
    pub fn zero(&self, offset: u64, length: u64) -> Result<()> {
        debug_assert!(self.is_whole(offset, length));
        self.image
            .write_zeroes(offset, length)
            .map_err(|e| self.error(e))
    }

    /// Completes the file and makes it durable.
    pub fn finish(self) -> Result<()> {
        self.image.flush().map_err(|e| self.error(e))?;
        self.image.sync().map_err(|e| self.error(e))?;
        self.file.sync_all().map_err(|e| self.error(e))
    }
}

/// A chain of qcow2 files, read as one image.
pub struct Reader {
    image: FormatAccess<Storage>,
    path: PathBuf,
}

impl Reader {
    /// Opens `files`, the full one first. Only these are opened, whatever is named in them; and all at
    /// a time, for which the limit of open files is raised as far as this process may.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let limit = getrlimit(Resource::Nofile);
        // (Without it a long chain gives an error of its own.)
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                ..limit
            },
        );
        let mut below: Option<FormatAccess<Storage>> = None;
        for path in files {
            let fail = |e| Error::io(format!("can't read {}", path.display()), e);
            let file = File::open(path).map_err(fail)?;
            let options = StorageOpenOptions::new().filename(path);
            let storage = Storage::from_open_file(file, options).map_err(fail)?;
            let image = Qcow2::<Storage>::builder(storage)
                .backing(below.take())
                .open(DenyImplicitOpenGate::default())
                .map_err(fail)?;
            below = Some(FormatAccess::new(image));
        }
        let path = files.last().cloned().unwrap_or_default();
        match below {
            Some(image) => Ok(Reader { image, path }),
            None => Err(Error::failed("a chain without files")),
        }
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    fn error(&self, e: std::io::Error) -> Error {
        Error::io(format!("can't read {}", self.path.display()), e)
    }

    /// How many bytes from `offset` on (1 to `length`) are of one kind, and whether these are
    /// known to be zero.
    pub fn look(&self, offset: u64, length: u64) -> Result<(u64, bool)> {
        let (mapping, found) = self
            .image
            .get_mapping(offset, length)
            .map_err(|e| self.error(e))?;
        if found == 0 {
            let end = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(self.error(end));
        }
        Ok((found, matches!(mapping, Mapping::Zero { .. })))
    }

    /// Reads `bytes` from `offset`.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.image.read(bytes, offset).map_err(|e| self.error(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than a process may have open by default, and each knows one cluster.
    #[test]
    fn a_long_chain() {
        const POINTS: u64 = 1100;
        let dir = tempfile::tempdir().unwrap();
        let name = |n: u64| format!("{n}.qcow2");
        let files: Vec<PathBuf> = (0..POINTS).map(|n| dir.path().join(name(n))).collect();
        for (n, path) in (0..POINTS).zip(&files) {
            let backing = n.checked_sub(1).map(name);
            let writer = Writer::create(path, POINTS * CLUSTER, backing.as_deref()).unwrap();
            let cluster = vec![n as u8; CLUSTER as usize];
            writer.write(n * CLUSTER, &cluster).unwrap();
            writer.image.flush().unwrap();
        }
        let reader = Reader::open(&files).unwrap();
        let mut bytes = vec![0; CLUSTER as usize];
        for n in (0..POINTS).step_by(37) {
            let (length, zero) = reader.look(n * CLUSTER, CLUSTER).unwrap();
            assert_eq!((length, zero), (CLUSTER, false));
            reader.read(&mut bytes, n * CLUSTER).unwrap();
            assert!(bytes.iter().all(|b| *b == n as u8), "{n}");
        }
    }
}
