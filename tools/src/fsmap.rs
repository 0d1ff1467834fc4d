//! What is free in a file system: `FS_IOC_GETFSMAP`.
//!
//! Only what is reported as free counts: never a gap, never what is unknown. XFS is asked by a process
//! without CAP_SYS_ADMIN: with it and a reverse mapping, what lies between two transactions of a remap
//! would pass for free.

use crate::abi::Range;
use crate::device::DevNum;
use crate::ioctl::getfsmap;
use crate::ioctl::FsMap;
use crate::ioctl::FsMapHead;
use rustix::fd::AsFd;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::io::Result;
use rustix::thread::capabilities;
use rustix::thread::set_capabilities;
use rustix::thread::CapabilitySet;
use std::io::Read;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

/// `FMH_OF_DEV_T`: devices are told by their numbers.
const DEV_T: u32 = 1;
/// `FMR_OF_SPECIAL_OWNER`: the owner is a code.
const SPECIAL_OWNER: u32 = 0x10;
/// `FMR_OF_LAST`: the last record.
const LAST: u32 = 0x20;
/// `FMR_OWN_FREE`.
const OWN_FREE: u64 = 1;

/// File systems that are asked.
pub const FILE_SYSTEMS: [&str; 2] = ["ext4", "xfs"];

/// How long [`free`] waits: a disk that hangs holds it up for ever.
const LIMIT: Duration = Duration::from_secs(30);

/// The hidden command of the tool that asks, see [`print`].
pub const COMMAND: &str = "free-map";

/// What is free in the file system that `fd` is on, of what lies on `device`: ranges of bytes of that
/// device. ETIMEDOUT: no answer; EOPNOTSUPP: it can't tell. Asked by a process of its own (the `bdsnap`
/// tool), since who waits for a disk that hangs can't be ended, and would hang us too.
pub fn free(fd: BorrowedFd<'_>, device: DevNum) -> Result<Vec<Range>> {
    let own = std::env::current_exe().ok();
    let is_tool = |path: &PathBuf| path.file_name().is_some_and(|name| name == "bdsnap");
    let program = own.filter(is_tool).unwrap_or_else(|| "bdsnap".into());
    let fd = fd.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let mut child = Command::new(program)
        .args([COMMAND, &device.to_string()])
        .stdin(Stdio::from(fd))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|_| Errno::OPNOTSUPP)?;
    let Some(mut stdout) = child.stdout.take() else {
        return Err(Errno::IO);
    };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.read_to_string(&mut text);
        let _ = sender.send(read.map(|_| text));
    });
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(text)) if child.wait().is_ok_and(|s| s.success()) => parse(&text),
        Ok(_) => Err(Errno::OPNOTSUPP),
        Err(_) => {
            // It may be stuck in the kernel: don't wait for it.
            let _ = child.kill();
            Err(Errno::TIMEDOUT)
        }
    }
}

/// Ranges as [`print`] writes them.
fn parse(text: &str) -> Result<Vec<Range>> {
    let range = |line: &str| {
        let (offset, length) = line.split_once(' ')?;
        Some(Range {
            offset: offset.parse().ok()?,
            length: length.parse().ok()?,
        })
    };
    let ranges: Option<Vec<Range>> = text.lines().map(range).collect();
    ranges.ok_or(Errno::IO)
}

/// What the process does that [`free`] starts: asks the file system that standard input is on, and
/// prints a line "OFFSET LENGTH" for each range. It has no CAP_SYS_ADMIN any more then.
pub fn print(device: DevNum, out: &mut impl Write) -> Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_ADMIN);
    set_capabilities(None, sets)?;
    for range in ask(std::io::stdin().as_fd(), device)? {
        writeln!(out, "{} {}", range.offset, range.length).map_err(|_| Errno::IO)?;
    }
    out.flush().map_err(|_| Errno::IO)
}

/// Asks for all records.
fn ask(fd: BorrowedFd<'_>, device: DevNum) -> Result<Vec<Range>> {
    let mut buffer = FsMapHead::new();
    let mut last = None;
    let mut free = Vec::new();
    loop {
        let (count, flags) = getfsmap(fd, last, &mut buffer)?;
        if flags & DEV_T == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let records = &buffer.records[..count];
        records.iter().for_each(|r| add(&mut free, r, device));
        last = records.last().copied();
        match last {
            Some(record) if record.flags & LAST == 0 => {}
            _ => return Ok(free),
        }
    }
}

/// Adds what a record says to be free.
fn add(free: &mut Vec<Range>, record: &FsMap, device: DevNum) {
    let is_free = record.flags & SPECIAL_OWNER != 0 && record.owner == OWN_FREE;
    if !is_free || encoded(device) != Some(record.device) || record.length == 0 {
        return;
    }
    match free.last_mut() {
        Some(last) if last.offset + last.length == record.physical => last.length += record.length,
        _ => free.push(Range {
            offset: record.physical,
            length: record.length,
        }),
    }
}

/// A device number as the kernel gives it to user space in 32 bits (`new_encode_dev`).
fn encoded(device: DevNum) -> Option<u32> {
    let (major, minor) = (device.major, device.minor);
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_free_and_here() {
        let device = DevNum {
            major: 254,
            minor: 0x1_0203,
        };
        let number = encoded(device).unwrap();
        assert_eq!(number, 0x1020_fe03);
        let record = |device, flags, owner, physical, length| FsMap {
            device,
            flags,
            owner,
            physical,
            length,
            ..Default::default()
        };
        let mut free = Vec::new();
        for r in [
            record(number, SPECIAL_OWNER, OWN_FREE, 0, 4096),
            record(number, SPECIAL_OWNER, OWN_FREE, 4096, 4096),
            // A file whose inode is 1.
            record(number, 0, OWN_FREE, 8192, 4096),
            // Unknown.
            record(number, SPECIAL_OWNER, 2, 12288, 4096),
            // Of another device.
            record(number + 1, SPECIAL_OWNER, OWN_FREE, 16384, 4096),
            record(number, SPECIAL_OWNER | LAST, OWN_FREE, 20480, 4096),
        ] {
            add(&mut free, &r, device);
        }
        let found: Vec<_> = free.iter().map(|r| (r.offset, r.length)).collect();
        assert_eq!(found, [(0, 8192), (20480, 4096)]);
    }

    #[test]
    fn ranges_as_text() {
        let ranges = parse("0 8192\n20480 4096\n").unwrap();
        assert_eq!(ranges.len(), 2);
        assert_eq!((ranges[1].offset, ranges[1].length), (20480, 4096));
        assert!(parse("").unwrap().is_empty());
        assert!(parse("0 8192\n204").is_err());
    }
}
