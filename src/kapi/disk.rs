// SPDX-License-Identifier: GPL-2.0

//! A bio-based disk that can't be written, only read and, where BLKROSET allows it, discarded.
//!
//! Source: `blk_alloc_disk()`, `struct block_device_operations`, `bio_alloc_clone()`.

use super::bdev::BlockDevice;
use super::bdev::Dev;
use super::bdev::NAME_LEN;
use super::hook::submit_own;
use crate::ffi;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::error::to_result;
use kernel::module::this_module;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::types::ForeignOwnable;

/// What answers the reads of a disk.
pub(crate) trait DiskOps: Send + Sync + Sized + 'static {
    /// Somebody opens it: an error refuses. Called under the disk's open lock.
    fn open(this: ArcBorrow<'_, Self>) -> Result;

    /// Somebody has closed it, and is not counted any more. Called under the same lock.
    fn closed(this: ArcBorrow<'_, Self>);

    /// A read, or a discard; ended by dropping it. May sleep: a read for memory only, not for I/O.
    fn read(this: ArcBorrow<'_, Self>, bio: Parent);
}

/// Bios in reserve for children of reads.
const CHILDREN: c_uint = 64;

/// Children's bios, while [`Support`] lives.
static CHILD_BIOS: AtomicPtr<bindings::bio_set> = AtomicPtr::new(core::ptr::null_mut());

/// What all disks need: made before the first, dropped after the last.
pub(crate) struct Support {
    /// The pool of children's bios.
    set: KBox<bindings::bio_set>,
}

// SAFETY: A bio_set is made for concurrent use.
unsafe impl Send for Support {}
// SAFETY: As above.
unsafe impl Sync for Support {}

impl Support {
    /// ENOMEM. May sleep; once at a time.
    pub(crate) fn new() -> Result<Self> {
        let mut set = KBox::new(bindings::bio_set::default(), GFP_KERNEL)?;
        // Children are made inside submit_bio: the rescuer submits those that wait on the task's
        // own list while more are wanted.
        // SAFETY: The set is zeroed, and stays in its box.
        to_result(unsafe {
            bindings::bioset_init(
                &mut *set,
                CHILDREN,
                0,
                bindings::BIOSET_NEED_RESCUER as c_int,
            )
        })?;
        CHILD_BIOS.store(&mut *set, Ordering::Release);
        Ok(Self { set })
    }
}

impl Drop for Support {
    fn drop(&mut self) {
        CHILD_BIOS.store(core::ptr::null_mut(), Ordering::Release);
        // Who has closed the last disk may still be on his way out of `free_disk`.
        super::rcu::synchronize_tasks();
        // SAFETY: Initialized in `new()`; no disk exists any more, so no bio is out.
        unsafe { bindings::bioset_exit(&mut *self.set) };
    }
}

/// A disk that is there for all to see, until dropped.
///
/// # Invariants
///
/// `disk` was added; its private data is an `Arc<T>` that `free_disk` drops.
pub(crate) struct Disk<T: DiskOps> {
    disk: NonNull<bindings::gendisk>,
    _ops: PhantomData<Arc<T>>,
}

// SAFETY: A gendisk is reference-counted and can be removed from any thread.
unsafe impl<T: DiskOps> Send for Disk<T> {}
// SAFETY: `&self` methods only read.
unsafe impl<T: DiskOps> Sync for Disk<T> {}

/// The C operations for a `T`.
struct Vtable<T: DiskOps>(PhantomData<T>);

impl<T: DiskOps> Vtable<T> {
    /// The table: `owner` keeps the module while a disk is open.
    const TABLE: bindings::block_device_operations = bindings::block_device_operations {
        submit_bio: Some(Self::submit_bio),
        open: Some(Self::open),
        release: Some(Self::release),
        set_read_only: Some(Self::set_read_only),
        free_disk: Some(Self::free_disk),
        owner: this_module::<crate::Bdsnap>().as_ptr(),
        ..pin_init::zeroed()
    };

    /// The object behind a disk.
    ///
    /// # Safety
    ///
    /// `disk` is one of ours and alive during `'a`.
    unsafe fn object<'a>(disk: *mut bindings::gendisk) -> ArcBorrow<'a, T> {
        // SAFETY: The private data is from `Arc::into_foreign`, kept until `free_disk`.
        unsafe { <Arc<T> as ForeignOwnable>::borrow((*disk).private_data) }
    }

    /// # Safety
    ///
    /// Called by the block layer with a bio for one of our disks.
    unsafe extern "C" fn submit_bio(bio: *mut bindings::bio) {
        // SAFETY: The bio is for one of our disks, which is alive while a bio for it is.
        let object = unsafe { Self::object((*(*bio).bi_bdev).bd_disk) };
        // INVARIANT: The block layer gives us the bio.
        let parent = Parent {
            // SAFETY: Never null.
            bio: unsafe { NonNull::new_unchecked(bio) },
            failed: AtomicBool::new(false),
        };
        // (The block layer looks at that for ioctls only.)
        // SAFETY: The bio is valid.
        let read_only = unsafe { ffi::bdsnap_bio_read_only(bio) };
        if parent.is_read() || parent.is_discard() && !read_only {
            T::read(object, parent);
        } else {
            parent.fail();
        }
    }

    /// # Safety
    ///
    /// Called by the block layer for one of our disks.
    unsafe extern "C" fn open(disk: *mut bindings::gendisk, _mode: bindings::blk_mode_t) -> c_int {
        // SAFETY: As the caller's promise.
        match T::open(unsafe { Self::object(disk) }) {
            Ok(()) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the block layer for one of our disks.
    unsafe extern "C" fn release(disk: *mut bindings::gendisk) {
        // SAFETY: As the caller's promise.
        T::closed(unsafe { Self::object(disk) });
    }

    /// # Safety
    ///
    /// Called by the block layer for one of our disks, which somebody has open, for BLKROSET.
    unsafe extern "C" fn set_read_only(bdev: *mut bindings::block_device, ro: bool) -> c_int {
        // Discards are refused where the disk is read-only, other writes always: by `submit_bio()`. What
        // came no further than the page cache does not stay there.
        // SAFETY: As the caller's promise.
        unsafe {
            let disk = (*bdev).bd_disk;
            bindings::set_disk_ro(disk, ro);
            ffi::bdsnap_disk_forget_all(disk);
        }
        0
    }

    /// # Safety
    ///
    /// Called once, when the last reference to one of our disks goes.
    unsafe extern "C" fn free_disk(disk: *mut bindings::gendisk) {
        // SAFETY: Nobody can reach the private data any more.
        drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign((*disk).private_data) });
    }
}

impl<T: DiskOps> Disk<T> {
    /// Adds a read-only disk of `sectors` sectors called `name` (NUL-terminated), with the block
    /// sizes (bytes) and the alignment of memory (a mask; 511 at least) given. ENOMEM, and errors of `device_add_disk()`. May sleep.
    pub(crate) fn add(
        object: Arc<T>,
        name: &[u8; NAME_LEN],
        sectors: u64,
        logical: u32,
        physical: u32,
        dma_alignment: u32,
    ) -> Result<Self> {
        // SAFETY: Plain numbers; the shim makes a disk or an error pointer.
        let disk = unsafe { ffi::bdsnap_disk_alloc(logical, physical, dma_alignment) };
        let disk = from_err_ptr(disk)?;
        let disk = NonNull::new(disk).ok_or(ENOMEM)?;
        // SAFETY: The disk is new and ours. Once added, the reference to the object belongs to the
        // disk; one that was never added doesn't call `free_disk`, and the reference is still ours.
        unsafe {
            let d = disk.as_ptr();
            (*d).flags |= bindings::GENHD_FL_NO_PART as c_int;
            for (to, from) in (*d).disk_name.iter_mut().zip(name.iter()) {
                *to = *from as kernel::ffi::c_char;
            }
            (*d).private_data = object.into_foreign();
            (*d).fops = &Vtable::<T>::TABLE;
            bindings::set_capacity(d, sectors);
            bindings::set_disk_ro(d, true);
            let added = to_result(bindings::device_add_disk(
                core::ptr::null_mut(),
                d,
                core::ptr::null_mut(),
            ));
            if let Err(e) = added {
                let object = (*d).private_data;
                bindings::put_disk(d);
                drop(<Arc<T> as ForeignOwnable>::from_foreign(object));
                return Err(e);
            }
        }
        // INVARIANT: Added.
        Ok(Self {
            disk,
            _ops: PhantomData,
        })
    }

    /// Its device number.
    pub(crate) fn dev(&self) -> Result<Dev> {
        // SAFETY: By the type invariant the disk is valid; set when it was added.
        let (major, minor) = unsafe {
            let d = self.disk.as_ptr();
            ((*d).major, (*d).first_minor)
        };
        Dev::new(major as u32, minor as u32)
    }

    /// Its page cache. `get_device()`; any context.
    pub(crate) fn cache(&self) -> Cache {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { ffi::bdsnap_disk_get(self.disk.as_ptr()) };
        // INVARIANT: The reference has just been taken.
        Cache(self.disk)
    }

    /// How many have it open.
    pub(crate) fn openers(&self) -> u32 {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { ffi::bdsnap_disk_openers(self.disk.as_ptr()) }
    }
}

impl<T: DiskOps> Drop for Disk<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the disk was added and is ours. New bios for it are
        // refused from here on; those who have it open hold references of their own.
        unsafe {
            bindings::del_gendisk(self.disk.as_ptr());
            bindings::put_disk(self.disk.as_ptr());
        }
    }
}

/// The page cache of a disk, which may have been removed meanwhile.
///
/// # Invariants
///
/// A disk, of which this has a reference.
pub(crate) struct Cache(NonNull<bindings::gendisk>);

impl Cache {
    /// Drops what it holds of `sectors` sectors from `sector` on, but for pages that are in use just then.
    /// `invalidate_inode_pages2_range()`; sleeps, also for reads on their way.
    pub(crate) fn forget(&self, sector: u64, sectors: u64) {
        // SAFETY: By the type invariant the disk is there, and with it its whole block device.
        unsafe { ffi::bdsnap_disk_forget(self.0.as_ptr(), sector, sectors) };
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::put_disk(self.0.as_ptr()) };
    }
}

/// A bio that a disk got; ends when dropped, with an error if one was recorded.
///
/// # Invariants
///
/// A valid bio that this owns.
pub(crate) struct Parent {
    bio: NonNull<bindings::bio>,
    failed: AtomicBool,
}

// SAFETY: A bio can be ended in any context.
unsafe impl Send for Parent {}
// SAFETY: `&self` methods read what doesn't change, or are atomic.
unsafe impl Sync for Parent {}

impl Parent {
    /// Whether it is a read.
    fn is_read(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        let op = unsafe { self.bio.as_ref().bi_opf } & ffi::BDSNAP_REQ_OP_MASK;
        op == bindings::req_op_REQ_OP_READ
    }

    /// Whether it is a discard.
    pub(crate) fn is_discard(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        let op = unsafe { self.bio.as_ref().bi_opf } & ffi::BDSNAP_REQ_OP_MASK;
        op == bindings::req_op_REQ_OP_DISCARD
    }

    /// First sector.
    pub(crate) fn sector(&self) -> u64 {
        // SAFETY: Valid by the type invariant; children are clones and don't move its iterator.
        unsafe { self.bio.as_ref().bi_iter.bi_sector }
    }

    /// Length in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: As above.
        u64::from(unsafe { self.bio.as_ref().bi_iter.bi_size } >> 9)
    }

    /// Records that it fails (`BLK_STS_IOERR`).
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the bio is ours; it ends here, once.
        unsafe {
            if self.failed.load(Ordering::Acquire) {
                self.bio.as_mut().bi_status = ffi::BDSNAP_BLK_STS_IOERR;
            }
            bindings::bio_endio(self.bio.as_ptr());
        }
    }
}

/// A part of a parent's data, to be filled or read into.
///
/// # Invariants
///
/// A clone that this owns; the parent lives longer (its maker's promise).
pub(crate) struct Child {
    bio: NonNull<bindings::bio>,
}

// SAFETY: A bio can be used from any thread.
unsafe impl Send for Child {}

/// Who is told that a child's I/O has ended.
pub(crate) trait ChildDone: Send + Sized + 'static {
    /// The read has ended. Any context.
    fn child_done(this: Pin<KBox<Self>>, status: Result);
}

impl Child {
    /// The `sectors` sectors of the parent's data from its sector `offset` on. EINVAL: not inside;
    /// ENOMEM. May sleep for memory.
    ///
    /// The child must be filled and dropped, or submitted, while the parent lives.
    pub(crate) fn of(parent: &Parent, offset: u64, sectors: u64) -> Result<Self> {
        let end = offset.checked_add(sectors).ok_or(EINVAL)?;
        if sectors == 0 || end > parent.sectors() {
            return Err(EINVAL);
        }
        let set = CHILD_BIOS.load(Ordering::Acquire);
        // SAFETY: The set is there while a disk is; the parent is valid, and its data is not
        // touched by cloning.
        let bio = unsafe {
            bindings::bio_alloc_clone(
                parent.bio.as_ref().bi_bdev,
                parent.bio.as_ptr(),
                ffi::BDSNAP_GFP_NOIO,
                set,
            )
        };
        let bio = NonNull::new(bio).ok_or(ENOMEM)?;
        // SAFETY: The clone is ours; offset and length lie inside it.
        unsafe { bindings::bio_trim(bio.as_ptr(), offset, sectors) };
        // INVARIANT: A fresh clone.
        Ok(Self { bio })
    }

    /// Leaves only the first `sectors` sectors of it, if it has more.
    pub(crate) fn shorten(&mut self, sectors: u64) {
        // SAFETY: The clone is ours, and not shorter than what is left of it.
        unsafe {
            if sectors < u64::from(self.bio.as_ref().bi_iter.bi_size >> 9) {
                bindings::bio_trim(self.bio.as_ptr(), 0, sectors);
            }
        }
    }

    /// The C object.
    pub(super) fn as_ptr(&mut self) -> *mut bindings::bio {
        self.bio.as_ptr()
    }

    /// Fills it with zeros.
    pub(crate) fn zero(&mut self) {
        // SAFETY: The clone is ours.
        unsafe { ffi::bdsnap_bio_zero(self.bio.as_ptr()) };
    }

    /// Reads it from `sector` of `dev`, as our own I/O. `done` hears of the end; it must keep
    /// `dev` alive. May sleep.
    pub(crate) fn submit<C: ChildDone>(self, dev: &BlockDevice, sector: u64, done: Pin<KBox<C>>) {
        let bio = self.bio.as_ptr();
        core::mem::forget(self);
        // SAFETY: The clone is ours and complete; `child_end` gets it and the box back, once.
        unsafe {
            ffi::bdsnap_bio_set_dev(bio, dev.as_ptr());
            (*bio).bi_iter.bi_sector = sector;
            (*bio).bi_opf &= !ffi::BDSNAP_REQ_POLLED & !ffi::BDSNAP_REQ_NOWAIT;
            (*bio).bi_end_io = Some(child_end::<C>);
            (*bio).bi_private = done.into_foreign();
            submit_own(bio);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the clone is ours.
        unsafe { bindings::bio_put(self.bio.as_ptr()) };
    }
}

/// The end of a child.
///
/// # Safety
///
/// Called by the block layer with a bio that [`Child::submit`] submitted.
unsafe extern "C" fn child_end<C: ChildDone>(bio: *mut bindings::bio) {
    // SAFETY: `bi_private` is the box that `submit()` gave away, the bio the clone.
    unsafe {
        let done = <Pin<KBox<C>> as ForeignOwnable>::from_foreign((*bio).bi_private);
        let status = if (*bio).bi_status == 0 {
            Ok(())
        } else {
            Err(EIO)
        };
        bindings::bio_put(bio);
        C::child_done(done, status);
    }
}
