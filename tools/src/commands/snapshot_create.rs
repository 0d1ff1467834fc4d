//! `bdsnap snapshot create`.

use crate::cli::SnapshotArgs;
use crate::output;
use crate::output::row;
use bdsnap::device::Control;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::signals::Signals;
use bdsnap::size::human;
use bdsnap::snapshot;
use bdsnap::snapshot::Created;
use bdsnap::snapshot::Request;
use bdsnap::snapshot::Since;
use std::path::PathBuf;
use uuid::Uuid;

/// Arguments of `snapshot create`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  bdsnap snapshot create /dev/vdb1 /dev/vdc
  bdsnap --json snapshot create /dev/vg/db --store file:/var/lib/bdsnap,size=4G --hooks /etc/bdsnap
  bdsnap snapshot create /dev/vdb --since 12
  bdsnap snapshot create /dev/vdb --store mem:512M --store dev:/dev/vdd --store file:/var/lib/bdsnap,size=2G

Hooks get pre-freeze or post-thaw as argument, and BDSNAP_DEVICES, BDSNAP_STAGE and (post-thaw)
BDSNAP_RESULT (ok or failed) in the environment. One that fails before the freeze ends the attempt;
whichever was called before is called again afterwards, in reverse order.")]
pub struct Args {
    /// Block devices; what is not tracked yet will be.
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
    /// Keep only what changed after snapshot N of the device, for an incremental backup: the rest of
    /// the image reads as zeros. Of one device only.
    #[arg(long, value_name = "N")]
    since: Option<u64>,
    /// The generation that N belongs to; without it the present one.
    #[arg(long, value_name = "UUID", requires = "since")]
    generation: Option<Uuid>,
    #[command(flatten)]
    snapshot: SnapshotArgs,
}

impl Args {
    /// What is asked for.
    pub fn request(&self) -> Result<Request> {
        let request = self.snapshot.request(&self.devices)?;
        if self.since.is_some() && self.devices.len() != 1 {
            return Err(
                Error::usage("--since is for one device: each counts its own")
                    .code("since")
                    .hint("bdsnap backup does this for several devices at once"),
            );
        }
        let since = self.since.map(|number| Since {
            number,
            generation: self.generation,
            or_all: false,
        });
        Ok(Request {
            since: vec![since],
            ..request
        })
    }
}

/// Takes the snapshot and keeps it.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let request = args.request()?;
    let control = Control::open()?;
    let signals = Signals::install()?;
    let created = snapshot::create(&control, &request, &signals)?;
    // A signal up to here ends the snapshot with the process.
    signals.check()?;
    control
        .snapshot_keep(created.id)
        .map_err(|e| e.on(created.id))?;
    report(&created);
    if json {
        output::json(&created);
    } else {
        output::line(format!("snapshot {}", created.id));
        let mut rows = vec![row(["DEVICE", "IMAGE", "SIZE", "NUMBER"])];
        rows.extend(
            created
                .devices
                .iter()
                .map(|d| row([&d.device, &d.image, &human(d.size), &d.number.to_string()])),
        );
        output::table(&rows);
    }
    Ok(())
}

/// Says on standard error how long it took, and what went wrong beside it.
pub fn report(created: &Created) {
    eprintln!(
        "bdsnap: {} file system(s) frozen for {:.1} ms, writes held for {:.1} ms, store of {}",
        created.frozen.len(),
        created.freeze_ms,
        created.gate_ms,
        human(created.store.capacity)
    );
    for device in &created.devices {
        if let Some(since) = device.since {
            eprintln!(
                "bdsnap: {} has only what changed after snapshot {since}",
                device.image
            );
        }
    }
    for warning in &created.warnings {
        eprintln!("bdsnap: warning: {warning}");
    }
}
