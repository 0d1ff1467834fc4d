//! What lies on what, among the origins of a snapshot and its store.

use crate::blockdev::BlockDevice;
use crate::blockdev::Sysfs;
use crate::device::DevNum;
use crate::error::Error;
use crate::error::Result;
use crate::freeze;
use crate::mounts::Mount;
use crate::store::Material;
use std::cmp::Reverse;
use std::collections::HashSet;

/// One origin, and all that lies on it.
struct Level {
    /// Its path.
    path: String,
    /// Its number.
    num: DevNum,
    /// The devices on it, itself included.
    above: HashSet<DevNum>,
    /// The devices of its own disk: partitions are no other driver's.
    disk: HashSet<DevNum>,
}

/// The origins of a snapshot, as they lie on each other.
pub struct Stack(Vec<Level>);

impl Stack {
    /// Looks at what is on each of `devices`.
    pub fn new(sysfs: &Sysfs, mounts: &[Mount], devices: &[BlockDevice]) -> Self {
        let loops = sysfs.loops();
        let level = |device: &BlockDevice| {
            let whole = sysfs.disk_of(device.num).unwrap_or(device.num);
            let parts = sysfs.above(whole).into_iter();
            let parts = parts.filter(|d| sysfs.disk_of(*d) == Some(whole));
            Level {
                path: device.path(),
                num: device.num,
                above: freeze::depths(sysfs, mounts, &loops, &[device.num])
                    .into_keys()
                    .collect(),
                disk: parts.chain([whole]).collect(),
            }
        };
        Stack(devices.iter().map(level).collect())
    }

    /// The order in which the gates close: upper devices first. Indices into the devices. (What
    /// has more of the origins under it can't be under one that has fewer.)
    pub fn order(&self) -> Vec<usize> {
        let below = |i: usize| {
            let num = self.0[i].num;
            self.0.iter().filter(|l| l.above.contains(&num)).count()
        };
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_cached_key(|&i| Reverse(below(i)));
        order
    }

    /// The origin that `device` lies on with another driver in between, if there is one.
    fn under(&self, device: DevNum) -> Option<&Level> {
        let on = |l: &&Level| l.above.contains(&device) && !l.disk.contains(&device);
        self.0.iter().find(on)
    }

    /// Whether `device` lies on an origin with another driver in between.
    pub fn is_on(&self, device: DevNum) -> bool {
        self.under(device).is_some()
    }

    /// Refuses a store that lies on an origin with another driver in between. There nobody can
    /// tell its blocks on the origin: each copy that is written to it would be a write to
    /// the origin, whose old data has to be copied first, and so on until it is full.
    pub fn check_store(&self, store: &Material) -> Result<()> {
        match store.device()?.and_then(|device| self.under(device)) {
            None => Ok(()),
            Some(level) => Err(Error::unsupported(format!(
                "store: {} is on a volume that itself lies on {}",
                store.place(),
                level.path
            ))
            .code("store-stacked")
            .hint(
                "put the store on another disk, or on a partition of this one: --store file:PATH",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockdev::fake;
    use crate::blockdev::fake::num;
    use std::path::PathBuf;

    fn device(num: DevNum) -> BlockDevice {
        BlockDevice {
            num,
            name: num.to_string(),
            given: PathBuf::new(),
        }
    }

    #[test]
    fn upper_ones_first() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fake::sysfs(dir.path());
        let (disk, part, other, volume) = (num(8, 0), num(8, 2), num(8, 1), num(253, 0));
        let order = |nums: &[DevNum]| {
            let devices: Vec<_> = nums.iter().map(|&n| device(n)).collect();
            Stack::new(&sysfs, &[], &devices).order()
        };
        assert_eq!(order(&[disk, part, volume]), [2, 1, 0]);
        assert_eq!(order(&[volume, disk]), [0, 1]);
        assert_eq!(order(&[disk, other, volume]), [1, 2, 0]);
    }

    #[test]
    fn stores_on_top_of_an_origin() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fake::sysfs(dir.path());
        let (disk, part, other, volume) = (num(8, 0), num(8, 2), num(8, 1), num(253, 0));
        let is_on = |store: DevNum, origins: &[DevNum]| {
            let devices: Vec<_> = origins.iter().map(|&n| device(n)).collect();
            Stack::new(&sysfs, &[], &devices).is_on(store)
        };
        assert!(is_on(volume, &[disk]));
        assert!(is_on(volume, &[part]));
        assert!(is_on(volume, &[volume, disk]));
        assert!(!is_on(volume, &[volume]));
        assert!(!is_on(volume, &[other]));
        assert!(!is_on(part, &[disk]));
        assert!(!is_on(other, &[disk, part]));
    }
}
