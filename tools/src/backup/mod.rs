//! Backups: for each device a chain of qcow2 files in a directory of its own.
//!
//! The first point of a chain is full, the next ones hold what changed since the point before
//! them, which is their backing file. A point is written under the name `….partial`, synced, and
//! renamed only when the image it was read from is known to be good; then it is entered into
//! `manifest.json`. What is not in the manifest does not exist: it is removed at the next run.
//!
//! - [`chain`]: the directory and its manifest
//! - [`qcow2`]: writing a point and reading a chain, with the `imago` crate
//! - [`source`]: what is backed up
//! - [`copy`]: the work on one device
//! - [`session`]: a snapshot of several devices and the backup of all of them

pub mod buffer;
pub mod chain;
pub mod copy;
pub mod qcow2;
pub mod session;
pub mod source;

/// Told how far a long copy is. All methods may do nothing.
pub trait Progress: Sync {
    /// A copy of `total` bytes begins; `what` is for people.
    fn begin(&self, what: &str, total: u64);
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);
    /// The copy is over, well or not.
    fn end(&self);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
}
