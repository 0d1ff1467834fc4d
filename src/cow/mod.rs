// SPDX-License-Identifier: GPL-2.0

//! Copy-on-write: versions, their chain, and the copying.
//!
//! A write whose granules some version still needs is held; the worker reads the old data, lets
//! the write go as soon as it is in memory, and writes the data to the store afterwards. All
//! decisions about granules are [`bdsnap_logic::granule`]'s.

mod bits;
mod chain;
mod extents;
mod free;
mod heir;
mod release;
mod remove;
mod version;
mod watch;
mod worker;

pub(crate) use bits::Bits;
pub(crate) use chain::reserve;
pub(crate) use chain::versions;
pub(crate) use chain::Chain;
pub(crate) use chain::Found;
pub(crate) use free::differences;
pub(crate) use free::Free;
pub(crate) use free::Recorder;
pub(crate) use free::Spared;
pub(crate) use release::release;
pub(crate) use remove::remove;
pub(crate) use version::Damage;
pub(crate) use version::Version;
pub(crate) use version::Versions;
pub(crate) use watch::watch;
pub(crate) use worker::settle;
pub(crate) use worker::store;
pub(crate) use worker::unneeded;
pub(crate) use worker::work;
