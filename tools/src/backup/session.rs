//! A backup of several devices from one snapshot.

use super::chain::Chain;
use super::chain::Lock;
use super::copy::back_up;
use super::copy::Summary;
use super::source::Image;
use super::Progress;
use crate::blockdev::Sysfs;
use crate::device::Control;
use crate::error::Error;
use crate::error::Result;
use crate::signals::Signals;
use crate::snapshot;
use crate::snapshot::Created;
use crate::snapshot::Request;
use serde::Serialize;
use std::path::Path;
use std::path::PathBuf;
use uuid::Uuid;

/// What [`run`] is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the snapshot is taken, and of what.
    pub request: Request,
    /// Where the chains are; made where it is missing.
    pub to: PathBuf,
    /// Full points, whatever there is.
    pub full: bool,
    /// Leave the snapshot there in the end.
    pub keep_snapshot: bool,
}

/// What a backup did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The snapshot that was read.
    pub snapshot: Uuid,
    /// It is still there.
    pub snapshot_kept: bool,
    /// When it was cut, RFC 3339.
    pub created: String,
    /// For how long file systems were frozen, milliseconds.
    pub freeze_ms: f64,
    /// For how long writes were held, milliseconds.
    pub gate_ms: f64,
    /// Bytes of the store in use at the end, of `store_capacity`.
    pub store_used: u64,
    /// Bytes of the store.
    pub store_capacity: u64,
    /// Each device.
    pub devices: Vec<Summary>,
    /// What went wrong beside the backup.
    pub warnings: Vec<String>,
}

/// Takes a snapshot of the devices and backs them up one after the other; `taken` is called in
/// between. The snapshot goes in the end, also if this process is killed, unless it shall be
/// kept. Where one device fails, the points of those before it stay.
pub fn run(
    control: &Control,
    options: &Options,
    progress: &dyn Progress,
    signals: &Signals,
    taken: impl FnOnce(&Created),
) -> Result<Report> {
    // Wrong devices shall not make a directory.
    snapshot::resolve(&Sysfs::default(), &options.request.devices)?;
    let _lock = Lock::take(&options.to)?;
    let created = snapshot::create(control, &options.request, signals)?;
    taken(&created);
    let result = devices(control, options, &created, progress, signals);
    let snapshots = crate::state::snapshots(control)?;
    let used = snapshots
        .iter()
        .find(|s| s.id == created.id)
        .map(|s| s.store.used);
    let keep = options.keep_snapshot && result.is_ok();
    let ended = if keep {
        control.snapshot_keep(created.id)
    } else {
        snapshot::delete(control, created.id, false)
    };
    let devices = result?;
    let mut warnings = created.warnings.clone();
    match ended {
        Err(e) if keep => return Err(e.on(created.id)),
        // It ends with this process at the latest.
        Err(e) => warnings.push(e.on(created.id).message),
        Ok(()) => {}
    }
    Ok(Report {
        snapshot: created.id,
        snapshot_kept: keep,
        created: created.created,
        freeze_ms: created.freeze_ms,
        gate_ms: created.gate_ms,
        store_used: used.unwrap_or(0),
        store_capacity: created.store.capacity,
        devices,
        warnings,
    })
}

fn devices(
    control: &Control,
    options: &Options,
    created: &Created,
    progress: &dyn Progress,
    signals: &Signals,
) -> Result<Vec<Summary>> {
    let sysfs = Sysfs::default();
    let mut summaries = Vec::with_capacity(created.devices.len());
    for device in &created.devices {
        let name = sysfs.dm_name(device.origin.num);
        let name = name.unwrap_or_else(|| device.origin.name.clone());
        let dir = options.to.join(directory(&name));
        let mut chain = Chain::open(&dir, &device.device)?;
        let image = Image::open(control, created, device)?;
        summaries.push(back_up(
            &image,
            &mut chain,
            options.full,
            progress,
            signals,
        )?);
    }
    Ok(summaries)
}

/// The name of a device's directory.
fn directory(name: &str) -> String {
    let name = name.replace(['/', '!'], "-");
    // A device-mapper name may be anything; a leading dot would be hidden, or "..".
    match name.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None => name,
    }
}

/// Finds the chain in `dir`: `dir` itself, or the one in it, or that of `device` (a directory's
/// name or a device's path) where there are several.
pub fn find_chain(dir: &Path, device: Option<&str>) -> Result<Chain> {
    if device.is_none() && dir.join("manifest.json").exists() {
        return Chain::read(dir);
    }
    let list = std::fs::read_dir(dir)
        .map_err(|e| Error::io(format!("no backup: can't read {}", dir.display()), e))?;
    let mut found = Vec::new();
    for entry in list.flatten() {
        if !entry.path().join("manifest.json").exists() {
            continue;
        }
        let chain = Chain::read(&entry.path())?;
        let name = entry.file_name();
        if device.is_none_or(|d| d == chain.device() || name == *d) {
            found.push((name, chain));
        }
    }
    match (found.pop(), found.last()) {
        (Some((_, chain)), None) => Ok(chain),
        (Some((last, _)), Some(_)) => {
            let mut names: Vec<_> = found.iter().map(|(n, _)| n.to_string_lossy()).collect();
            names.push(last.to_string_lossy());
            names.sort();
            Err(Error::usage(format!(
                "{} holds backups of several devices: {}",
                dir.display(),
                names.join(", ")
            ))
            .hint("choose one with --device NAME"))
        }
        (None, _) => Err(Error::not_found(match device {
            Some(device) => format!("{} holds no backup of {device}", dir.display()),
            None => format!("{} holds no backup", dir.display()),
        })
        .code("no-backup")),
    }
}
