// SPDX-License-Identifier: GPL-2.0
//! Histories of an origin and its snapshots that libFuzzer makes up, each image compared byte by byte
//! with a full copy: the model that `tests/granule.rs` feeds with random ones.

#![no_main]

#[path = "../tests/history/mod.rs"]
mod history;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| history::play(history::decode(bytes)));
