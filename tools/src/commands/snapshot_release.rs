//! `bdsnap snapshot release`.

use crate::output;
use bdsnap::blockdev::Sysfs;
use bdsnap::device::Control;
use bdsnap::device::DevNum;
use bdsnap::error::Error;
use bdsnap::error::Kind;
use bdsnap::error::Result;
use bdsnap::size::human;
use bdsnap::size::parse_ranges;
use bdsnap::state;
use rustix::io::Errno;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `snapshot release`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  bdsnap snapshot release /dev/bdsnap-image0 --range 0:64M

What is released is not copied any more when it is overwritten, and its place in the store is free again.
It reads as zeros from then on, so an image that is mounted, or that others read, is no good for this.")]
pub struct Args {
    /// An image.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Ranges that have been read and are not needed any more, START:LEN; narrowed to whole granules.
    #[arg(long, required = true, value_name = "START:LEN", num_args = 1..)]
    range: Vec<String>,
}

/// Releases all the ranges, or none where one is bad.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let ranges = parse_ranges(&args.range)?;
    let sysfs = Sysfs::default();
    let image = sysfs.resolve(&args.image)?;
    let control = Control::open()?;
    let before = released(&control, image.num)?;
    control
        .snapshot_release(image.num, &ranges)
        .map_err(|e| match e.errno {
            Errno::INVAL => Error::usage(format!(
                "snapshot release: a range ends beyond {} ({} bytes)",
                image.path(),
                sysfs.size(image.num).unwrap_or(0)
            ))
            .code("range"),
            Errno::NOENT => Error::not_found(format!(
                "snapshot release: {} is no image of a snapshot",
                image.path()
            ))
            .code("no-image")
            .hint("bdsnap snapshot list shows the images"),
            Errno::IO => Error::new(
                Kind::Damaged,
                format!(
                    "snapshot release: the snapshot of {} has failed",
                    image.path()
                ),
            )
            .code("damaged"),
            Errno::TIMEDOUT => Error::busy(format!(
                "snapshot release: the store of {}, or its origin, does not answer",
                image.path()
            ))
            .code("store-stalled")
            .hint("what comes after the place where that is may not be released; try again"),
            _ => e.on(image.path()),
        })?;
    let bytes = released(&control, image.num)?.saturating_sub(before);
    if json {
        output::json(&json!({"image": image.path(), "ranges": ranges.len(), "bytes": bytes}));
    } else {
        output::line(format!("{}: {} released", image.path(), human(bytes)));
    }
    Ok(())
}

/// Bytes of an image that have been released, by whomever.
fn released(control: &Control, image: DevNum) -> Result<u64> {
    let snapshots = state::snapshots(control)?;
    let mut versions = snapshots.iter().flat_map(|s| &s.devices);
    let version = versions.find(|v| v.image_num == image);
    Ok(version.map_or(0, |v| v.bytes_released))
}
