//! `bdsnap mark`.

use crate::output;
use bdsnap::blockdev::Sysfs;
use bdsnap::device::Control;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::size::parse_ranges;
use rustix::io::Errno;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `mark`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  bdsnap mark /dev/vdb1 --range 0:64K --range 1G:4M")]
pub struct Args {
    /// A tracked device.
    #[arg(value_name = "DEV")]
    device: PathBuf,
    /// Ranges, START:LEN; widened to whole blocks of the change map.
    #[arg(long, required = true, value_name = "START:LEN", num_args = 1..)]
    range: Vec<String>,
}

/// Marks all the ranges, or none where one is bad.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let ranges = parse_ranges(&args.range)?;
    let sysfs = Sysfs::default();
    let device = sysfs.resolve(&args.device)?;
    let control = Control::open()?;
    control
        .mark(device.num, &ranges)
        .map_err(|e| match e.errno {
            Errno::INVAL => Error::usage(format!(
                "mark: a range ends beyond {} ({} bytes)",
                device.path(),
                sysfs.size(device.num).unwrap_or(0)
            ))
            .code("range"),
            Errno::NOENT => Error::not_found(format!("mark: {} is not tracked", device.path()))
                .code("not-tracked")
                .hint("bdsnap track starts it"),
            _ => e.on(device.path()),
        })?;
    if json {
        output::json(&json!({"device": device.path(), "ranges": ranges.len()}));
    } else {
        output::line(format!(
            "{}: {} range(s) marked",
            device.path(),
            ranges.len()
        ));
    }
    Ok(())
}
