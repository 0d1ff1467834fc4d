// SPDX-License-Identifier: GPL-2.0

//! What bindgen made of `bindings.h`: private to [`crate::kapi`].

#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    improper_ctypes,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

include!(concat!(
    env!("BDSNAP_GEN"),
    "/src/ffi/bindings_generated.rs"
));
