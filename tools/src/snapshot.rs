//! Taking a snapshot: everything around the one kernel call.

use crate::abi;
use crate::blockdev::BlockDevice;
use crate::blockdev::Sysfs;
use crate::changes;
use crate::changes::Query;
use crate::device::CallError;
use crate::device::CallResult;
use crate::device::Control;
use crate::device::CreateOptions;
use crate::device::DevNum;
use crate::error::Error;
use crate::error::Result;
use crate::freeze;
use crate::freeze::Opened;
use crate::freeze::Target;
use crate::fsmap;
use crate::hooks::Hooks;
use crate::mounts;
use crate::mounts::Mount;
use crate::paths;
use crate::signals::Signals;
use crate::stack::Stack;
use crate::state;
use crate::state::Store;
use crate::state::Version;
use crate::store;
use crate::store::StoreSpec;
use crate::tracking::Tracking;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::mlockall;
use rustix::mm::munlockall;
use rustix::mm::MlockAllFlags;
use serde::Serialize;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;
use uuid::Uuid;

/// Whether blocks that are free in a file system are left out of the image, where they read as zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkipFree {
    /// Of ext4 and XFS directly on an origin (or a partition of it) that are frozen.
    #[default]
    Auto,
    /// The same, and it is an error if an origin has none.
    On,
    /// No: every byte of the image is the origin's, but for the store's own.
    Off,
}

/// The snapshot after which what changes is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// Its number.
    pub number: u64,
    /// The generation of the change map; `None`: any.
    pub generation: Option<Uuid>,
    /// Where that can't be had: all of the device instead of an error.
    pub or_all: bool,
}

/// What [`create`] is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The origins: block device nodes or links to them.
    pub devices: Vec<PathBuf>,
    /// Where the store goes, all of it side by side; empty: a sensible place.
    pub store: Vec<StoreSpec>,
    /// Further devices whose file systems are frozen.
    pub freeze: Vec<PathBuf>,
    /// Whether what is free in the origins' file systems is left out.
    pub skip_free: SkipFree,
    /// Bytes that are copied together, a power of two; `None`: as fits the devices.
    pub run: Option<u32>,
    /// Of each of the devices, only what changed since then; empty: all of all.
    pub since: Vec<Option<Since>>,
    /// Freeze nothing: the snapshot is what a power failure would leave.
    pub no_freeze: bool,
    /// A directory of hooks.
    pub hooks: Option<PathBuf>,
    /// Time limit for each call of a hook; `None`: [`crate::hooks::DEFAULT_TIMEOUT`].
    pub hook_timeout: Option<Duration>,
}

/// One device of a new snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct CreatedDevice {
    /// The origin's path, `/dev/vdb1`.
    pub device: String,
    /// The image's path, `/dev/bdsnap-image0`.
    pub image: String,
    /// Bytes.
    pub size: u64,
    /// Generation of the change map.
    pub generation: Uuid,
    /// Number of the cut.
    pub number: u64,
    /// The image has only what changed after this snapshot, and zeros else; `None`: all.
    pub since: Option<u64>,
    /// As the caller named it.
    #[serde(serialize_with = "paths::one")]
    pub given: PathBuf,
    /// The origin.
    #[serde(skip)]
    pub origin: BlockDevice,
    /// The image's device number.
    #[serde(skip)]
    pub image_num: DevNum,
}

/// A new snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Created {
    /// Its id.
    pub id: Uuid,
    /// When it was cut, RFC 3339.
    pub created: String,
    /// The devices, in the order that they were asked for.
    pub devices: Vec<CreatedDevice>,
    /// From the beginning of the first freeze to the end of the last thaw, milliseconds.
    pub freeze_ms: f64,
    /// For how long writes were held, milliseconds.
    pub gate_ms: f64,
    /// Mount points of the file systems that were frozen.
    #[serde(serialize_with = "paths::many")]
    pub frozen: Vec<PathBuf>,
    /// Its store.
    pub store: Store,
    /// What went wrong without spoiling the snapshot (post-thaw hooks).
    pub warnings: Vec<String>,
}

/// What is copied together, bytes: what was asked for, or what the devices make of it: a power of two from
/// the granule to [`abi::RUN_MAX`].
fn run_size(sysfs: &Sysfs, devices: &[BlockDevice], asked: Option<u32>) -> u32 {
    let largest = || devices.iter().filter_map(|d| sysfs.run_size(d.num)).max();
    let size = asked.map_or_else(|| largest().unwrap_or(0), u64::from);
    let size = size.clamp(abi::GRANULE_DEFAULT.into(), abi::RUN_MAX.into());
    // (The largest is a power of two itself.)
    size.next_power_of_two() as u32
}

/// Nanoseconds as milliseconds, to the microsecond.
fn millis(nanoseconds: u64) -> f64 {
    (nanoseconds / 1000) as f64 / 1000.0
}

/// Takes a snapshot of all the devices at one instant. It ends with `control`, unless
/// [`Control::snapshot_keep`] follows. Where it fails nothing is left changed: no file, no device
/// newly tracked, nothing frozen; post-thaw hooks have run.
pub fn create(control: &Control, request: &Request, signals: &Signals) -> Result<Created> {
    let sysfs = Sysfs::default();
    let devices = resolve(&sysfs, &request.devices)?;
    let targets = Targets::open(&sysfs, &devices, request)?;
    let paths: Vec<String> = devices.iter().map(BlockDevice::path).collect();
    let mut hooks = match &request.hooks {
        Some(dir) => {
            let timeout = request
                .hook_timeout
                .unwrap_or(crate::hooks::DEFAULT_TIMEOUT);
            Hooks::load(dir, &paths, timeout)?
        }
        None => Hooks::none(),
    };
    let total = devices.iter().filter_map(|d| sysfs.size(d.num)).sum();
    let stack = Stack::new(&sysfs, &targets.mounts, &devices);
    let materials = match request.store.as_slice() {
        [] => store::make_default(&targets.places(&stack), total)?,
        specs => store::make(&sysfs, &targets.mounts, specs, total, signals)?,
    };
    for material in &materials {
        stack.check_store(material)?;
    }
    let policy = store::policy(&request.store, &materials)?;
    let mut notes = Vec::new();
    let served = || control.is_served().map_err(|e| e.on(abi::DEVICE));
    if policy.limit > 0 && !served()? {
        notes.push(
            "nobody serves stores that grow: start `bdsnap service` (systemctl start bdsnap), or \
             this one stays as it is"
                .to_owned(),
        );
    }
    let tracking = Tracking::start(control, &devices, 0)?;
    let store = store::hand_over(control, materials, run_size(&sysfs, &devices, request.run))?;
    crate::freeze::write_back(&targets.opened);
    let order = stack.order();
    // What an attempt before this one has left does not count.
    for device in &devices {
        let _ = control.record_end(device.num);
    }
    skip_free(control, &sysfs, &devices, &targets, request.skip_free)?;
    only_changed(control, &devices, &request.since)?;
    let mut items: Vec<abi::SnapshotDevice> = order
        .iter()
        .map(|&i| abi::SnapshotDevice {
            major: devices[i].num.major,
            minor: devices[i].num.minor,
            ..Default::default()
        })
        .collect();
    let result = hooks
        .pre_freeze(signals)
        .and_then(|()| signals.check())
        .and_then(|()| {
            let fds: Vec<BorrowedFd<'_>> = targets.opened.iter().map(|o| o.fd.as_fd()).collect();
            let options = CreateOptions {
                store: store.handle,
                limit: policy.limit,
                portion: policy.portion,
                hold_ms: policy.hold_ms,
                note: &policy.note,
                ..Default::default()
            };
            cut(control, options, &mut items, &fds)
                .map_err(|e| explain(e, signals, &targets.opened, &order, &devices))
        });
    let warnings = hooks.post_thaw(result.is_ok());
    let warnings: Vec<String> = warnings.into_iter().map(|w| w.message).collect();
    let arg = match result {
        Ok(arg) => arg,
        Err(mut error) => {
            if !warnings.is_empty() {
                error.message = format!("{}; {}", error.message, warnings.join("; "));
            }
            return Err(error);
        }
    };
    notes.extend(warnings);
    tracking.keep();
    // (By the kernel's word: a generation may have begun in between.)
    let versions = control.versions(Uuid::from_bytes(arg.id));
    let versions = versions.map_err(|e| e.on(Uuid::from_bytes(arg.id)))?;
    let since = |device: &BlockDevice| {
        let mut versions = versions.iter().cloned().map(Version::from);
        let version = versions.find(|v| v.origin == device.num);
        version.and_then(|v| v.since)
    };
    let mut created: Vec<(usize, CreatedDevice)> = order
        .iter()
        .zip(&items)
        .map(|(&i, item)| (i, created_device(&devices[i], item, since(&devices[i]))))
        .collect();
    created.sort_by_key(|(i, _)| *i);
    let created: Vec<CreatedDevice> = created.into_iter().map(|(_, device)| device).collect();
    for device in &created {
        wait_for_node(&device.image);
    }
    Ok(Created {
        id: Uuid::from_bytes(arg.id),
        created: state::rfc3339(arg.created_ns),
        devices: created,
        freeze_ms: millis(arg.freeze_ns),
        gate_ms: millis(arg.gate_ns),
        frozen: targets.opened.into_iter().map(|o| o.mount_point).collect(),
        store: Store {
            capacity: store.capacity,
            used: 0,
            limit: policy.limit.max(store.capacity),
            wanted: 0,
            rate: 0,
            full_in: None,
            waiting: false,
            hold: policy.hold_ms / 1000,
        },
        warnings: notes,
    })
}

/// Finds the devices of a snapshot; each may be named once.
pub fn resolve(sysfs: &Sysfs, paths: &[PathBuf]) -> Result<Vec<BlockDevice>> {
    let mut devices: Vec<BlockDevice> = Vec::with_capacity(paths.len());
    for path in paths {
        let device = sysfs.resolve(path)?;
        if devices.iter().any(|d| d.num == device.num) {
            return Err(Error::usage(format!("{} is named twice", device.path())));
        }
        devices.push(device);
    }
    if devices.is_empty() || devices.len() > abi::MAX_DEVICES as usize {
        return Err(Error::usage(format!(
            "a snapshot has 1 to {} devices, not {}",
            abi::MAX_DEVICES,
            devices.len()
        )));
    }
    Ok(devices)
}

/// The file systems of a snapshot.
struct Targets {
    /// Those to freeze, in order.
    opened: Vec<Opened>,
    /// The same: what is known of them.
    plan: Vec<Target>,
    /// Devices and mount points of those on the origins themselves, where a store may go.
    own: Vec<(DevNum, PathBuf)>,
    /// All that is mounted.
    mounts: Vec<Mount>,
}

impl Targets {
    fn open(sysfs: &Sysfs, devices: &[BlockDevice], request: &Request) -> Result<Self> {
        let mounts = mounts::read()?;
        let mut nums: Vec<DevNum> = devices.iter().map(|d| d.num).collect();
        let own = freeze::plan(sysfs, &mounts, &nums)
            .into_iter()
            .filter_map(|t| Some((t.device, t.mounts.into_iter().next()?.1)))
            .collect();
        let (mut opened, mut targets) = (Vec::new(), Vec::new());
        if !request.no_freeze {
            for path in &request.freeze {
                let device = sysfs.resolve(path)?;
                if freeze::plan(sysfs, &mounts, &[device.num]).is_empty() {
                    return Err(Error::usage(format!(
                        "--freeze {}: no writable file system is mounted from it",
                        device.path()
                    ))
                    .code("not-mounted"));
                }
                nums.push(device.num);
            }
            let plan = freeze::plan(sysfs, &mounts, &nums);
            if plan.len() > abi::MAX_FREEZE as usize {
                return Err(Error::unsupported(format!(
                    "{} file systems would have to be frozen, {} is the limit",
                    plan.len(),
                    abi::MAX_FREEZE
                )));
            }
            opened = plan.iter().map(freeze::open).collect::<Result<_>>()?;
            targets = plan;
        }
        Ok(Targets {
            opened,
            plan: targets,
            own,
            mounts,
        })
    }

    /// Where a store may go.
    fn places(&self, stack: &Stack) -> Vec<PathBuf> {
        let fit = self.own.iter().filter(|(device, _)| !stack.is_on(*device));
        fit.map(|(_, mount_point)| mount_point.clone()).collect()
    }
}

/// Has what is free in the origins' file systems left out, where that can be told: writes are recorded
/// from here on, until the cut.
fn skip_free(
    control: &Control,
    sysfs: &Sysfs,
    devices: &[BlockDevice],
    targets: &Targets,
    mode: SkipFree,
) -> Result<()> {
    if mode == SkipFree::Off {
        return Ok(());
    }
    let must = |device: &BlockDevice, why: &str| match mode {
        SkipFree::On => Err(Error::unsupported(format!(
            "--skip-free on: {}: {why}",
            device.path()
        ))
        .code("skip-free")
        .hint("use auto: then everything of it is kept")),
        _ => Ok(()),
    };
    for device in devices {
        let is_on = |target: &Target| {
            target.device == device.num || sysfs.disk_of(target.device) == Some(device.num)
        };
        let known = |target: &Target| fsmap::FILE_SYSTEMS.contains(&target.fs_type.as_str());
        let all = targets.plan.iter().zip(&targets.opened);
        let mut some = all.filter(|(t, _)| is_on(t) && known(t)).peekable();
        if some.peek().is_none() {
            must(device, "no ext4 or XFS that is frozen lies directly on it")?;
            continue;
        }
        match control.record(device.num) {
            Ok(()) => {}
            Err(e) if mode == SkipFree::On => return Err(e.on(device.path())),
            Err(_) => continue,
        }
        for (target, opened) in some {
            let start = match sysfs.disk_of(target.device) {
                Some(disk) if disk == device.num => sysfs.start(target.device),
                _ => Some(0),
            };
            let free = fsmap::free(opened.fd.as_fd(), target.device);
            let (Some(start), Ok(mut free)) = (start, free) else {
                must(device, "its file system can't tell what is free")?;
                continue;
            };
            free.retain(|range| range.length >= abi::FREE_UNIT.into());
            free.iter_mut().for_each(|range| range.offset += start);
            for ranges in free.chunks(abi::MAX_RANGES as usize) {
                let told = control.free(device.num, ranges);
                told.map_err(|e| e.on(device.path()))?;
            }
        }
    }
    Ok(())
}

/// Has only what changed kept of the devices, where `since` says so of them; what is written up to the cut
/// is, too: that is recorded.
fn only_changed(control: &Control, devices: &[BlockDevice], since: &[Option<Since>]) -> Result<()> {
    for (device, since) in devices.iter().zip(since) {
        let Some(since) = since else {
            continue;
        };
        let path = device.path();
        let recorded = control.record(device.num);
        let told =
            recorded.and_then(|()| control.since(device.num, since.generation, since.number));
        match told {
            Ok(()) => {}
            Err(_) if since.or_all => {}
            Err(e) if e.errno == Errno::STALE => {
                // The map says more of that.
                let query = Query {
                    device: device.num,
                    generation: since.generation,
                    since: since.number,
                    live: true,
                };
                changes::extents(control, query, &path)?;
                return Err(e.on(path));
            }
            Err(e) if e.errno == Errno::BUSY => {
                return Err(Error::busy(format!(
                    "snapshot: {path}: somebody else is just taking a snapshot of it"
                ))
                .hint("try again"));
            }
            Err(e) => return Err(e.on(path)),
        }
    }
    Ok(())
}

/// The kernel call. While it runs file systems are frozen: this process must not touch a file,
/// and its memory is locked, so that no page of it has to be read from one.
fn cut(
    control: &Control,
    options: CreateOptions<'_>,
    items: &mut [abi::SnapshotDevice],
    fds: &[BorrowedFd<'_>],
) -> CallResult<abi::SnapshotCreate> {
    // Without the privilege to lock the call fails anyway; without the memory it is only a risk
    // of waiting for the time limit of the freeze.
    let locked = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).is_ok();
    // Where writes wait for a portion of a store, it comes soon, or that store gives up.
    let end = Instant::now() + Duration::from_secs(15);
    let result = loop {
        match control.snapshot_create(options, items, fds) {
            Err(e)
                if (e.errno, e.cause) == (Errno::BUSY, abi::CAUSE_DRAIN_TIMEOUT)
                    && Instant::now() < end =>
            {
                sleep(Duration::from_millis(100));
            }
            result => break result,
        }
    };
    if locked {
        let _ = munlockall();
    }
    result
}

/// Names the device or file system that a failed cut is about.
fn explain(
    error: CallError,
    signals: &Signals,
    opened: &[Opened],
    order: &[usize],
    devices: &[BlockDevice],
) -> Error {
    if error.errno == Errno::INTR && signals.stop() {
        return Error::interrupted();
    }
    let index = error.index as usize;
    let all = || {
        let paths: Vec<String> = devices.iter().map(BlockDevice::path).collect();
        paths.join(", ")
    };
    let device = || order.get(index).map(|&i| devices[i].path());
    let subject = match error.cause {
        abi::CAUSE_FREEZE | abi::CAUSE_FREEZE_TIMEOUT | abi::CAUSE_UNFROZEN => opened
            .get(index)
            .map(|o| o.mount_point.display().to_string()),
        abi::CAUSE_NONE => None,
        _ => device(),
    };
    if error.cause == abi::CAUSE_BLOCK_SIZE {
        // Those of an origin are known to be fit: it is tracked.
        return Error::unsupported(format!(
            "snapshot: a store on a device with larger logical blocks than {} has can't hold its data",
            subject.unwrap_or_else(all)
        ))
        .code("block-size")
        .hint("put the store on another disk: --store file:PATH, mem:SIZE or dev:PATH");
    }
    error.on(subject.unwrap_or_else(all))
}

fn created_device(
    origin: &BlockDevice,
    item: &abi::SnapshotDevice,
    since: Option<u64>,
) -> CreatedDevice {
    CreatedDevice {
        since,
        device: origin.path(),
        image: crate::blockdev::dev_path(&abi::text(&item.image_name)),
        size: item.device_size,
        generation: Uuid::from_bytes(item.generation),
        number: item.number,
        given: origin.given.clone(),
        origin: origin.clone(),
        image_num: DevNum {
            major: item.image_major,
            minor: item.image_minor,
        },
    }
}

/// Waits a moment for udev or devtmpfs to make a node.
fn wait_for_node(path: &str) {
    let end = Instant::now() + Duration::from_secs(3);
    while !std::path::Path::new(path).exists() && Instant::now() < end {
        sleep(Duration::from_millis(10));
    }
}

/// Deletes a snapshot. An open image is waited for a second: udev looks into new devices.
/// With `force` its readers get errors instead.
pub fn delete(control: &Control, id: Uuid, force: bool) -> CallResult<()> {
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        match control.snapshot_delete(id, force) {
            Err(e) if e.errno == Errno::BUSY && !force && Instant::now() < end => {
                sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// A version of snapshot `id`, as it is now; `None`: it is gone.
pub fn version(control: &Control, id: Uuid, origin: DevNum) -> CallResult<Option<Version>> {
    let mut versions = control.versions(id)?.into_iter().map(Version::from);
    Ok(versions.find(|v| v.origin == origin))
}

/// The same; fails if it can't be trusted any more: [`crate::error::Kind::Damaged`].
pub fn check(control: &Control, id: Uuid, origin: DevNum) -> Result<Version> {
    match version(control, id, origin).map_err(|e| e.on(id))? {
        Some(version) if version.state == "ok" => Ok(version),
        Some(version) => Err(damaged(&version)),
        None => Err(Error::not_found(format!("snapshot {id} is gone")).code("no-snapshot")),
    }
}

/// The error that tells what is wrong with a version.
pub fn damaged(version: &Version) -> Error {
    let cause = crate::cause::look_up(version.cause);
    let text = cause.map_or("its cause is not known", |c| c.text);
    let error = Error::new(
        crate::error::Kind::Damaged,
        format!(
            "the snapshot of {} is {}: {text}; {} can't be trusted",
            version.device, version.state, version.image
        ),
    )
    .code(cause.map_or("damaged", |c| c.code));
    match cause.and_then(|c| c.hint) {
        Some(hint) => error.hint(hint),
        None => error.hint("delete it and take a new one"),
    }
}
