// SPDX-License-Identifier: GPL-2.0
//! The pure decisions of `bdsnap.ko`.
//!
//! State goes in, decisions come out: no I/O, no locks, no allocation, no clock. The crate is
//! compiled twice from these files, into the kernel module and by cargo on the host, where it is
//! tested. No function of it can panic.
#![no_std]
#![forbid(unsafe_code)]

pub mod bits;
pub mod calls;
pub mod cbt;
pub mod extent;
pub mod extent_map;
pub mod fill;
pub mod granule;
pub mod kind;
pub mod order;
pub mod passthrough;
pub mod range;
mod sort;
pub mod stretch;
pub mod units;
