// SPDX-License-Identifier: GPL-2.0

//! Safe Rust over the C of the kernel: one file for one concept, no policy.
//!
//! Together with [`crate::ffi`] the only room with `unsafe`.

pub(crate) mod abi;
pub(crate) mod bdev;
pub(crate) mod bio;
pub(crate) mod disk;
pub(crate) mod file;
pub(crate) mod freeze;
mod ftrace;
pub(crate) mod global;
pub(crate) mod hook;
pub(crate) mod inflight;
pub(crate) mod noio;
pub(crate) mod pages;
pub(crate) mod power;
pub(crate) mod queue;
pub(crate) mod rcu;
pub(crate) mod run;
pub(crate) mod sentry;
pub(crate) mod slot;
pub(crate) mod stray;
pub(crate) mod stream;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;
pub(crate) mod time;
pub(crate) mod trace;
