// SPDX-License-Identifier: GPL-2.0

//! Files without a name that are read and polled.
//!
//! Source: `anon_inode_getfd()`, `struct file_operations`.

use crate::ffi;
use core::marker::PhantomData;
use kernel::bindings;
use kernel::error::to_result;
use kernel::fs::File;
use kernel::module::this_module;
use kernel::prelude::*;
use kernel::sync::poll::PollTable;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::types::ForeignOwnable;
use kernel::uaccess::UserPtr;
use kernel::uaccess::UserSlice;
use kernel::uaccess::UserSliceWriter;

/// What is behind such a file.
pub(crate) trait Stream: Send + Sync + Sized + 'static {
    /// Somebody reads: writes what there is to `to`, and returns how many bytes. Waits for
    /// something unless `nonblock` (EAGAIN); ERESTARTSYS: a signal came. May sleep.
    fn read(this: ArcBorrow<'_, Self>, nonblock: bool, to: UserSliceWriter) -> Result<usize>;

    /// Somebody polls: registers with `table`, and says whether there is something to be read.
    fn poll(this: ArcBorrow<'_, Self>, file: &File, table: PollTable<'_>) -> bool;
}

/// A new, read-only descriptor of the calling process, closed on exec. EMFILE, ENOMEM. May sleep.
pub(crate) fn open<S: Stream>(name: &'static CStr, stream: Arc<S>) -> Result<i32> {
    let data = stream.into_foreign();
    // SAFETY: The table and the name are static; the file, if there is one, owns `data`.
    let fd = unsafe { ffi::bdsnap_anon_fd(name.as_char_ptr(), &Vtable::<S>::TABLE, data) };
    if let Err(e) = to_result(fd) {
        // SAFETY: There is no file, so it is still ours.
        drop(unsafe { <Arc<S> as ForeignOwnable>::from_foreign(data) });
        return Err(e);
    }
    Ok(fd)
}

/// The C operations for an `S`.
struct Vtable<S: Stream>(PhantomData<S>);

impl<S: Stream> Vtable<S> {
    /// The table: `owner` keeps the module while a file is open.
    const TABLE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::Bdsnap>().as_ptr(),
        read: Some(Self::read),
        poll: Some(Self::poll),
        release: Some(Self::release),
        ..pin_init::zeroed()
    };

    /// The object behind a file.
    ///
    /// # Safety
    ///
    /// `file` is one of ours and open during `'a`.
    unsafe fn object<'a>(file: *mut bindings::file) -> ArcBorrow<'a, S> {
        // SAFETY: The private data is from `Arc::into_foreign`, kept until `release`.
        unsafe { <Arc<S> as ForeignOwnable>::borrow((*file).private_data) }
    }

    /// # Safety
    ///
    /// Called by the VFS with one of our files, and a buffer of the user's.
    unsafe extern "C" fn read(
        file: *mut bindings::file,
        buffer: *mut kernel::ffi::c_char,
        len: usize,
        _offset: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The caller's promise.
        let (object, nonblock) = unsafe { (Self::object(file), ffi::bdsnap_file_nonblock(file)) };
        let to = UserSlice::new(UserPtr::from_ptr(buffer.cast()), len).writer();
        match S::read(object, nonblock, to) {
            Ok(n) => n as isize,
            Err(e) => e.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by the VFS with one of our files, and a poll table or null.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: The caller's promise.
        let (object, file, table) = unsafe {
            (
                Self::object(file),
                File::from_raw_file(file),
                PollTable::from_raw(table),
            )
        };
        if S::poll(object, file, table) {
            (bindings::POLLIN | bindings::POLLRDNORM) as bindings::__poll_t
        } else {
            0
        }
    }

    /// # Safety
    ///
    /// Called by the VFS once, when nobody has the file open any more.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: Nobody can reach the private data any more.
        drop(unsafe { <Arc<S> as ForeignOwnable>::from_foreign((*file).private_data) });
        0
    }
}
