//! `bdsnap free-map`: for the tool itself.

use bdsnap::device::DevNum;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::fsmap;
use std::io::BufWriter;

/// Arguments of `free-map`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  bdsnap free-map 254:16 </mnt")]
pub struct Args {
    /// The device, MAJOR:MINOR.
    device: String,
}

/// Prints what is free in the file system that standard input is on.
pub fn run(args: &Args) -> Result<()> {
    let parsed = args.device.split_once(':').and_then(|(major, minor)| {
        Some(DevNum {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    });
    let bad = || Error::usage(format!("'{}' is not MAJOR:MINOR", args.device));
    let device = parsed.ok_or_else(bad)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    fsmap::print(device, &mut out).map_err(|e| Error::io("free-map", e))
}
