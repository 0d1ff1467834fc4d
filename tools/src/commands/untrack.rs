//! `bdsnap untrack`.

use crate::output;
use bdsnap::blockdev::Sysfs;
use bdsnap::device::Control;
use bdsnap::device::DevNum;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::state;
use rustix::io::Errno;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `untrack`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  bdsnap untrack /dev/vdb1\n  bdsnap untrack --all --force")]
pub struct Args {
    /// Tracked devices.
    #[arg(
        value_name = "DEV",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    devices: Vec<PathBuf>,
    /// All tracked devices.
    #[arg(long)]
    all: bool,
    /// Delete their snapshots first.
    #[arg(long)]
    force: bool,
}

/// Stops tracking of all the devices; refused where one of them is not tracked or has snapshots.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let control = Control::open()?;
    let snapshots = state::snapshots(&control)?;
    let origins = state::origins(&control, &snapshots)?;
    let devices: Vec<(DevNum, String)> = if args.all {
        origins
            .iter()
            .rev()
            .map(|o| (o.num, o.device.clone()))
            .collect()
    } else {
        let sysfs = Sysfs::default();
        let found = args.devices.iter();
        let found = found.map(|path| state::find_origin(&sysfs, &origins, path));
        found.collect::<Result<_>>()?
    };
    // All or none, as far as that can be told beforehand.
    for (num, path) in &devices {
        let origin = origins
            .iter()
            .find(|o| o.num == *num)
            .ok_or_else(|| not_tracked(path))?;
        if !args.force && !origin.snapshots.is_empty() {
            return Err(busy(path));
        }
    }
    let mut done = Vec::new();
    let mut failure = None;
    for (num, path) in devices {
        match control.untrack(num, args.force) {
            Ok(()) => done.push(path),
            Err(error) => {
                let error = match error.errno {
                    Errno::BUSY if !args.force => busy(&path),
                    Errno::BUSY => Error::busy(format!(
                        "untrack: an image of {path} is open (or writes in flight)"
                    ))
                    .hint("unmount and close it, or `bdsnap snapshot delete --force` its snapshot"),
                    Errno::NOENT => not_tracked(&path),
                    _ => error.on(&path),
                };
                failure.get_or_insert(error);
            }
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    if json {
        output::json(&json!({"devices": done}));
    } else {
        for path in done {
            output::line(format!("{path}: not tracked any more"));
        }
    }
    Ok(())
}

/// It was not tracked.
fn not_tracked(path: &str) -> Error {
    Error::not_found(format!("untrack: {path} is not tracked")).code("not-tracked")
}

/// It has snapshots, or can't be drained.
fn busy(path: &str) -> Error {
    Error::busy(format!(
        "untrack: {path} has snapshots (or writes in flight)"
    ))
    .hint("delete its snapshots, or use --force")
}
