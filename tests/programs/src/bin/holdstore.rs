//! Makes a file a store's, and keeps it so until its standard input ends: the file has a name still,
//! so that others may try what they like. Says "held" when that is so.

use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::sys;
use clap::Parser;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::AsRawFd;

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
        let mut room = vec![0u8; 4096 * abi::FIEMAP_EXTENT as usize];
        let mut a = abi::STORE_ADD
            .arg()
            .u32(at::STORE_KIND, abi::KIND_FILE)
            .u32(at::STORE_FD, file.as_raw_fd() as u32)
            .u64(at::STORE_BUFFER, room.as_mut_ptr() as u64)
            .u32(at::STORE_EXTENTS, 4096);
        let failed = |e| format!("STORE_ADD: {}", sys::errno_name(e));
        a.call(&control).map_err(failed)?;
        drop(file);
        println!("held");
        let ended = std::io::stdin().read_to_end(&mut Vec::new());
        ended.map(|_| ()).map_err(|e| e.to_string())
    });
}
