//! Which file systems have to be frozen for a snapshot, and in which order.

use crate::blockdev::dev_num;
use crate::blockdev::dev_path;
use crate::blockdev::Sysfs;
use crate::device::DevNum;
use crate::error::Error;
use crate::error::Result;
use crate::mounts::Mount;
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::StatxFlags;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

/// A file system to freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Device number of its super block.
    pub super_block: DevNum,
    /// The device that it is on.
    pub device: DevNum,
    /// How far above the origins it is: 0 directly on one.
    pub depth: usize,
    /// "ext4", "xfs" ...
    pub fs_type: String,
    /// Its mounts: id and mount point.
    pub mounts: Vec<(u64, PathBuf)>,
}

/// An open file system, ready to be frozen.
#[derive(Debug)]
pub struct Opened {
    /// Any fd on it.
    pub fd: OwnedFd,
    /// Where it is mounted.
    pub mount_point: PathBuf,
}

/// How long [`write_back`] may take.
const WRITE_BACK_LIMIT: Duration = Duration::from_secs(10);

/// Has the file systems write back what is dirty, so that hooks and freezes are short; for 10
/// seconds at most. It helps, no more: the kernel does it again before the freeze, with a time
/// limit of its own. Done by `sync -f`, since syncfs(2) on a device that hangs can't be ended, and
/// would hang us too.
pub fn write_back(opened: &[Opened]) {
    let sync = |o: &Opened| {
        Command::new("sync")
            .arg("-f")
            .arg(&o.mount_point)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()
    };
    let mut children: Vec<_> = opened.iter().filter_map(sync).collect();
    let end = Instant::now() + WRITE_BACK_LIMIT;
    while !children.is_empty() && Instant::now() < end {
        children.retain_mut(|c| matches!(c.try_wait(), Ok(None)));
        std::thread::sleep(Duration::from_millis(2));
    }
    for mut child in children {
        // It may be stuck in the kernel: don't wait for it.
        let _ = child.kill();
    }
}

/// Finds the file systems on `devices`, on what is stacked on them (partitions, LVM, md, crypt,
/// loop files) and so on; the topmost first. Read-only ones need no freeze and are left out.
pub fn plan(sysfs: &Sysfs, mounts: &[Mount], devices: &[DevNum]) -> Vec<Target> {
    let depth = depths(sysfs, mounts, &sysfs.loops(), devices);
    let mut targets: Vec<Target> = Vec::new();
    for mount in mounts.iter().filter(|m| !m.read_only) {
        let all = mount.devices(sysfs).into_iter();
        let own = all.filter_map(|device| Some((*depth.get(&device)?, device)));
        // (The topmost of several.)
        let Some((depth, device)) = own.max_by_key(|(depth, _)| *depth) else {
            continue;
        };
        let place = (mount.id, mount.mount_point.clone());
        match targets
            .iter_mut()
            .find(|t| t.super_block == mount.super_block)
        {
            Some(target) => target.mounts.push(place),
            None => targets.push(Target {
                super_block: mount.super_block,
                device,
                depth,
                fs_type: mount.fs_type.clone(),
                mounts: vec![place],
            }),
        }
    }
    targets.sort_by_key(|t| std::cmp::Reverse(t.depth));
    targets
}

/// All devices that lie on `devices` (these included), through partitions, other drivers and loop
/// files, each with the length of the longest way to it. `loops` as of [`Sysfs::loops`].
pub fn depths(
    sysfs: &Sysfs,
    mounts: &[Mount],
    loops: &[(DevNum, PathBuf)],
    devices: &[DevNum],
) -> HashMap<DevNum, usize> {
    /// More levels than any sane stack has: a guard against loops.
    const LIMIT: usize = 32;
    let loop_on: Vec<(DevNum, DevNum)> = loops
        .iter()
        .filter_map(|(num, file)| Some((under_loop(mounts, file)?, *num)))
        .collect();
    let mut depth: HashMap<DevNum, usize> = HashMap::new();
    let mut queue: Vec<(DevNum, usize)> = devices.iter().map(|&d| (d, 0)).collect();
    while let Some((device, level)) = queue.pop() {
        if level > LIMIT || depth.get(&device).is_some_and(|&known| known >= level) {
            continue;
        }
        depth.insert(device, level);
        let stacked = sysfs.above(device).into_iter();
        let in_files = loop_on
            .iter()
            .filter(|(below, _)| *below == device)
            .map(|(_, l)| *l);
        queue.extend(stacked.chain(in_files).map(|above| (above, level + 1)));
    }
    depth
}

/// The loop device that uses a device, its disk or a partition of it: the kernel does not know these
/// for claimed.
pub fn loop_on(sysfs: &Sysfs, mounts: &[Mount], device: DevNum) -> Option<String> {
    let own = [Some(device), sysfs.disk_of(device)];
    let is_user = |file: &Path| {
        let below = under_loop(mounts, file);
        let of_own = below.and_then(|b| sysfs.disk_of(b)) == Some(device);
        of_own || below.is_some() && own.contains(&below)
    };
    let (num, _) = sysfs.loops().into_iter().find(|(_, file)| is_user(file))?;
    Some(dev_path(
        &sysfs.name(num).unwrap_or_else(|| num.to_string()),
    ))
}

/// The device under a loop device on `file`: that of its file system, or the file itself.
pub fn under_loop(mounts: &[Mount], file: &Path) -> Option<DevNum> {
    let meta = fs::metadata(file).ok()?;
    if meta.file_type().is_block_device() {
        return Some(dev_num(meta.rdev()));
    }
    let dev = dev_num(meta.dev());
    mounts.iter().find(|m| m.super_block == dev)?.device()
}

/// Opens a file system by one of its mount points; each is checked not to be covered by another
/// mount.
pub fn open(target: &Target) -> Result<Opened> {
    let mut problem = None;
    for (id, mount_point) in &target.mounts {
        // The root of a mount may be a file (a bind mount): O_DIRECTORY would refuse it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::open(mount_point, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(e) => {
                problem = Some(Error::io(
                    format!("can't open {}", mount_point.display()),
                    e,
                ));
                continue;
            }
        };
        let found = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
        match found {
            Ok(stat) if stat.stx_mnt_id == *id => {
                return Ok(Opened {
                    fd,
                    mount_point: mount_point.clone(),
                })
            }
            Ok(_) => {}
            Err(e) => {
                problem = Some(Error::io(
                    format!("can't stat {}", mount_point.display()),
                    e,
                ))
            }
        }
    }
    let place = target.mounts.first().map(|(_, p)| p.display().to_string());
    Err(problem
        .unwrap_or_else(|| {
            Error::failed(format!(
                "the {} file system at {} is covered by another mount and can't be frozen",
                target.fs_type,
                place.unwrap_or_default()
            ))
        })
        .code("freeze")
        .hint("unmount what covers it, or use --no-freeze (crash-consistent)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockdev::fake;
    use crate::blockdev::fake::num;
    use crate::mounts;
    use std::path::Path;

    const MOUNTS: &str = "\
1 0 8:1 / /boot rw - ext4 /dev/sda1 rw
2 0 253:0 / / rw - xfs /dev/mapper/vg-root rw
3 0 253:0 /home /home rw - xfs /dev/mapper/vg-root rw
4 0 8:17 / /other rw - ext4 /dev/sdb1 rw
5 0 8:2 / /ro ro - ext4 /dev/sda2 ro
";

    #[test]
    fn whole_disk_freezes_all_above_it_top_first() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fake::sysfs(dir.path());
        let mounts = mounts::parse(MOUNTS.as_bytes());
        let plan = plan(&sysfs, &mounts, &[num(8, 0)]);
        let shape: Vec<_> = plan
            .iter()
            .map(|t| (t.device, t.depth, t.mounts.len()))
            .collect();
        assert_eq!(shape, [(num(253, 0), 2, 2), (num(8, 1), 1, 1)]);
    }

    #[test]
    fn a_partition_freezes_only_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fake::sysfs(dir.path());
        let mounts = mounts::parse(MOUNTS.as_bytes());
        assert_eq!(plan(&sysfs, &mounts, &[num(8, 1)]).len(), 1);
        assert_eq!(plan(&sysfs, &mounts, &[num(8, 1), num(8, 0)]).len(), 2);
        assert!(plan(&sysfs, &mounts, &[num(9, 9)]).is_empty());
    }

    #[test]
    fn opens_a_mount_point_that_is_mounted_there() {
        let mounts = mounts::read().unwrap();
        let proc = mounts
            .iter()
            .rev()
            .find(|m| m.mount_point == Path::new("/proc"))
            .unwrap();
        let mut target = Target {
            super_block: proc.super_block,
            device: proc.super_block,
            depth: 0,
            fs_type: proc.fs_type.clone(),
            mounts: vec![(proc.id, "/proc".into())],
        };
        assert_eq!(open(&target).unwrap().mount_point, PathBuf::from("/proc"));
        target.mounts[0].0 = u64::MAX;
        assert!(open(&target).unwrap_err().message.contains("covered"));
    }
}
