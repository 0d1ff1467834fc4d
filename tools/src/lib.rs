//! bdsnap: live backup of Linux block devices, without a reboot or a remapping.
//!
//! This is the user-space side of the `bdsnap` kernel module, usable by backup software; the
//! `bdsnap` tool is a thin command line on top of it.
//!
//! - [`abi`], [`ioctl`], [`device`]: the module's ioctls; everything else builds on
//!   [`device::Control`].
//! - [`blockdev`], [`mounts`], [`stack`], [`freeze`], [`fsmap`], [`store`], [`hooks`], [`signals`]: what a
//!   snapshot needs from the machine.
//! - [`tracking`], [`snapshot`], [`state`], [`events`], [`service`], [`changes`]: doing it, looking at
//!   what there is and happens, what makes stores grow, what changed.
//! - [`backup`], [`restore`]: chains of qcow2 files.
//! - [`error`], [`cause`], [`size`]: what is told to people and scripts.
//!
//! Sizes and offsets are bytes throughout. All `unsafe` is in [`ioctl`].

#![deny(unsafe_code)]

pub mod abi;
pub mod backup;
pub mod blockdev;
pub mod cause;
pub mod changes;
pub mod device;
pub mod error;
pub mod events;
pub mod freeze;
pub mod fsmap;
pub mod hooks;
#[allow(unsafe_code)]
pub mod ioctl;
pub mod mounts;
pub mod paths;
pub mod restore;
pub mod service;
pub mod signals;
pub mod size;
pub mod snapshot;
pub mod stack;
pub mod state;
pub mod store;
pub mod tracking;

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
