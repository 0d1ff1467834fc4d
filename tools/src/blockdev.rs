//! Block devices as sysfs shows them: names, sizes, and what is stacked on what.

use crate::device::DevNum;
use crate::error::Error;
use crate::error::Result;
use rustix::fs::major;
use rustix::fs::minor;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

/// Splits a `dev_t` as `stat` gives it.
pub fn dev_num(dev: u64) -> DevNum {
    DevNum {
        major: major(dev),
        minor: minor(dev),
    }
}

/// The path of a device, from its kernel name ("cciss!c0d0" is `/dev/cciss/c0d0`).
pub fn dev_path(name: &str) -> String {
    format!("/dev/{}", name.replace('!', "/"))
}

/// A block device that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its number.
    pub num: DevNum,
    /// Its kernel name, "vdb1".
    pub name: String,
    /// As the user named it.
    pub given: PathBuf,
}

impl BlockDevice {
    /// Its canonical path, `/dev/vdb1`.
    pub fn path(&self) -> String {
        dev_path(&self.name)
    }
}

/// A sysfs, `/sys` but for tests.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Sysfs::new("/sys")
    }
}

impl Sysfs {
    /// The sysfs mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Sysfs { root: root.into() }
    }

    /// Finds the device that `path` (a device node or a link to one) names. What does not exist
    /// is [`crate::error::Kind::NotFound`], what is no block device
    /// [`crate::error::Kind::Usage`].
    pub fn resolve(&self, path: &Path) -> Result<BlockDevice> {
        let shown = path.display();
        let meta = fs::metadata(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::not_found(format!("{shown}: no such device")).code("no-device")
            }
            _ => Error::io(&shown, e),
        })?;
        if !meta.file_type().is_block_device() {
            return Err(Error::usage(format!("{shown} is not a block device"))
                .code("not-a-block-device")
                .hint("name a block device, such as /dev/vdb1 (see lsblk)"));
        }
        let num = dev_num(meta.rdev());
        let name = self.name(num).ok_or_else(|| {
            Error::not_found(format!("{shown}: the kernel has no block device {num}"))
                .code("no-device")
        })?;
        Ok(BlockDevice {
            num,
            name,
            given: path.to_owned(),
        })
    }

    /// The device's directory: /sys/dev/block/MAJOR:MINOR, resolved.
    fn dir(&self, num: DevNum) -> Option<PathBuf> {
        fs::canonicalize(self.root.join(format!("dev/block/{num}"))).ok()
    }

    /// The kernel name of a device.
    pub fn name(&self, num: DevNum) -> Option<String> {
        Some(self.dir(num)?.file_name()?.to_str()?.to_owned())
    }

    /// Its size in bytes.
    pub fn size(&self, num: DevNum) -> Option<u64> {
        let sectors: u64 = read(&self.dir(num)?.join("size"))?.parse().ok()?;
        sectors.checked_mul(512)
    }

    /// The name that device-mapper users know it by ("vg-lv"); `None` for other devices.
    pub fn dm_name(&self, num: DevNum) -> Option<String> {
        read(&self.dir(num)?.join("dm/name"))
    }

    /// The whole disk that a partition is on; `None` for what is no partition.
    pub fn disk_of(&self, num: DevNum) -> Option<DevNum> {
        let dir = self.dir(num)?;
        if !dir.join("partition").exists() {
            return None;
        }
        number(dir.parent()?)
    }

    /// What is directly on a device: its partitions and its holders (dm, md, bcache ...).
    pub fn above(&self, num: DevNum) -> Vec<DevNum> {
        let Some(dir) = self.dir(num) else {
            return Vec::new();
        };
        let partitions = entries(&dir)
            .into_iter()
            .filter(|e| e.join("partition").exists());
        let holders = entries(&dir.join("holders"));
        let mut found: Vec<DevNum> = partitions
            .chain(holders)
            .filter_map(|e| number(&e))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// A request-based device-mapper device (multipath) that holds this device, its disk or one of
    /// its disk's partitions: what it writes does not come as bios.
    pub fn request_dm_above(&self, num: DevNum) -> Option<String> {
        let disk = self.disk_of(num).unwrap_or(num);
        let mut places = vec![disk];
        places.extend(self.above(disk));
        // Only devices with request queues of their own have the directory `mq`.
        let holders = places
            .into_iter()
            .filter_map(|num| self.dir(num))
            .flat_map(|dir| entries(&dir.join("holders")));
        holders
            .filter(|h| h.join("dm").exists() && h.join("mq").exists())
            .find_map(|h| Some(h.file_name()?.to_str()?.to_owned()))
    }

    /// How many bytes of a device it makes sense to copy together, at least: what is on a spinning disk is
    /// slow to reach, and what is smaller than a device's unit is read and written by it as a whole.
    ///
    /// A virtual machine's disk says nothing about what is below it (virtio calls itself rotational).
    /// The optimal I/O size does not matter: it is for streams, which stores are written in anyway.
    pub fn run_size(&self, num: DevNum) -> Option<u64> {
        /// A tenth of a millisecond of a spinning disk's time, against the ten that it takes to get there.
        const ROTATIONAL: u64 = 64 << 10;
        let disk = self.dir(self.disk_of(num).unwrap_or(num))?;
        let limit = |name: &str| read(&disk.join("queue").join(name))?.parse::<u64>().ok();
        let name = disk.file_name()?.to_str()?;
        let is_virtual = name.starts_with("vd") || name.starts_with("xvd");
        if !is_virtual && limit("rotational") == Some(1) {
            return Some(ROTATIONAL);
        }
        Some(limit("minimum_io_size")?.min(ROTATIONAL))
    }

    /// Where a partition begins on its disk, bytes; 0 for a disk.
    pub fn start(&self, num: DevNum) -> Option<u64> {
        match read(&self.dir(num)?.join("start")) {
            Some(sectors) => sectors.parse::<u64>().ok()?.checked_mul(512),
            None => Some(0),
        }
    }

    /// All devices of the btrfs that a device belongs to, itself included; empty where it belongs to none
    /// that is mounted.
    pub fn btrfs_devices(&self, num: DevNum) -> Vec<DevNum> {
        let devices = |fs: PathBuf| -> Vec<DevNum> {
            let all = entries(&fs.join("devices")).into_iter();
            all.filter_map(|e| number(&e)).collect()
        };
        let mut all = entries(&self.root.join("fs/btrfs"))
            .into_iter()
            .map(devices);
        all.find(|devices| devices.contains(&num))
            .unwrap_or_default()
    }

    /// Loop devices in use: each with the path of its file.
    pub fn loops(&self) -> Vec<(DevNum, PathBuf)> {
        entries(&self.root.join("block"))
            .into_iter()
            .filter_map(|dir| {
                let file = read(&dir.join("loop/backing_file"))?;
                Some((number(&dir)?, PathBuf::from(file)))
            })
            .collect()
    }
}

/// The content of an attribute, without its newline.
fn read(path: &Path) -> Option<String> {
    Some(
        fs::read_to_string(path)
            .ok()?
            .trim_end_matches('\n')
            .to_owned(),
    )
}

/// The `dev` attribute of a device's directory.
fn number(dir: &Path) -> Option<DevNum> {
    let dev = read(&dir.join("dev"))?;
    let (major, minor) = dev.split_once(':')?;
    Some(DevNum {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// The entries of a directory; none where it can't be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(list) = fs::read_dir(dir) else {
        return Vec::new();
    };
    list.flatten().map(|e| e.path()).collect()
}

/// A made-up sysfs for tests.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Makes disks 8:0 with partitions 8:1 and 8:2, and dm 253:0 on 8:2, under `root`.
    pub(crate) fn sysfs(root: &Path) -> Sysfs {
        let disk = root.join("devices/sda");
        let dm = root.join("devices/dm-0");
        for (dir, dev, size) in [
            (disk.clone(), "8:0", "2048"),
            (disk.join("sda1"), "8:1", "1000"),
            (disk.join("sda2"), "8:2", "1000"),
            (dm.clone(), "253:0", "900"),
        ] {
            fs::create_dir_all(dir.join("holders")).unwrap();
            fs::create_dir_all(dir.join("slaves")).unwrap();
            fs::write(dir.join("dev"), format!("{dev}\n")).unwrap();
            fs::write(dir.join("size"), format!("{size}\n")).unwrap();
            fs::create_dir_all(root.join("dev/block")).unwrap();
            symlink(&dir, root.join("dev/block").join(dev)).unwrap();
        }
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        fs::write(disk.join("sda2/partition"), "2\n").unwrap();
        fs::create_dir_all(dm.join("dm")).unwrap();
        fs::write(dm.join("dm/name"), "vg-root\n").unwrap();
        symlink(&dm, disk.join("sda2/holders/dm-0")).unwrap();
        symlink(disk.join("sda2"), dm.join("slaves/sda2")).unwrap();
        Sysfs::new(root)
    }

    pub(crate) const fn num(major: u32, minor: u32) -> DevNum {
        DevNum { major, minor }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::num;
    use super::*;

    #[test]
    fn stacks() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fake::sysfs(dir.path());
        assert_eq!(sysfs.name(num(8, 1)).unwrap(), "sda1");
        assert_eq!(sysfs.size(num(8, 0)), Some(1 << 20));
        assert_eq!(sysfs.disk_of(num(8, 2)), Some(num(8, 0)));
        assert_eq!(sysfs.disk_of(num(8, 0)), None);
        assert_eq!(sysfs.above(num(8, 0)), [num(8, 1), num(8, 2)]);
        assert_eq!(sysfs.above(num(8, 2)), [num(253, 0)]);
        assert_eq!(sysfs.dm_name(num(253, 0)).unwrap(), "vg-root");
        assert_eq!(sysfs.name(num(9, 9)), None);
    }

    #[test]
    fn btrfs_of_two() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fake::sysfs(dir.path());
        let devices = dir.path().join("fs/btrfs/0f5e/devices");
        fs::create_dir_all(&devices).unwrap();
        fs::create_dir_all(dir.path().join("fs/btrfs/features")).unwrap();
        let disk = dir.path().join("devices/sda");
        for (name, path) in [
            ("sda1", disk.join("sda1")),
            ("dm-0", dir.path().join("devices/dm-0")),
        ] {
            std::os::unix::fs::symlink(path, devices.join(name)).unwrap();
        }
        let mut both = sysfs.btrfs_devices(num(253, 0));
        both.sort();
        assert_eq!(both, [num(8, 1), num(253, 0)]);
        assert_eq!(sysfs.btrfs_devices(num(8, 0)), []);
    }

    #[test]
    fn request_based_dm() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fake::sysfs(dir.path());
        for path in [num(8, 0), num(8, 2)] {
            assert_eq!(sysfs.request_dm_above(path), None);
        }
        fs::create_dir(dir.path().join("devices/dm-0/mq")).unwrap();
        for path in [num(8, 0), num(8, 1), num(8, 2)] {
            assert_eq!(sysfs.request_dm_above(path).unwrap(), "dm-0");
        }
        assert_eq!(sysfs.request_dm_above(num(253, 0)), None);
    }

    #[test]
    fn wrong_arguments() {
        let sysfs = Sysfs::default();
        let error = sysfs.resolve(Path::new("/nonexistent/x")).unwrap_err();
        assert_eq!(error.kind.exit_code(), 8);
        for path in ["/", "/dev/null"] {
            let error = sysfs.resolve(Path::new(path)).unwrap_err();
            assert_eq!(
                (error.kind.exit_code(), error.code),
                (2, "not-a-block-device")
            );
        }
    }
}
