//! The calls that both kinds of run make, and what they show.

use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::abi::Ioctl;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Open;
use libc::EBUSY;
use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use std::time::Instant;

pub type Dev = (u32, u32);

pub fn dev_of(path: &str) -> Result<Dev, String> {
    let rdev = fs::metadata(path)
        .map_err(|e| format!("{path}: {e}"))?
        .rdev();
    Ok((libc::major(rdev), libc::minor(rdev)))
}

pub fn control() -> Result<File, String> {
    sys::open(
        abi::DEVICE,
        Open {
            write: true,
            ..Open::default()
        },
    )
}

pub fn named(errnos: &[i32]) -> String {
    errnos
        .iter()
        .map(|e| sys::errno_name(*e))
        .collect::<Vec<_>>()
        .join(" or ")
}

pub fn shown(r: &Result<i32, i32>) -> String {
    match r {
        Ok(v) => format!("success ({v})"),
        Err(e) => sys::errno_name(*e),
    }
}

/// A fallocated file for a store.
pub fn store_file(dir: &str, name: &str, size: u64) -> Result<File, String> {
    let path = format!("{dir}/{name}");
    let f = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(|e| format!("{path}: {e}"))?;
    if sys::allocate(&f, size).is_err() {
        return Err(format!("{path}: cannot allocate {size} bytes"));
    }
    f.sync_all().map_err(|e| format!("{path}: {e}"))?;
    Ok(f)
}

/// All items of a list, with counters that go on by themselves left out.
pub fn list(fd: &File, ioctl: Ioctl, id: &[u8], item: u32) -> Result<Vec<Vec<u8>>, String> {
    let mut room = vec![0u8; item as usize * 64];
    let mut a = ioctl
        .arg()
        .u32(at::LIST_COUNT, 64)
        .u32(at::LIST_ITEM, item)
        .u64(at::LIST_BUFFER, room.as_mut_ptr() as u64)
        .put(at::LIST_ID, id);
    a.call(fd)
        .map_err(|e| format!("{}: {}", ioctl.name, sys::errno_name(e)))?;
    let n = (a.get32(at::LIST_COUNT) as usize).min(64);
    Ok(room
        .chunks(item as usize)
        .take(n)
        .map(<[u8]>::to_vec)
        .collect())
}

/// What the lists say of all there is.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub origins: Vec<Vec<u8>>,
    pub snapshots: Vec<Vec<u8>>,
    pub versions: Vec<Vec<Vec<u8>>>,
    pub map: Vec<u32>,
}

pub fn read_map(fd: &File, dev: Dev, flags: u32) -> Result<Vec<u32>, i32> {
    let mut room = vec![0u32; 65536];
    let mut a = abi::MAP_READ
        .arg()
        .dev(dev)
        .u32(at::FLAGS, flags)
        .u64(at::MAP_COUNT, room.len() as u64)
        .u64(at::MAP_BUFFER, room.as_mut_ptr() as u64);
    a.call(fd)?;
    room.truncate(a.get64(at::MAP_COUNT) as usize);
    Ok(room)
}

pub const LIVE: u32 = 1;

pub fn state(fd: &File, dev: Dev) -> Result<State, String> {
    let mut origins = list(fd, abi::LIST_ORIGINS, &[0; 16], abi::ORIGIN_INFO)?;
    for o in &mut origins {
        o[96..112].fill(0); // bytes_copied, writes_parked: udev may read and write as it likes
    }
    let snapshots = list(fd, abi::LIST_SNAPSHOTS, &[0; 16], abi::SNAPSHOT_INFO)?;
    let versions = snapshots
        .iter()
        .map(|s| {
            let mut v = list(fd, abi::LIST_VERSIONS, &s[..16], abi::VERSION_INFO)?;
            v.iter_mut().for_each(|v| v[144..148].fill(0)); // openers
            Ok(v)
        })
        .collect::<Result<Vec<_>, String>>()?;
    Ok(State {
        origins,
        snapshots,
        versions,
        map: read_map(fd, dev, LIVE).unwrap_or_default(),
    })
}

/// Waits some seconds for a thing that another thread of the kernel may do.
pub fn settle(mut ok: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        if ok() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Deletes a snapshot; udev may look into its image for a moment.
pub fn delete(fd: &File, id: &[u8]) -> Result<i32, i32> {
    let mut r = Err(EBUSY);
    settle(|| {
        r = abi::SNAPSHOT_DELETE.arg().put(at::ID, id).call(fd);
        r != Err(EBUSY)
    });
    r
}

pub use abi::make_store;

/// The id and the device's part of the answer.
pub fn make_snapshot(fd: &File, store: u64, dev: Dev) -> Result<([u8; 16], Vec<u8>), String> {
    let mut d = vec![0u8; abi::SNAPSHOT_DEVICE as usize];
    d[..4].copy_from_slice(&dev.0.to_ne_bytes());
    d[4..8].copy_from_slice(&dev.1.to_ne_bytes());
    let mut a = abi::SNAPSHOT_CREATE
        .arg()
        .u64(at::SNAP_STORE, store)
        .u64(at::SNAP_DEVICES, d.as_mut_ptr() as u64)
        .u32(at::SNAP_DEVICE_COUNT, 1);
    a.call(fd).map_err(|e| {
        format!(
            "SNAPSHOT_CREATE: {} (cause {})",
            sys::errno_name(e),
            a.get32(at::SNAP_CAUSE)
        )
    })?;
    let mut id = [0; 16];
    id.copy_from_slice(&a.bytes[at::ID..at::ID + 16]);
    Ok((id, d))
}
