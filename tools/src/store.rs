//! Snapstores: what `--store` says, and what its portions are made of.

mod file;

use crate::abi;
use crate::blockdev::dev_num;
use crate::blockdev::Sysfs;
use crate::device::Control;
use crate::device::DevNum;
use crate::device::Portion;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::size::human;
use crate::size::parse_size;
pub use file::StoreFile;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

/// The smallest portion that makes sense, bytes.
pub const MIN_SIZE: u64 = 1 << 20;

/// How to write it.
const HINT: &str =
    "--store file:PATH[,size=1G], mem:SIZE or dev:PATH[,offset=..,size=..]; repeat it for several";

/// A portion of a store as the user describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSpec {
    /// `file:PATH[,size=SIZE]`
    File {
        /// A directory, or a file that does not exist yet.
        path: PathBuf,
        /// Bytes; `None`: 10 % of the origins.
        size: Option<u64>,
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

impl std::str::FromStr for StoreSpec {
    type Err = Error;

    /// Options that don't exist yet are [`Kind::Unsupported`], nonsense is [`Kind::Usage`].
    fn from_str(text: &str) -> Result<Self> {
        let usage = |why: String| {
            Error::usage(format!("store '{text}': {why}"))
                .code("store-spec")
                .hint(HINT)
        };
        let later = |what: &str| {
            Error::unsupported(format!("store '{text}': {what} is not supported yet"))
                .code("store-spec")
                .hint(HINT)
        };
        let (kind, rest) = text
            .split_once(':')
            .ok_or_else(|| usage("it has no kind".into()))?;
        let mut parts = rest.split(',');
        let first = parts.next().unwrap_or_default();
        let (mut size, mut limit, mut offset) = (None, None, None);
        for part in parts {
            match (kind, part.split_once('=')) {
                ("file" | "dev", Some(("size", value))) => size = Some(parse_size(value)?),
                ("dev", Some(("offset", value))) => offset = Some(parse_size(value)?),
                ("file", Some(("limit", value))) => limit = Some(parse_size(value)?),
                ("file", Some(("portion" | "on-full", _))) => {
                    return Err(later(&format!("'{part}'")))
                }
                _ => return Err(usage(format!("'{part}' is no option"))),
            }
        }
        if size.is_some() && limit.is_some_and(|l| Some(l) != size) {
            return Err(later("a limit beside a size (a store that grows)"));
        }
        let size = size.or(limit);
        let path = || match first {
            "" => Err(usage("it has no path".into())),
            path => Ok(PathBuf::from(path)),
        };
        let spec = match kind {
            "file" => StoreSpec::File {
                path: path()?,
                size,
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
/// fails.
pub fn make(sysfs: &Sysfs, specs: &[StoreSpec], origins: u64) -> Result<Vec<Material>> {
    let unsized_files = |s: &&StoreSpec| matches!(s, StoreSpec::File { size: None, .. });
    let share = origins / (specs.iter().filter(unsized_files).count() as u64).max(1);
    let one = |spec: &StoreSpec| match spec {
        StoreSpec::File { path, size } => file::make(path, *size, share).map(Material::File),
        StoreSpec::Memory { size } => Ok(Material::Memory { length: *size }),
        StoreSpec::Device { path, offset, size } => {
            let device = sysfs.resolve(path)?;
            must_be_blank(path)?;
            Ok(Material::Device {
                path: path.clone(),
                num: device.num,
                offset: *offset,
                length: size.unwrap_or(0),
            })
        }
    };
    specs.iter().map(one).collect()
}

/// Makes ready a store in a sensible place: see [`file::make_default`].
pub fn make_default(own: &[PathBuf], origins: u64) -> Result<Vec<Material>> {
    Ok(vec![Material::File(file::make_default(own, origins)?)])
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
        (Some(2), _) | (Some(0), None) => Ok(()),
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

/// A store that the kernel has.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Its handle.
    pub handle: u64,
    /// Bytes.
    pub capacity: u64,
}

/// Gives all portions to the kernel, whose references are the only ones that remain.
pub fn hand_over(control: &Control, mut materials: Vec<Material>) -> Result<Held> {
    let mut held = Held {
        handle: 0,
        capacity: 0,
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
        let added = control.store_add(held.handle, abi::GRANULE_DEFAULT, &portion);
        let added = added.map_err(|e| e.on(material.place()))?;
        held = Held {
            handle: added.store,
            capacity: added.capacity,
        };
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
        };
        assert_eq!(parsed("file:/x/y,size=1G"), file("/x/y", Some(1 << 30)));
        assert_eq!(parsed("file:/x"), file("/x", None));
        assert_eq!(parsed("file:/x,limit=2M"), file("/x", Some(2 << 20)));
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
            ("file:/x,size=1G,portion=256M", 6),
            ("file:/x,size=1G,limit=10G", 6),
            ("file:/x,on-full=fail", 6),
        ] {
            let error = text.parse::<StoreSpec>().unwrap_err();
            assert_eq!(error.kind.exit_code(), exit, "{text}: {}", error.message);
        }
    }
}
