//! I/O from and to memory that is no ordinary buffer: the pages of another
//! device, or many small pieces.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The first bytes of a device, mapped (MAP_SHARED): the pages of its page cache.
pub struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: a range of addresses; its content is only touched by system calls.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes.
    pub fn new(f: &File, len: usize, write: bool) -> io::Result<Self> {
        let prot = if write {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping, where the kernel likes.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                f.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.cast(),
            len,
        })
    }

    fn at(&self, at: usize, len: usize) -> io::Result<*mut u8> {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.base.wrapping_add(at))
    }

    /// Writes the mapping's bytes from `at` on to `f`, at `offset`.
    pub fn write_to(&self, f: &File, at: usize, len: usize, offset: u64) -> io::Result<usize> {
        let p = self.at(at, len)?;
        // SAFETY: inside the mapping, which the kernel only reads.
        done(unsafe { libc::pwrite(f.as_raw_fd(), p.cast(), len, offset as i64) })
    }

    /// Reads from `f`, at `offset`, into the mapping from byte `at` on.
    pub fn read_from(&self, f: &File, at: usize, len: usize, offset: u64) -> io::Result<usize> {
        let p = self.at(at, len)?;
        // SAFETY: inside the mapping, to whose content nobody here has a reference.
        done(unsafe { libc::pread(f.as_raw_fd(), p.cast(), len, offset as i64) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

fn done(r: isize) -> io::Result<usize> {
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}

/// Writes the pieces, one after the other, with one `pwritev2`.
pub fn write_pieces(f: &File, pieces: &[&[u8]], offset: u64, flags: i32) -> io::Result<usize> {
    let list: Vec<libc::iovec> = pieces
        .iter()
        .map(|p| libc::iovec {
            iov_base: p.as_ptr() as *mut _,
            iov_len: p.len(),
        })
        .collect();
    // SAFETY: each vector describes a piece, which is only read.
    done(unsafe {
        libc::pwritev2(
            f.as_raw_fd(),
            list.as_ptr(),
            list.len() as i32,
            offset as i64,
            flags,
        )
    })
}

/// RWF_ATOMIC (Linux 6.11).
pub const ATOMIC: i32 = 0x40;
