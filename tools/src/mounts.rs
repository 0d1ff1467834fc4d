//! Mounted file systems, from /proc/self/mountinfo (proc(5)).

use crate::blockdev::dev_num;
use crate::blockdev::Sysfs;
use crate::device::DevNum;
use crate::error::Error;
use crate::error::Result;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id.
    pub id: u64,
    /// Device number of the super block; major 0 for those that have no device of their own
    /// (btrfs and tmpfs among them).
    pub super_block: DevNum,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// "ext4", "xfs" ...
    pub fs_type: String,
    /// What was mounted: "/dev/vdb1" ...
    pub source: PathBuf,
    /// The file system itself is read-only (not only this mount of it).
    pub read_only: bool,
}

impl Mount {
    /// The block device it is on: the super block's, or the source where that one is anonymous (the first
    /// of several). `None` where there is none.
    pub fn device(&self) -> Option<DevNum> {
        if self.super_block.major != 0 {
            return Some(self.super_block);
        }
        self.sources().first().copied()
    }

    /// All block devices it is on: several with btrfs, which names one of them and tells of the others
    /// in sysfs, and bcachefs, which names all.
    pub fn devices(&self, sysfs: &Sysfs) -> Vec<DevNum> {
        if self.super_block.major != 0 {
            return vec![self.super_block];
        }
        let mut devices = self.sources();
        if self.fs_type == "btrfs" {
            let others = devices.iter().flat_map(|d| sysfs.btrfs_devices(*d));
            let others: Vec<DevNum> = others.filter(|d| !devices.contains(d)).collect();
            devices.extend(others);
        }
        devices
    }

    /// The devices that were named to mount it.
    fn sources(&self) -> Vec<DevNum> {
        let number = |path: &[u8]| {
            let meta = fs::metadata(OsStr::from_bytes(path)).ok()?;
            let is_block = meta.file_type().is_block_device();
            is_block.then(|| dev_num(meta.rdev()))
        };
        let source = self.source.as_os_str().as_bytes();
        // (A node's name may have a colon, too.)
        match number(source) {
            _ if !source.starts_with(b"/dev/") => Vec::new(),
            Some(one) => vec![one],
            None => source.split(|b| *b == b':').filter_map(number).collect(),
        }
    }
}

/// The mounts that this process sees (those of other mount namespaces alone are not among them).
pub fn read() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(|e| Error::io(format!("can't read {path}"), e))?;
    Ok(parse(&text))
}

/// Parses mountinfo; lines that make no sense are left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    // id parent major:minor root mount-point options [optional ...] - type source super-options
    let separator = 6 + fields.get(6..)?.iter().position(|f| *f == b"-")?;
    let (major, minor) = std::str::from_utf8(fields[2]).ok()?.split_once(':')?;
    let super_options = fields.get(separator + 3)?;
    Some(Mount {
        id: number(fields[0])?,
        super_block: DevNum {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        },
        mount_point: path(fields[4]),
        fs_type: String::from_utf8_lossy(fields.get(separator + 1)?).into_owned(),
        source: path(fields.get(separator + 2)?),
        read_only: super_options.split(|&b| b == b',').any(|o| o == b"ro"),
    })
}

/// Undoes the kernel's octal escapes (`\040`).
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escape = tail
            .get(..3)
            .filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(digits) = escape {
            let value = digits.iter().fold(0u32, |v, d| v * 8 + u32::from(d - b'0'));
            bytes.push(value as u8);
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TEXT: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
23 22 0:5 / /proc rw - proc proc rw
40 22 8:17 /sub /mnt/with\\040space ro,nosuid master:3 propagate_from:2 - xfs /dev/sdb1 rw,attr2
41 22 8:18 / /cd ro - iso9660 /dev/sdb2 ro
nonsense
42 22 8:19 / /short rw
";

    #[test]
    fn mountinfo() {
        let mounts = parse(TEXT.as_bytes());
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[0].fs_type, "ext4");
        assert_eq!(mounts[0].super_block, DevNum { major: 8, minor: 1 });
        assert!(!mounts[0].read_only, "errors=remount-ro is not ro");
        assert_eq!(mounts[1].device(), None);
        assert_eq!(mounts[2].mount_point, PathBuf::from("/mnt/with space"));
        assert!(
            !mounts[2].read_only,
            "a read-only mount of a writable file system"
        );
        assert_eq!(mounts[2].id, 40);
        assert!(mounts[3].read_only);
    }

    #[test]
    fn this_machine() {
        assert!(read()
            .unwrap()
            .iter()
            .any(|m| m.mount_point == Path::new("/proc")));
    }
}
