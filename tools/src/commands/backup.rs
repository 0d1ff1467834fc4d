//! `bdsnap backup`.

use super::progress::Bar;
use super::snapshot_create::report;
use crate::cli::SnapshotArgs;
use crate::output;
use crate::output::row;
use bdsnap::backup::session;
use bdsnap::backup::session::Options;
use bdsnap::device::Control;
use bdsnap::error::Result;
use bdsnap::signals::Signals;
use bdsnap::size::human;
use std::path::PathBuf;

/// Arguments of `backup`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  bdsnap backup /dev/vdb1 /dev/vdc --to /backup/host1
  qemu-img convert -O raw /backup/host1/vdb1/point-0002.qcow2 disk.raw

Each device gets a directory in DIR: point-0001.qcow2 and so on, and manifest.json. A full point is
taken first, and whenever change tracking can't tell what changed; else what changed since the last
point, whose file is the backing file. What was discarded meanwhile (fstrim) is stored as zeros without
being read. Interrupted, it leaves the chain as it was.")]
pub struct Args {
    /// Block devices; what is not tracked yet will be.
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
    /// Where the backups are; made where it is missing.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Take full points, whatever there is.
    #[arg(long)]
    full: bool,
    /// Don't delete the snapshot in the end.
    #[arg(long)]
    keep_snapshot: bool,
    #[command(flatten)]
    snapshot: SnapshotArgs,
}

/// Takes a snapshot and backs it up.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let options = Options {
        request: args.snapshot.request(&args.devices)?,
        to: args.to.clone(),
        full: args.full,
        keep_snapshot: args.keep_snapshot,
    };
    let control = Control::open()?;
    let signals = Signals::install()?;
    let done = session::run(&control, &options, &Bar::new(), &signals, report)?;
    if json {
        output::json(&done);
        return Ok(());
    }
    let mut rows = vec![row([
        "DEVICE", "POINT", "KIND", "CHANGED", "WRITTEN", "SECONDS", "WHY",
    ])];
    for device in &done.devices {
        let kind = match device.kind {
            bdsnap::backup::chain::PointKind::Full => "full",
            bdsnap::backup::chain::PointKind::Incremental => "incremental",
        };
        let why = match device.discarded_bytes {
            0 => device.reason.clone(),
            bytes => format!("{} ({} of it discarded)", device.reason, human(bytes)),
        };
        rows.push(row([
            &device.device,
            &device.file.display().to_string(),
            kind,
            &human(device.changed_bytes),
            &human(device.bytes_written),
            &format!("{:.1}", device.seconds),
            &why,
        ]));
    }
    output::table(&rows);
    if done.snapshot_kept {
        output::line(format!("snapshot {} is kept", done.snapshot));
    }
    Ok(())
}
