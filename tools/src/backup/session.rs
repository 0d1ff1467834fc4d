//! A backup of several devices from one snapshot.

use super::chain::Chain;
use super::chain::Lock;
use super::copy;
use super::copy::back_up;
use super::copy::Summary;
use super::source::Image;
use super::Progress;
use crate::blockdev::BlockDevice;
use crate::blockdev::Sysfs;
use crate::device::Control;
use crate::error::Error;
use crate::error::Result;
use crate::signals::Signals;
use crate::snapshot;
use crate::snapshot::Created;
use crate::snapshot::CreatedDevice;
use crate::snapshot::Request;
use crate::snapshot::Since;
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
    let sysfs = Sysfs::default();
    let found = snapshot::resolve(&sysfs, &options.request.devices)?;
    let mut dirs: Vec<PathBuf> = found
        .iter()
        .map(|d| chain_dir(&sysfs, options, d))
        .collect();
    dirs.sort();
    if let Some(twice) = dirs.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::usage(format!(
            "two of the devices would be backed up into {}",
            twice[0].display()
        ))
        .hint("back them up into different directories"));
    }
    let _lock = Lock::take(&options.to)?;
    let mut request = options.request.clone();
    // All chains are good, or nothing is begun.
    let chains = found
        .iter()
        .map(|d| Chain::peek(&chain_dir(&sysfs, options, d), &d.path()))
        .collect::<Result<Vec<_>>>()?;
    // Who wants to keep the snapshot wants all of it.
    if !options.full && !options.keep_snapshot {
        let since = |chain: &Chain| {
            let base = copy::base(chain)?;
            Some(Since {
                number: base.number,
                generation: Some(base.generation),
                or_all: true,
            })
        };
        request.since = chains.iter().map(since).collect();
    }
    let created = snapshot::create(control, &request, signals)?;
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
    let mut summaries: Vec<Summary> = Vec::with_capacity(created.devices.len());
    let back_up = |device: &CreatedDevice| {
        let dir = chain_dir(&sysfs, options, &device.origin);
        let mut chain = Chain::open(&dir, &device.device)?;
        let image = Image::open(control, created, device, !options.keep_snapshot)?;
        back_up(&image, &mut chain, options.full, progress, signals)
    };
    for device in &created.devices {
        let done = back_up(device).map_err(|mut error| {
            // Whose points are there, and stay.
            let made: Vec<&str> = summaries.iter().map(|s| s.device.as_str()).collect();
            if created.devices.len() > 1 {
                error.message = match made.as_slice() {
                    [] => format!("{}; no device was backed up", error.message),
                    some => format!("{}; only {} was backed up", error.message, some.join(", ")),
                };
            }
            error
        });
        summaries.push(done?);
    }
    Ok(summaries)
}

/// Where the chain of a device is.
fn chain_dir(sysfs: &Sysfs, options: &Options, device: &BlockDevice) -> PathBuf {
    let name = sysfs.dm_name(device.num);
    let name = name.unwrap_or_else(|| device.name.clone());
    options.to.join(directory(&name))
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
    let mut problem = None;
    for entry in list.flatten() {
        if !entry.path().join("manifest.json").exists() {
            continue;
        }
        let name = entry.file_name();
        match Chain::read(&entry.path()) {
            Ok(chain) if device.is_none_or(|d| d == chain.device() || name == *d) => {
                found.push((name, chain));
            }
            Ok(_) => {}
            // It matters only if it may be the one that is meant.
            Err(e) if device.is_none_or(|d| name == *d) => return Err(e),
            Err(e) => problem = Some(e),
        }
    }
    if let (true, Some(problem)) = (found.is_empty(), problem) {
        return Err(problem);
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
