//! Makes a file a store's, and keeps it so until its standard input ends: the file has a name still,
//! so that others may try what they like. Says "held" when that is so.

use bdsnap_tests::abi;
use clap::Parser;
use std::fs::OpenOptions;
use std::io::Read;

/// Hands a file to the kernel as a store, until standard input ends.
#[derive(Parser)]
struct Cli {
    /// A file, fallocated.
    file: String,
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| {
        let open = |path: &str| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.map_err(|e| format!("{path}: {e}"))
        };
        let (control, file) = (open(abi::DEVICE)?, open(&cli.file)?);
        abi::make_store(&control, &file)?;
        drop(file);
        println!("held");
        let ended = std::io::stdin().read_to_end(&mut Vec::new());
        ended.map(|_| ()).map_err(|e| e.to_string())
    });
}
