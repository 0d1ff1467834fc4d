//! The system calls that `std` does not have, and the only `unsafe` of these
//! programs.

pub mod memory;

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::ops::Deref;
use std::ops::DerefMut;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// Alignment of buffers: enough for O_DIRECT on any device.
pub const ALIGN: usize = 4096;

/// A zeroed buffer, aligned for O_DIRECT.
pub struct Buf {
    mem: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buf {
    /// A buffer of `len` bytes.
    pub fn new(len: usize) -> Self {
        let mem = vec![0u8; len + ALIGN];
        let start = mem.as_ptr().align_offset(ALIGN);
        Self { mem, start, len }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.mem[self.start..self.start + self.len]
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.mem[self.start..self.start + self.len]
    }
}

/// How to open a device or file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open {
    /// For writing too.
    pub write: bool,
    /// With O_DIRECT.
    pub direct: bool,
    /// With O_DSYNC: writes carry FUA or a flush.
    pub dsync: bool,
}

/// Opens `path`; the error names it.
pub fn open(path: &str, how: Open) -> Result<File, String> {
    let mut flags = 0;
    if how.direct {
        flags |= libc::O_DIRECT;
    }
    if how.dsync {
        flags |= libc::O_DSYNC;
    }
    OpenOptions::new()
        .read(true)
        .write(how.write)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| format!("open {path}: {e}"))
}

/// Bytes in a device or file.
pub fn size_of(f: &File) -> io::Result<u64> {
    let mut f = f;
    f.seek(SeekFrom::End(0))
}

/// True for a block device.
pub fn is_block_device(f: &File) -> bool {
    f.metadata().is_ok_and(|m| m.file_type().is_block_device())
}

/// Calls an ioctl whose argument is memory of the caller's, and returns its
/// value or the error.
///
/// Safe only in this sense: `arg` must be big enough for whatever the kernel
/// writes there. `abifuzz` hands in whatever it likes on purpose, but only
/// addresses within its guarded arenas, or such that nobody uses.
pub fn ioctl_at(fd: RawFd, request: u64, arg: u64) -> Result<i32, i32> {
    // SAFETY: see above; the kernel checks the address itself.
    let r = unsafe { libc::ioctl(fd, request as _, arg as *mut libc::c_void) };
    if r < 0 {
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        Ok(r)
    }
}

/// Calls an ioctl whose argument is `arg`.
pub fn ioctl(fd: RawFd, request: u64, arg: &mut [u8]) -> Result<i32, i32> {
    ioctl_at(fd, request, arg.as_mut_ptr() as u64)
}

const BLKSSZGET: u64 = 0x1268;
const BLKDISCARD: u64 = 0x1277;
const BLKSECDISCARD: u64 = 0x127d;
const BLKZEROOUT: u64 = 0x127f;

/// Logical block size of a device; 512 for a file.
pub fn logical_block_size(f: &File) -> u64 {
    let mut b = [0u8; 4];
    match ioctl(f.as_raw_fd(), BLKSSZGET, &mut b) {
        Ok(_) => u64::from(u32::from_le_bytes(b)),
        Err(_) => 512,
    }
}

/// Ways to change blocks without writing data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    /// BLKDISCARD
    Discard,
    /// BLKZEROOUT
    ZeroOut,
    /// BLKSECDISCARD
    SecureErase,
    /// fallocate(PUNCH_HOLE)
    PunchHole,
    /// fallocate(ZERO_RANGE)
    ZeroRange,
}

/// Erases the range that way; EOPNOTSUPP and EINVAL are the device's to give.
pub fn erase(f: &File, how: Erase, offset: u64, len: u64) -> io::Result<()> {
    let code = match how {
        Erase::Discard => BLKDISCARD,
        Erase::ZeroOut => BLKZEROOUT,
        Erase::SecureErase => BLKSECDISCARD,
        Erase::PunchHole | Erase::ZeroRange => {
            let mode = if how == Erase::PunchHole {
                libc::FALLOC_FL_PUNCH_HOLE
            } else {
                libc::FALLOC_FL_ZERO_RANGE
            };
            // SAFETY: takes no memory.
            let r = unsafe {
                libc::fallocate(
                    f.as_raw_fd(),
                    mode | libc::FALLOC_FL_KEEP_SIZE,
                    offset as i64,
                    len as i64,
                )
            };
            return if r < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            };
        }
    };
    let mut arg = [0u8; 16];
    arg[..8].copy_from_slice(&offset.to_ne_bytes());
    arg[8..].copy_from_slice(&len.to_ne_bytes());
    ioctl(f.as_raw_fd(), code, &mut arg)
        .map(|_| ())
        .map_err(io::Error::from_raw_os_error)
}

/// Allocates blocks for the first `len` bytes of a file.
pub fn allocate(f: &File, len: u64) -> io::Result<()> {
    // SAFETY: takes no memory.
    if len > 0 && unsafe { libc::fallocate(f.as_raw_fd(), 0, 0, len as i64) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes back the whole file system that `f` is on.
pub fn sync_fs(f: &File) -> io::Result<()> {
    // SAFETY: takes no memory.
    if unsafe { libc::syncfs(f.as_raw_fd()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The writing end of a pipe that nobody reads.
pub fn pipe() -> io::Result<OwnedFd> {
    let mut fds = [0; 2];
    // SAFETY: room for the two numbers.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new and nobody else's; the first is closed at once.
    let (_, write) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    Ok(write)
}

/// Takes a descriptor that an ioctl has just made, whose reads shall not wait.
///
/// Safe only in this sense: nothing else may own it.
pub fn own(fd: RawFd) -> io::Result<File> {
    // SAFETY: only asks for its flags, and sets them.
    let r = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nobody else's by the caller's word.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// `pwritev2` of one buffer with `flags` (RWF_NOWAIT, RWF_DSYNC, …).
pub fn pwrite2(f: &File, buf: &[u8], offset: u64, flags: i32) -> io::Result<usize> {
    let v = libc::iovec {
        iov_base: buf.as_ptr() as *mut _,
        iov_len: buf.len(),
    };
    // SAFETY: the one vector describes `buf`, which is only read.
    let r = unsafe { libc::pwritev2(f.as_raw_fd(), &v, 1, offset as i64, flags) };
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r as usize)
    }
}

/// RWF_NOWAIT.
pub const NOWAIT: i32 = libc::RWF_NOWAIT;

fn clock(id: libc::clockid_t) -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is ours.
    unsafe { libc::clock_gettime(id, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// CLOCK_REALTIME in nanoseconds.
pub fn realtime_ns() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on SIGTERM and SIGINT only make [`stopped`] true.
pub fn stop_on_signals() {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    for s in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(s, handler as *const () as libc::sighandler_t) };
    }
}

/// True after SIGTERM or SIGINT, or [`stop_now`].
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Makes [`stopped`] true, for the other threads.
pub fn stop_now() {
    STOP.store(true, Ordering::Relaxed);
}

/// SIGALRM ends the program after so many seconds, unless called again:
/// a call that never returns is a failure, not a hanging test.
pub fn watchdog(seconds: u32) {
    // SAFETY: no memory involved.
    unsafe { libc::alarm(seconds) };
}

/// Gives up root and with it all capabilities, in the whole process.
pub fn become_nobody() -> io::Result<()> {
    // SAFETY: no memory involved.
    unsafe {
        if libc::setgroups(0, std::ptr::null()) != 0
            || libc::setgid(65534) != 0
            || libc::setuid(65534) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Runs `child` in a forked process and returns its exit status.
///
/// Call it only while the process has one thread.
pub fn in_child(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: one thread only, so the child may do what it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `status` is ours.
            if unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            })
        }
    }
}

/// Two pages: the first is memory, the second is not. What is put at the end
/// of the first shows whoever reads or writes one byte too many.
pub struct Cliff {
    base: *mut u8,
    len: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Cliff {}

impl Cliff {
    /// `len` bytes of memory, rounded up to pages, before an unmapped page.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.div_ceil(ALIGN) * ALIGN;
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len + ALIGN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base.cast::<u8>();
        // SAFETY: the last page of the mapping just made.
        if unsafe { libc::mprotect(base.add(len).cast(), ALIGN, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base, len })
    }

    /// The memory.
    pub fn mem(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as `self` lives, and borrowed from it.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }

    /// Address of the unmapped page.
    pub fn edge(&self) -> u64 {
        self.base as u64 + self.len as u64
    }

    /// Puts `bytes` right before the edge and returns its address.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.len - bytes.len();
        self.mem()[at..].copy_from_slice(bytes);
        self.base as u64 + at as u64
    }

    /// Makes the memory read-only (or writable again).
    pub fn read_only(&mut self, yes: bool) {
        let prot = if yes {
            libc::PROT_READ
        } else {
            libc::PROT_READ | libc::PROT_WRITE
        };
        // SAFETY: our own mapping.
        unsafe { libc::mprotect(self.base.cast(), self.len, prot) };
    }
}

impl Drop for Cliff {
    fn drop(&mut self) {
        // SAFETY: our own mapping, no borrow of it is left.
        unsafe { libc::munmap(self.base.cast(), self.len + ALIGN) };
    }
}

/// The name of an errno value, for messages.
pub fn errno_name(e: i32) -> String {
    let name = match e {
        0 => "success",
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::ETXTBSY => "ETXTBSY",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::ERANGE => "ERANGE",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ESTALE => "ESTALE",
        libc::ENOMEDIUM => "ENOMEDIUM",
        _ => return format!("errno {e}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero() {
        let b = Buf::new(5000);
        assert_eq!(b.len(), 5000);
        assert_eq!(b.as_ptr() as usize % ALIGN, 0);
        assert!(b.iter().all(|&x| x == 0));
    }

    #[test]
    fn the_edge_is_an_edge() {
        let mut c = Cliff::new(100).expect("mmap");
        let at = c.put(&[1, 2, 3]);
        assert_eq!(at + 3, c.edge());
        assert_eq!(c.mem().len(), ALIGN);
        assert_eq!(c.mem()[ALIGN - 1], 3);
    }
}
