//! `bdsnap restore`.

use super::progress::Bar;
use crate::output;
use bdsnap::backup::session::find_chain;
use bdsnap::error::Result;
use bdsnap::restore::restore;
use bdsnap::signals::Signals;
use bdsnap::size::human;
use std::path::PathBuf;

/// Arguments of `restore`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  bdsnap restore /backup/host1 --device vdb1 --to /dev/vdd
  bdsnap restore /backup/host1/vdb1 --point 1 --to disk.raw

A device must be large enough and not in use; all that is on it is lost. A file must be new; it will
be sparse. Needs neither the module nor the original device.")]
pub struct Args {
    /// The directory of a backup, or of one device in it.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Which device, where DIR has several: the name of its directory, or its path.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Which point. Default: the last.
    #[arg(long, value_name = "N")]
    point: Option<u64>,
    /// A block device or a new file.
    #[arg(long, value_name = "DEV|FILE")]
    to: PathBuf,
}

/// Writes it back.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let chain = find_chain(&args.dir, args.device.as_deref())?;
    let signals = Signals::install()?;
    let done = restore(&chain, args.point, &args.to, &Bar::new(), &signals)?;
    if json {
        output::json(&done);
    } else {
        output::line(format!(
            "{}: point {} of {} ({}), {} restored, {} of it data, in {:.1} s",
            done.target.display(),
            done.point,
            done.device,
            done.created,
            human(done.size),
            human(done.bytes_written),
            done.seconds
        ));
    }
    Ok(())
}
