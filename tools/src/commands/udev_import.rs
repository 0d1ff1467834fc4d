//! `bdsnap udev-import`: for a udev rule that names images.

use crate::output;
use bdsnap::blockdev::Sysfs;
use bdsnap::device::Control;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::state;
use std::path::PathBuf;

/// Arguments of `udev-import`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  IMPORT{program}=\"/usr/sbin/bdsnap udev-import $devnode\"")]
pub struct Args {
    /// The node of an image.
    #[arg(value_name = "DEVNODE")]
    node: PathBuf,
}

/// Prints `KEY=value` lines as udev imports them.
pub fn run(args: &Args) -> Result<()> {
    let image = Sysfs::default().resolve(&args.node)?;
    let snapshots = state::snapshots(&Control::open()?)?;
    for snapshot in &snapshots {
        if let Some(version) = snapshot.devices.iter().find(|v| v.image_num == image.num) {
            output::line(format!("BDSNAP_SNAPSHOT={}", snapshot.id));
            output::line(format!("BDSNAP_ORIGIN={}", version.name));
            return Ok(());
        }
    }
    Err(Error::not_found(format!("{} is no image of a snapshot", image.path())).code("no-image"))
}
