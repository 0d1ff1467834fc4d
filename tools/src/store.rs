//! Snapstores: what `--store` says, and what its portions are made of.

mod file;
mod generic;

use crate::abi;
use crate::blockdev::dev_num;
use crate::blockdev::BlockDevice;
use crate::blockdev::Sysfs;
use crate::device::CallError;
use crate::device::Control;
use crate::device::DevNum;
use crate::device::Portion;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::freeze;
use crate::mounts::Mount;
use crate::signals::Signals;
use crate::size::human;
use crate::size::parse_size;
pub use file::available;
pub use file::StoreFile;
use serde::Deserialize;
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use uuid::Uuid;

/// The smallest portion that makes sense, bytes.
pub const MIN_SIZE: u64 = 1 << 20;

/// How to write it.
const HINT: &str =
    "--store file:PATH[,size=1G][,limit=10G][,portion=256M][,on-full=fail|hold=SECONDS], mem:SIZE or \
     dev:PATH[,offset=..,size=..]; repeat it for several";

/// What a store that grows asks for at a time at least, where nothing is said, bytes.
const DEFAULT_PORTION: u64 = 256 << 20;

/// A portion of a store as the user describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSpec {
    /// `file:PATH[,size=SIZE][,limit=SIZE][,portion=SIZE][,on-full=fail|hold=SECONDS]`
    File {
        /// A directory, or a file that does not exist yet.
        path: PathBuf,
        /// Bytes; `None`: 10 % of the origins, and no more than it may grow to.
        size: Option<u64>,
        /// If it is to grow from its size.
        grow: Option<Grow>,
        /// How long writes wait for a portion when it is full, seconds.
        hold: u32,
    },
    /// `mem:SIZE`
    Memory {
        /// Bytes.
        size: u64,
    },
    /// `dev:PATH[,offset=BYTES][,size=SIZE]`
    Device {
        /// A block device.
        path: PathBuf,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes; `None`: to its end.
        size: Option<u64>,
    },
}

/// How a file store grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grow {
    /// Up to so many bytes.
    pub limit: u64,
    /// By so many bytes at a time, at least; `None`: a default.
    pub portion: Option<u64>,
}

/// `fail` or `hold=SECONDS`: seconds.
fn parse_on_full(text: &str) -> Option<u32> {
    let most = abi::HOLD_MAX_MS / 1000;
    match text.split_once('=') {
        None => (text == "fail").then_some(0),
        Some(("hold", seconds)) => seconds.parse().ok().filter(|s| (1..=most).contains(s)),
        Some(_) => None,
    }
}

impl std::str::FromStr for StoreSpec {
    type Err = Error;

    /// Nonsense is [`Kind::Usage`].
    fn from_str(text: &str) -> Result<Self> {
        let usage = |why: String| {
            Error::usage(format!("store '{text}': {why}"))
                .code("store-spec")
                .hint(HINT)
        };
        let (kind, rest) = text
            .split_once(':')
            .ok_or_else(|| usage("it has no kind".into()))?;
        let mut parts = rest.split(',');
        let first = parts.next().unwrap_or_default();
        let (mut size, mut limit, mut offset, mut portion, mut hold) = (None, None, None, None, 0);
        for part in parts {
            match (kind, part.split_once('=')) {
                ("file" | "dev", Some(("size", value))) => size = Some(parse_size(value)?),
                ("dev", Some(("offset", value))) => offset = Some(parse_size(value)?),
                ("file", Some(("limit", value))) => limit = Some(parse_size(value)?),
                ("file", Some(("portion", value))) => portion = Some(parse_size(value)?),
                ("file", Some(("on-full", value))) => match parse_on_full(value) {
                    Some(seconds) => hold = seconds,
                    None => {
                        return Err(usage(format!(
                            "on-full is 'fail' or 'hold=SECONDS', up to {} s",
                            abi::HOLD_MAX_MS / 1000
                        )))
                    }
                },
                _ => return Err(usage(format!("'{part}' is no option"))),
            }
        }
        let grow = match (size, limit) {
            (Some(size), Some(limit)) if limit < size => {
                return Err(usage("the limit is below the size".into()))
            }
            (Some(size), Some(limit)) if limit > size => Some(Grow { limit, portion }),
            (None, Some(limit)) => Some(Grow { limit, portion }),
            _ if portion.is_some() => {
                return Err(usage("a portion needs a limit above the size".into()))
            }
            _ => None,
        };
        if portion.is_some_and(|p| p < MIN_SIZE) {
            return Err(usage(format!("a portion has {} at least", human(MIN_SIZE))));
        }
        let path = || match first {
            "" => Err(usage("it has no path".into())),
            path => Ok(PathBuf::from(path)),
        };
        let spec = match kind {
            "file" => StoreSpec::File {
                path: path()?,
                size,
                grow,
                hold,
            },
            "mem" if first.is_empty() => return Err(usage("it has no size".into())),
            "mem" => StoreSpec::Memory {
                size: parse_size(first)?,
            },
            "dev" => StoreSpec::Device {
                path: path()?,
                offset: offset.unwrap_or(0),
                size,
            },
            _ => return Err(usage(format!("no kind '{kind}'"))),
        };
        let granule = u64::from(abi::GRANULE_DEFAULT);
        match spec {
            StoreSpec::File {
                size: Some(size), ..
            }
            | StoreSpec::File {
                grow: Some(Grow { limit: size, .. }),
                ..
            }
            | StoreSpec::Device {
                size: Some(size), ..
            }
            | StoreSpec::Memory { size }
                if size < MIN_SIZE =>
            {
                Err(
                    Error::usage(format!("a store of {} is too small", human(size)))
                        .code("store-small")
                        .hint("at least 1M; a tenth of the device is a good start"),
                )
            }
            StoreSpec::Device { offset, size, .. }
                if (offset | size.unwrap_or(0)) % granule != 0 =>
            {
                Err(usage("offset and size must be multiples of 4K".into()))
            }
            spec => Ok(spec),
        }
    }
}

/// What a portion is made of, about to be handed to the kernel.
#[derive(Debug)]
pub enum Material {
    /// A file.
    File(StoreFile),
    /// A range of a device.
    Device {
        /// Its path.
        path: PathBuf,
        /// Its number.
        num: DevNum,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes; 0: to its end.
        length: u64,
    },
    /// Memory.
    Memory {
        /// Bytes.
        length: u64,
    },
}

impl Material {
    /// What a person calls it.
    pub fn place(&self) -> String {
        match self {
            Material::File(file) => file.place.display().to_string(),
            Material::Device { path, .. } => path.display().to_string(),
            Material::Memory { length } => format!("{} of memory", human(*length)),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Material::File(file) => file.size,
            Material::Device { length, .. } | Material::Memory { length } => *length,
        }
    }

    /// The device that it is on; `None`: memory.
    pub fn device(&self) -> Result<Option<DevNum>> {
        match self {
            Material::File(file) => {
                let meta = file.file.metadata();
                let meta = meta.map_err(|e| Error::io(format!("store: {}", self.place()), e))?;
                Ok(Some(dev_num(meta.dev())))
            }
            Material::Device { num, .. } => Ok(Some(*num)),
            Material::Memory { .. } => Ok(None),
        }
    }
}

/// Makes ready what `specs` describe, for `origins` bytes of origins. Nothing is left behind when it
/// fails, or when a signal ends it, as it may where a file has to be written from end to end.
pub fn make(
    sysfs: &Sysfs,
    mounts: &[Mount],
    specs: &[StoreSpec],
    origins: u64,
    signals: &Signals,
) -> Result<Vec<Material>> {
    // Before anything is written.
    for spec in specs {
        if let StoreSpec::File {
            path,
            grow: Some(_),
            ..
        } = spec
        {
            file::check_growth(path)?;
        }
    }
    let unsized_files = |s: &&StoreSpec| matches!(s, StoreSpec::File { size: None, .. });
    let share = origins / (specs.iter().filter(unsized_files).count() as u64).max(1);
    let one = |spec: &StoreSpec| match spec {
        StoreSpec::File {
            path, size, grow, ..
        } => {
            let most = grow.map_or(u64::MAX, |g| g.limit);
            file::make(path, *size, share, most, signals).map(Material::File)
        }
        StoreSpec::Memory { size } => Ok(Material::Memory { length: *size }),
        StoreSpec::Device { path, offset, size } => {
            let device = sysfs.resolve(path)?;
            must_be_free(sysfs, mounts, &device)?;
            must_be_blank(path)?;
            // (To its end, or the last whole granule before that.)
            let unit = u64::from(abi::GRANULE_DEFAULT);
            let rest = || Some(sysfs.size(device.num)?.saturating_sub(*offset) / unit * unit);
            Ok(Material::Device {
                path: path.clone(),
                num: device.num,
                offset: *offset,
                length: size.or_else(rest).unwrap_or(0),
            })
        }
    };
    specs.iter().map(one).collect()
}

/// What becomes of a store when it runs low.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The most that it may have, bytes; 0: it stays as it is.
    pub limit: u64,
    /// What it asks for at a time at least, bytes.
    pub portion: u64,
    /// How long writes wait for a portion when it is full, milliseconds.
    pub hold_ms: u32,
    /// For who serves it: a [`Note`] as JSON.
    pub note: Vec<u8>,
}

/// What the kernel keeps with a snapshot for who serves its store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Where portions may be made.
    pub places: Vec<Place>,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its path.
    pub dir: PathBuf,
    /// The device number of its file system, so that another one that is mounted there since isn't
    /// taken for it.
    pub dev: u64,
}

/// What is to become of the store that `materials` are, made ready for `specs`, when it runs low: its
/// limit is the sum of theirs.
pub fn policy(specs: &[StoreSpec], materials: &[Material]) -> Result<Policy> {
    let mut policy = Policy::default();
    let mut note = Note { places: Vec::new() };
    let (mut size, mut more) = (0u64, 0u64);
    for (spec, material) in specs.iter().zip(materials) {
        size = size.saturating_add(material.size());
        let StoreSpec::File {
            path, grow, hold, ..
        } = spec
        else {
            continue;
        };
        policy.hold_ms = policy.hold_ms.max(hold * 1000);
        let Some(grow) = grow else { continue };
        more = more.saturating_add(grow.limit.saturating_sub(material.size()));
        policy.portion = policy.portion.max(grow.portion.unwrap_or(DEFAULT_PORTION));
        let dir = file::directory(path);
        let failed = |e| Error::io(format!("store: {}", dir.display()), e);
        let dir = dir.canonicalize().map_err(failed)?;
        let dev = dir.metadata().map_err(failed)?.dev();
        note.places.push(Place { dir, dev });
    }
    if more > 0 {
        policy.limit = size.saturating_add(more);
        policy.note = serde_json::to_vec(&note).map_err(|e| {
            Error::usage(format!("store: its path can't be noted: {e}")).code("store-spec")
        })?;
        if policy.note.len() > abi::MAX_NOTE as usize {
            return Err(Error::usage("store: its places have too long paths").code("store-spec"));
        }
    }
    Ok(policy)
}

/// Makes a portion of `size` bytes in `dir`, and gives it to the store of a snapshot. Returns the file,
/// and what the store has then, bytes.
pub fn grow(
    control: &Control,
    snapshot: Uuid,
    dir: &Path,
    size: u64,
) -> Result<(StoreFile, std::result::Result<u64, CallError>)> {
    let file = file::make_unsynced(dir, size)?;
    let added = control.store_grow(snapshot, &Portion::File(file.file.as_fd()));
    Ok((file, added.map(|a| a.capacity)))
}

/// Makes ready a store in a sensible place: see [`file::make_default`].
pub fn make_default(own: &[PathBuf], origins: u64) -> Result<Vec<Material>> {
    Ok(vec![Material::File(file::make_default(own, origins)?)])
}

/// Refuses a device that is a loop device's.
fn must_be_free(sysfs: &Sysfs, mounts: &[Mount], device: &BlockDevice) -> Result<()> {
    match freeze::loop_on(sysfs, mounts, device.num) {
        None => Ok(()),
        Some(user) => Err(
            Error::busy(format!("store: {} is used by {user}", device.path()))
                .code("store-busy")
                .hint("name a device that nobody uses"),
        ),
    }
}

/// Refuses a device on which there is something that blkid knows: it would be lost.
fn must_be_blank(path: &Path) -> Result<()> {
    let shown = path.display();
    let failed = |why: String| {
        Error::failed(format!(
            "store: can't tell whether {shown} is in use: {why}"
        ))
        .hint("blkid of util-linux is needed")
    };
    let readable = || -> std::io::Result<()> {
        let mut device = File::open(path)?;
        let mut first = [0; 64 << 10];
        let n = device.read(&mut first)?;
        device.seek(SeekFrom::End(-(n as i64)))?;
        device.read_exact(&mut first[..n])
    };
    // (blkid says "nothing" of what it can't read.)
    readable().map_err(|e| failed(e.to_string()))?;
    let output = Command::new("blkid")
        .args(["--probe", "--output", "export"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(format!("blkid: {e}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let kind = text
        .lines()
        .find_map(|l| l.strip_prefix("TYPE=").or(l.strip_prefix("PTTYPE=")));
    match (output.status.code(), kind) {
        // Nothing is found, or only that it is a partition.
        (Some(2), _) if output.stderr.is_empty() => Ok(()),
        (Some(0), None) => Ok(()),
        (Some(0 | 8), kind) => Err(Error::new(
            Kind::Busy,
            format!(
                "store: {shown} holds {}, which would be lost",
                kind.unwrap_or("several things at once")
            ),
        )
        .code("store-not-blank")
        .hint(format!("if nobody needs it: wipefs --all {shown}"))),
        _ => Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

/// A store that the kernel has; it is given back with this, unless a snapshot took it.
#[derive(Debug)]
pub struct Held<'a> {
    /// Its handle.
    pub handle: u64,
    /// Bytes.
    pub capacity: u64,
    control: &'a Control,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // A snapshot has it, or it was never made.
        let _ = self.control.store_drop(self.handle);
    }
}

/// Gives all portions to the kernel, whose references are the only ones that remain. `run`: bytes that are
/// copied together.
pub fn hand_over(control: &Control, mut materials: Vec<Material>, run: u32) -> Result<Held<'_>> {
    let mut held = Held {
        handle: 0,
        capacity: 0,
        control,
    };
    for material in &mut materials {
        if let Material::File(file) = material {
            file.unname()?;
        }
        let portion = match &*material {
            Material::File(file) => Portion::File(file.file.as_fd()),
            Material::Device {
                num,
                offset,
                length,
                ..
            } => Portion::Device {
                num: *num,
                offset: *offset,
                length: *length,
            },
            Material::Memory { length } => Portion::Memory { length: *length },
        };
        let added = control.store_add(held.handle, abi::GRANULE_DEFAULT, run, &portion);
        let added = added.map_err(|e| e.on(material.place()))?;
        (held.handle, held.capacity) = (added.store, added.capacity);
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> StoreSpec {
        text.parse().unwrap()
    }

    #[test]
    fn specs() {
        let file = |path: &str, size| StoreSpec::File {
            path: path.into(),
            size,
            grow: None,
            hold: 0,
        };
        assert_eq!(parsed("file:/x/y,size=1G"), file("/x/y", Some(1 << 30)));
        assert_eq!(parsed("file:/x"), file("/x", None));
        let from_default = |portion| StoreSpec::File {
            path: "/x".into(),
            size: None,
            grow: Some(Grow {
                limit: 2 << 20,
                portion,
            }),
            hold: 0,
        };
        assert_eq!(parsed("file:/x,limit=2M"), from_default(None));
        assert_eq!(
            parsed("file:/x,portion=1M,limit=2M"),
            from_default(Some(1 << 20))
        );
        assert_eq!(
            parsed("file:/x,limit=2M,size=2M"),
            file("/x", Some(2 << 20))
        );
        let grows = StoreSpec::File {
            path: "/x".into(),
            size: Some(64 << 20),
            grow: Some(Grow {
                limit: 8 << 30,
                portion: Some(1 << 20),
            }),
            hold: 30,
        };
        assert_eq!(
            parsed("file:/x,size=64M,limit=8G,portion=1M,on-full=hold=30"),
            grows
        );
        assert_eq!(parsed("file:/x,on-full=fail"), file("/x", None));
        assert_eq!(parsed("mem:64M"), StoreSpec::Memory { size: 64 << 20 });
        let device = |offset, size| StoreSpec::Device {
            path: "/dev/vdc".into(),
            offset,
            size,
        };
        assert_eq!(parsed("dev:/dev/vdc"), device(0, None));
        assert_eq!(
            parsed("dev:/dev/vdc,offset=1M,size=2M"),
            device(1 << 20, Some(2 << 20))
        );
        for (text, exit) in [
            ("", 2),
            ("/x", 2),
            ("file:", 2),
            ("dev:", 2),
            ("mem:", 2),
            ("tape:/x", 2),
            ("file:/x,siez=1G", 2),
            ("file:/x,size=1X", 2),
            ("file:/x,size=4K", 2),
            ("file:/x,offset=1M", 2),
            ("mem:4K", 2),
            ("mem:1X", 2),
            ("mem:1G,size=1G", 2),
            ("dev:/dev/vdc,limit=1G", 2),
            ("dev:/dev/vdc,offset=512", 2),
            ("dev:/dev/vdc,size=1049000", 2),
            ("file:/x,size=1G,portion=256M", 2),
            ("file:/x,portion=256M", 2),
            ("file:/x,limit=4K", 2),
            ("file:/x,size=1G,limit=512M", 2),
            ("file:/x,size=1G,limit=2G,portion=4K", 2),
            ("file:/x,on-full=hold", 2),
            ("file:/x,on-full=hold=0", 2),
            ("file:/x,on-full=hold=601", 2),
            ("file:/x,on-full=panic", 2),
            ("mem:1G,on-full=fail", 2),
        ] {
            let error = text.parse::<StoreSpec>().unwrap_err();
            assert_eq!(error.kind.exit_code(), exit, "{text}: {}", error.message);
        }
    }
}
