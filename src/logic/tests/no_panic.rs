// SPDX-License-Identifier: GPL-2.0
//! No function of the crate can panic: compiled as the kernel build does it, nothing refers to
//! `core::panicking`.

use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// The compiler that belongs to the cargo that runs this test.
fn rustc() -> PathBuf {
    if let Some(rustc) = env::var_os("RUSTC") {
        return rustc.into();
    }
    env::var_os("CARGO")
        .map(|cargo| Path::new(&cargo).with_file_name("rustc"))
        .filter(|rustc| rustc.exists())
        .unwrap_or_else(|| "rustc".into())
}

/// Compiles with what of the kernel's flags matters here.
fn compile(source: &Path, name: &str, args: &[&str]) {
    let status = Command::new(rustc())
        .args(["--edition=2021", "--crate-type=rlib", "--crate-name", name])
        .args([
            "-Copt-level=2",
            "-Cdebug-assertions=n",
            "-Coverflow-checks=y",
        ])
        .args(["-Cpanic=abort", "-Ccodegen-units=1"])
        .args(args)
        .arg(source)
        .status()
        .expect("rustc can be run");
    assert!(status.success(), "{name} does not compile");
}

/// Whether the file holds the text.
fn holds(file: &str, text: &str) -> bool {
    let bytes = fs::read(file).expect("the compiler wrote it");
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[test]
fn nothing_refers_to_panicking() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = env!("CARGO_TARGET_TMPDIR");
    let rlib = format!("{out}/libbdsnap_logic.rlib");
    let objects = [format!("{out}/logic.o"), format!("{out}/uses.o")];

    let lib = root.join("lib.rs");
    compile(&lib, "bdsnap_logic", &["-o", &rlib]);
    compile(&lib, "bdsnap_logic", &["--emit=obj", "-o", &objects[0]]);
    let external = format!("bdsnap_logic={rlib}");
    let args = ["--extern", &external, "--emit=obj", "-o", &objects[1]];
    compile(&root.join("tests/no_panic/uses.rs"), "uses", &args);

    // The names of the symbols can be read in the object, and all are there.
    for name in [
        "units",
        "range",
        "bits",
        "cbt",
        "kind",
        "granule",
        "extent",
        "extent_map",
        "fill",
        "order",
        "stretch",
    ] {
        assert!(
            holds(&objects[1], &format!("4uses{}{name}", name.len())),
            "{name}"
        );
    }
    for object in &objects {
        assert!(!holds(object, "panicking"), "nm -uC {object}");
    }
}

#[test]
fn a_panic_would_be_noticed() {
    let out = env!("CARGO_TARGET_TMPDIR");
    let (source, object) = (format!("{out}/bad.rs"), format!("{out}/bad.o"));
    let code = "#![no_std] #[inline(never)] pub fn bad(list: &[u8], at: usize) -> u8 { list[at] }";
    fs::write(&source, code).expect("the directory exists");
    compile(Path::new(&source), "bad", &["--emit=obj", "-o", &object]);
    assert!(holds(&object, "panicking"));
}
