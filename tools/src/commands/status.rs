//! `bdsnap status`.

use crate::output;
use crate::output::row;
use bdsnap::abi;
use bdsnap::blockdev::Sysfs;
use bdsnap::device::Control;
use bdsnap::device::DevNum;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::size::human;
use bdsnap::state;
use bdsnap::state::Origin;
use bdsnap::state::Snapshot;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `status`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  bdsnap status\n  bdsnap --json status /dev/vdb1")]
pub struct Args {
    /// Show only these tracked devices and their snapshots.
    #[arg(value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Prints what there is.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let sysfs = Sysfs::default();
    let control = Control::open()?;
    let version = control.version().map_err(|e| e.on(abi::DEVICE))?;
    let mut snapshots = state::snapshots(&control)?;
    let mut origins = state::origins(&control, &snapshots)?;
    let devices = args.devices.iter();
    let devices = devices.map(|path| state::find_origin(&sysfs, &origins, path));
    let devices = devices.collect::<Result<Vec<_>>>()?;
    if !devices.is_empty() {
        for (num, path) in &devices {
            if !origins.iter().any(|o| o.num == *num) {
                return Err(Error::not_found(format!("{path} is not tracked"))
                    .code("not-tracked")
                    .hint("bdsnap track starts it"));
            }
        }
        let wanted = |num: DevNum| devices.iter().any(|d| d.0 == num);
        origins.retain(|o| wanted(o.num));
        snapshots.retain(|s| s.devices.iter().any(|v| wanted(v.origin)));
    }
    let release = abi::text(&version.release);
    let hook = if version.hook == 0 {
        "absent"
    } else {
        "active"
    };
    if json {
        output::json(&json!({
            "version": release,
            "abi": version.abi,
            "tool": env!("CARGO_PKG_VERSION"),
            "hook": hook,
            "devices": origins,
            "snapshots": snapshots,
        }));
    } else {
        output::line(format!("bdsnap {release}, hook {hook}"));
        print_origins(&origins);
        print_snapshots(&snapshots);
    }
    Ok(())
}

fn print_origins(origins: &[Origin]) {
    if origins.is_empty() {
        return output::line("nothing is tracked");
    }
    let head = [
        "DEVICE",
        "SIZE",
        "BLOCK",
        "NUMBER",
        "STATE",
        "SNAPSHOTS",
        "COPIED",
        "GENERATION",
    ];
    let mut rows = vec![row(head)];
    rows.extend(origins.iter().map(|o| {
        row([
            &o.device,
            &human(o.size),
            &human(u64::from(o.block_size)),
            &o.number.to_string(),
            o.state,
            &o.snapshots.len().to_string(),
            &human(o.bytes_copied),
            &o.generation.to_string(),
        ])
    }));
    output::line("");
    output::table(&rows);
}

/// The list of snapshots for people, one line a version.
pub fn print_snapshots(snapshots: &[Snapshot]) {
    if snapshots.is_empty() {
        return;
    }
    let head = [
        "SNAPSHOT", "CREATED", "STATE", "STORE", "DEVICE", "NUMBER", "IMAGE",
    ];
    let mut rows = vec![row(head)];
    for snapshot in snapshots {
        let fill = snapshot.store;
        let mut store = format!("{} of {}", human(fill.used), human(fill.limit));
        if let Some(seconds) = fill.full_in.filter(|_| snapshot.state == "ok") {
            store += &format!(", full in {seconds} s");
        }
        let state = match snapshot.error {
            Some(error) => format!("{} ({error})", snapshot.state),
            None => snapshot.state.to_owned(),
        };
        for (i, version) in snapshot.devices.iter().enumerate() {
            let once = |text: String| if i == 0 { text } else { String::new() };
            rows.push(row([
                &once(snapshot.id.to_string()),
                &once(snapshot.created.clone()),
                &once(state.clone()),
                &once(store.clone()),
                &version.device,
                &version.number.to_string(),
                &version.image,
            ]));
        }
    }
    output::line("");
    output::table(&rows);
}
