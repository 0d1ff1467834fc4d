// SPDX-License-Identifier: GPL-2.0

//! Making stores and snapshots: the cut.

use super::delete;
use super::freeze::Freezer;
use super::freeze::Frozen;
use super::record;
use super::Registry;
use super::Snapshot;
use super::Spare;
use super::State;
use crate::cow;
use crate::cow::Free;
use crate::cow::Recorder;
use crate::cow::Spared;
use crate::cow::Version;
use crate::cow::Versions;
use crate::image::Image;
use crate::kapi::abi;
use crate::kapi::abi::Refused;
use crate::kapi::bdev::Dev;
use crate::kapi::bdev::NAME_LEN;
use crate::kapi::freeze::FileSystem;
use crate::kapi::noio;
use crate::kapi::pages::Pages;
use crate::kapi::rcu::Retired;
use crate::kapi::time;
use crate::kapi::time::Deadline;
use crate::kapi::trace;
use crate::store::New;
use crate::store::Place;
use crate::store::Policy;
use crate::store::Source;
use crate::store::Store;
use crate::tracker::Tracker;
use bdsnap_logic::order;
use bdsnap_logic::range;
use bdsnap_logic::units::Span;
use bdsnap_logic::units::SECTOR_SHIFT;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// An origin that is about to be cut.
struct Candidate {
    /// The origin.
    tracker: Arc<Tracker>,
    /// What it gets.
    version: Arc<Version>,
    /// The list that will be in force, with the version; taken at the switch.
    list: Option<KBox<Versions>>,
    /// The places of stores that the version does not keep.
    places: KVec<Arc<Place>>,
    /// Whether what is free at the cut was recorded for it.
    is_recorded: bool,
    /// That, for the next cut; taken at the switch.
    last_free: Option<KBox<Arc<Free>>>,
}

/// A snapshot that is being made.
struct Making<'a> {
    /// By this session.
    session: u64,
    /// With this id.
    id: [u8; 16],
    /// With this store.
    store: &'a Arc<Store>,
}

/// Times of a cut.
#[derive(Default)]
struct Times {
    /// `CLOCK_REALTIME` of the switch.
    created_ns: u64,
    /// From the first gate closed to all open.
    gate_ns: u64,
    /// From the first freeze to the last thaw.
    freeze_ns: u64,
}

/// A time limit of the ABI: 0 is the default. EINVAL: above the maximum.
fn limit(ms: u32) -> Result<u32> {
    match ms {
        0 => Ok(abi::BDSNAP_TIMEOUT_DEFAULT_MS),
        ms if ms <= abi::BDSNAP_TIMEOUT_MAX_MS => Ok(ms),
        _ => Err(EINVAL),
    }
}

impl Registry {
    /// BDSNAP_IOC_STORE_ADD.
    pub(super) fn store_add(&self, session: u64, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_store_add>(arg)?;
        let granules = abi::BDSNAP_GRANULE_MIN..=abi::BDSNAP_GRANULE_MAX;
        let granule_ok = a.granule.is_power_of_two() && granules.contains(&a.granule);
        let run_ok = a.run.is_power_of_two()
            && (abi::BDSNAP_GRANULE_MIN..=abi::BDSNAP_RUN_MAX).contains(&a.run);
        if a.flags != 0 || !(granule_ok || a.granule == 0) || !(run_ok || a.run == 0) {
            return Err(EINVAL);
        }
        // A caller that can't be told gets nothing.
        abi::write_arg(arg, &a)?;
        a.cause = 0;
        // Much memory takes its time: before others have to wait for us.
        let result = source(&a).and_then(|source| {
            let mut state = self.state.lock();
            add_portion(&mut state, session, &mut a, source)
        });
        if let Err(refused) = &result {
            a.cause = refused.cause;
        }
        abi::write_arg(arg, &a)?;
        result.map_err(|r| r.error)
    }

    /// BDSNAP_IOC_SNAPSHOT_CREATE.
    pub(super) fn snapshot_create(&self, session: u64, arg: usize) -> Result {
        let mut a = abi::read_arg::<abi::bdsnap_snapshot_create>(arg)?;
        let counts_ok = (1..=abi::BDSNAP_MAX_DEVICES).contains(&a.device_count)
            && a.freeze_count <= abi::BDSNAP_MAX_FREEZE;
        if a.flags != 0 || !counts_ok {
            return Err(EINVAL);
        }
        limit(a.freeze_timeout_ms)?;
        limit(a.drain_timeout_ms)?;
        let growth_ok = (a.store_limit == 0) == (a.store_portion == 0)
            && i64::try_from(a.store_limit).is_ok()
            && a.hold_ms <= abi::BDSNAP_HOLD_MAX_MS;
        if !growth_ok || a.note_len > abi::BDSNAP_MAX_NOTE {
            return Err(EINVAL);
        }
        let mut devices =
            abi::read_array::<abi::bdsnap_snapshot_device>(a.devices, a.device_count as usize)?;
        let fds = abi::read_array::<i32>(a.freeze_fds, a.freeze_count as usize)?;
        let note = abi::read_array::<u8>(a.note, a.note_len as usize)?;
        // A caller that can't be told gets nothing.
        abi::write_arg(arg, &a)?;
        abi::write_array(a.devices, &devices)?;
        let mut state = self.state.lock();
        state.reap();
        (a.cause, a.fail_index) = (0, 0);
        let result = self.create(&mut state, session, &mut a, &mut devices, &fds, note);
        if let Err(refused) = &result {
            (a.cause, a.fail_index) = (refused.cause, refused.index);
        }
        let written = abi::write_arg(arg, &a).and_then(|()| match &result {
            Ok(()) => abi::write_array(a.devices, &devices),
            Err(_) => Ok(()),
        });
        // A caller that can't be told has no snapshot.
        if let (Err(e), Ok(())) = (written, &result) {
            if let Some(snapshot) = state.snapshots.pop() {
                delete::dissolve(&mut state, snapshot);
            }
            return Err(e);
        }
        result.map_err(|r| r.error)
    }

    /// Creates a snapshot, and fills in what it became.
    fn create(
        &self,
        state: &mut State,
        session: u64,
        a: &mut abi::bdsnap_snapshot_create,
        devices: &mut [abi::bdsnap_snapshot_device],
        fds: &[i32],
        note: KVVec<u8>,
    ) -> Result<(), Refused> {
        let place = state
            .spares
            .iter()
            .position(|s| s.handle == a.store && s.owner == session);
        let store = place
            .and_then(|p| state.spares.get(p))
            .ok_or(ENOENT)?
            .store
            .clone();
        if state.snapshots.len() >= abi::BDSNAP_MAX_SNAPSHOTS as usize {
            return Err(ENOSPC.into());
        }
        state.snapshots.reserve(1, GFP_KERNEL)?;
        store.set_policy(Policy {
            limit: a.store_limit,
            portion: a.store_portion,
            hold_ms: a.hold_ms,
        })?;
        let id = abi::random_uuid();
        let trackers = self.origins(state, devices)?;
        let making = Making {
            session,
            id,
            store: &store,
        };
        let made = self.create_of(state, a, &trackers, fds, &making);
        let (candidates, times) = match made {
            Ok(made) => made,
            Err(refused) => {
                for tracker in trackers.iter() {
                    tracker.lock_chain().shrink();
                }
                return Err(refused);
            }
        };
        let mut snapshot = Snapshot {
            id,
            created_ns: times.created_ns,
            images: KVec::new(),
            store: Some(store),
            owner: Some(session),
            note,
        };
        if let Err(e) = self.show(state, &mut snapshot, &candidates, devices) {
            // Those that have an image go with it, the others by themselves.
            let shown = snapshot.images.len();
            delete::dissolve(state, snapshot);
            for candidate in candidates.iter().skip(shown) {
                cow::remove(&candidate.tracker, &candidate.version);
            }
            return Err(e.into());
        }
        a.id = id;
        a.created_ns = times.created_ns;
        a.freeze_ns = times.freeze_ns;
        a.gate_ns = times.gate_ns;
        if let Some(place) = place {
            let _ = state.spares.remove(place);
        }
        for image in snapshot.images.iter() {
            let (tracker, number) = (image.tracker(), image.version().view.number());
            tracker.tell(abi::BDSNAP_EVENT_CREATED, 0, id, number);
        }
        // There is room: see above.
        let _ = state.snapshots.push_within_capacity(snapshot);
        Ok(())
    }

    /// Makes versions of all origins, and the cut.
    fn create_of(
        &self,
        state: &State,
        a: &abi::bdsnap_snapshot_create,
        trackers: &[Arc<Tracker>],
        fds: &[i32],
        making: &Making<'_>,
    ) -> Result<(KVec<Candidate>, Times), Refused> {
        let freezer = Freezer::new(file_systems(fds)?, copies(trackers)?)?;
        self.make_room(state, making.store)?;
        let mut candidates = KVec::with_capacity(trackers.len(), GFP_KERNEL)?;
        for (index, tracker) in trackers.iter().enumerate() {
            let spared = record::spared_of(tracker, making.session);
            let candidate = prepare(state, tracker, making, spared).map_err(|r| r.of(index))?;
            candidates.push(candidate, GFP_KERNEL)?;
        }
        nobody_waits(trackers)?;
        let times = self.cut(a, &mut candidates, &freezer)?;
        for candidate in candidates.iter_mut() {
            let free = candidate.last_free.take();
            drop(candidate.tracker.last_free.swap(free));
        }
        // Whatever ended a generation before the cut may not have been in the versions' list then.
        let ended = candidates
            .iter()
            .enumerate()
            .find_map(|(i, c)| Some((i, c.tracker.ended())).filter(|(_, cause)| *cause != 0));
        if let Some((index, cause)) = ended {
            for candidate in candidates.iter() {
                cow::remove(&candidate.tracker, &candidate.version);
            }
            return Err(Refused::new(EBUSY, cause).of(index));
        }
        Ok((candidates, times))
    }

    /// The trackers of the devices named, each once, each sound.
    fn origins(
        &self,
        state: &mut State,
        devices: &[abi::bdsnap_snapshot_device],
    ) -> Result<KVec<Arc<Tracker>>, Refused> {
        let mut trackers: KVec<Arc<Tracker>> = KVec::with_capacity(devices.len(), GFP_KERNEL)?;
        for (index, d) in devices.iter().enumerate() {
            let dev = Dev::new(d.major, d.minor)?;
            let mut tracker = state
                .tracker(dev)
                .ok_or(ENOENT)
                .map_err(|e| Refused::from(e).of(index))?
                .clone();
            if trackers.iter().any(|t| Arc::ptr_eq(t, &tracker)) {
                return Err(Refused::from(EEXIST).of(index));
            }
            if state.has_strays(dev) {
                let cause = abi::BDSNAP_CAUSE_DRAIN_TIMEOUT;
                return Err(Refused::new(EBUSY, cause).of(index));
            }
            let ended = tracker.ended();
            if !tracker.device.is_live() {
                let cause = abi::BDSNAP_CAUSE_ORIGIN_GONE;
                return Err(Refused::new(ENODEV, cause).of(index));
            }
            if ended != 0 {
                if !tracker.lock_chain().is_dead() {
                    return Err(Refused::new(EBUSY, ended).of(index));
                }
                tracker = self.renew(state, &tracker).map_err(|r| r.of(index))?;
                if state.has_strays(dev) {
                    let cause = abi::BDSNAP_CAUSE_DRAIN_TIMEOUT;
                    return Err(Refused::new(EBUSY, cause).of(index));
                }
            }
            if tracker.lock_chain().len() >= abi::BDSNAP_MAX_VERSIONS as usize {
                return Err(Refused::from(ENOSPC).of(index));
            }
            trackers.push(tracker, GFP_KERNEL)?;
        }
        Ok(trackers)
    }

    /// Before anything is written to a store: what older versions still need of its blocks is
    /// copied elsewhere. They may be blocks of a file that has been deleted since.
    fn make_room(&self, state: &State, store: &Store) -> Result<(), Refused> {
        for tracker in state.trackers.iter() {
            if tracker.lock_chain().len() == 0 {
                continue;
            }
            let here = store.places().filter(|p| p.disk == tracker.disk());
            for span in here.flat_map(|p| p.spans.iter()) {
                if let Some(part) = range::in_origin(*span, tracker.span()) {
                    cow::settle(tracker, part).map_err(|e| match e {
                        EBUSY => Refused::new(e, abi::BDSNAP_CAUSE_DRAIN_TIMEOUT),
                        e => e.into(),
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Freezes, closes and drains the gates, switches, opens and thaws. Whatever fails, all is
    /// taken back: the guards see to it. From the first freeze on nothing is allocated that could
    /// wait for what is frozen.
    fn cut(
        &self,
        a: &abi::bdsnap_snapshot_create,
        candidates: &mut [Candidate],
        freezer: &Arc<Freezer>,
    ) -> Result<Times, Refused> {
        let mut plan = Plan::new(candidates)?;
        let _noio = noio::Scope::enter();
        let frozen = freezer.frozen(self, limit(a.freeze_timeout_ms)?)?;
        let frozen_at = frozen.since();
        // Gates must open before file systems thaw, which may want to write.
        let switched = plan.close_and_switch(candidates, &frozen, limit(a.drain_timeout_ms)?);
        drop(frozen);
        let mut times = switched?;
        times.freeze_ns = time::monotonic_ns().saturating_sub(frozen_at);
        // Waits for RCU.
        drop(plan);
        Ok(times)
    }

    /// Makes the images of the versions.
    fn show(
        &self,
        state: &State,
        snapshot: &mut Snapshot,
        candidates: &[Candidate],
        devices: &mut [abi::bdsnap_snapshot_device],
    ) -> Result {
        snapshot.images.reserve(candidates.len(), GFP_KERNEL)?;
        for (candidate, device) in candidates.iter().zip(devices.iter_mut()) {
            let (tracker, version) = (&candidate.tracker, &candidate.version);
            let name = free_name(state, snapshot)?;
            let image = Image::new(tracker, version, name, self.queue.clone())?;
            device.image_major = image.dev.major();
            device.image_minor = image.dev.minor();
            copy_name(&mut device.image_name, &name);
            device.device_size = version.sectors() << SECTOR_SHIFT;
            device.generation = tracker.generation;
            device.number = version.view.number();
            snapshot.images.push(image, GFP_KERNEL)?;
        }
        Ok(())
    }
}

/// What a portion is to be made of; memory is there then. EINVAL: a kind that doesn't exist, or a
/// field that its kind does not use.
fn source(a: &abi::bdsnap_store_add) -> Result<Source, Refused> {
    if a.store != 0 && a.snapshot != [0; 16] {
        return Err(EINVAL.into());
    }
    let no_file = a.fd == 0 && a.buffer == 0 && a.extent_count == 0;
    let no_device = (a.major, a.minor, a.offset) == (0, 0, 0);
    match a.kind {
        abi::BDSNAP_STORE_FILE if no_device && a.length == 0 => {
            if !(1..=abi::BDSNAP_MAX_EXTENTS).contains(&a.extent_count) {
                return Err(EINVAL.into());
            }
            Ok(Source::File {
                fd: a.fd,
                buffer: a.buffer,
                room: a.extent_count,
            })
        }
        abi::BDSNAP_STORE_DEVICE if no_file => Ok(Source::Device {
            dev: Dev::new(a.major, a.minor)?,
            offset: a.offset,
            length: a.length,
        }),
        abi::BDSNAP_STORE_MEMORY if no_file && no_device && a.length != 0 => {
            let granule = u64::from(abi::BDSNAP_GRANULE_MAX);
            match a.length & !(granule - 1) {
                0 => Err(Refused::new(EINVAL, abi::BDSNAP_CAUSE_STORE_SMALL)),
                length if length > abi::BDSNAP_MAX_MEMORY => Err(EINVAL.into()),
                length => match Pages::new(length) {
                    Ok(pages) => Ok(Source::Memory(pages)),
                    Err(EINTR) => Err(EINTR.into()),
                    Err(e) => Err(Refused::new(e, abi::BDSNAP_CAUSE_STORE_MEMORY)),
                },
            }
        }
        _ => Err(EINVAL.into()),
    }
}

/// Adds a portion to a snapshot's store, or to one of this session, or makes one of it; fills in what
/// became of it.
fn add_portion(
    state: &mut State,
    session: u64,
    a: &mut abi::bdsnap_store_add,
    source: Source,
) -> Result<(), Refused> {
    let own = |s: &&Spare| s.handle == a.store && s.owner == session;
    let is_live = a.snapshot != [0; 16];
    let is_it = |s: &&Snapshot| is_live && s.id == a.snapshot;
    let store = match a.store {
        _ if is_live => {
            let snapshot = state.snapshots.iter().find(is_it).ok_or(ENOENT)?;
            snapshot.store.clone().ok_or(ENOENT)?
        }
        0 => {
            let granule = match a.granule {
                0 => abi::BDSNAP_GRANULE_DEFAULT,
                granule => granule,
            };
            state.spares.reserve(1, GFP_KERNEL)?;
            let run = a.run.max(granule) / granule;
            Store::new(granule.trailing_zeros() - SECTOR_SHIFT, run.into())?
        }
        _ => state.spares.iter().find(own).ok_or(ENOENT)?.store.clone(),
    };
    let granule = 1u32 << (store.shift() + SECTOR_SHIFT);
    let other_run = a.run != 0 && u64::from(a.run) != store.run_bytes();
    if a.granule != 0 && a.granule != granule || other_run {
        return Err(EINVAL.into());
    }
    state.places.retain(|p| !p.is_gone());
    state.places.reserve(1, GFP_KERNEL)?;
    let mut place = None;
    let extents = store.add(source, |new| {
        fits(state, new)?;
        if is_live {
            fits_live(state, &store, new)?;
        }
        place = new.place().cloned();
        Ok(())
    })?;
    if let Some(place) = place {
        // There is room: see above.
        let _ = state.places.push_within_capacity(place);
    }
    if is_live {
        // Who waits for it.
        let snapshot = state.snapshots.iter().find(is_it);
        let images = snapshot.iter().flat_map(|s| s.images.iter());
        images.for_each(|i| i.tracker().kick());
    } else if a.store == 0 {
        a.store = state.next_handle;
        state.next_handle += 1;
        let spare = Spare {
            handle: a.store,
            owner: session,
            store: store.clone(),
        };
        // There is room: see above.
        let _ = state.spares.push_within_capacity(spare);
    }
    a.granule = granule;
    a.extent_count = extents;
    a.capacity = store.fill().total << (store.shift() + SECTOR_SHIFT);
    Ok(())
}

/// Whether a portion may be added to a snapshot's store: not more than its limit; of its blocks, those
/// that hold what some snapshot needs are left out. They stay as they are, since they are the
/// portion's and nobody writes them.
fn fits_live(state: &State, store: &Store, new: &mut New) -> Result<(), Refused> {
    if new.bytes() > store.room() {
        return Err(Refused::new(ENOSPC, abi::BDSNAP_CAUSE_STORE_LIMIT));
    }
    let device = new.device();
    let device = device.map(|d| (d.disk(), d.logical_block(), d.dma_alignment()));
    let Some((disk, logical, dma)) = device else {
        return Ok(());
    };
    let origins = || state.trackers.iter().filter(|t| t.disk() == disk);
    // (An image is read in its origin's blocks, into memory that is aligned as was told when it was made.)
    let too_large = |i: &crate::image::Image| {
        logical > i.tracker().device.logical_block() || dma > i.dma_alignment()
    };
    let mut snapshots = state.snapshots.iter();
    let has_it = |s: &&Snapshot| s.store.as_ref().is_some_and(|s| core::ptr::eq(&**s, store));
    let snapshot = snapshots.find(has_it);
    if snapshot.is_some_and(|s| s.images.iter().any(too_large)) {
        return Err(Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_BLOCK_SIZE));
    }
    new.retain(|span| {
        let mut rest = span;
        while !rest.is_empty() {
            let mut part = Some(rest);
            let mut end = rest.end();
            for tracker in origins() {
                end = part.map_or(end, |p| p.end());
                part = part.and_then(|p| cow::unneeded(tracker, p));
            }
            if part.is_some() {
                return part;
            }
            (_, rest) = rest.split_at(end);
        }
        None
    })
}

/// Whether no write to these origins waits for a portion of a store: none could come while they are
/// frozen, or while the registry is locked. EBUSY.
fn nobody_waits(trackers: &[Arc<Tracker>]) -> Result<(), Refused> {
    match trackers.iter().position(|t| t.lock_chain().is_dry()) {
        Some(index) => {
            let cause = abi::BDSNAP_CAUSE_DRAIN_TIMEOUT;
            Err(Refused::new(EBUSY, cause).of(index))
        }
        None => Ok(()),
    }
}

/// Whether a portion's blocks are nobody else's: not another store's, and not an origin's own, which
/// they are only where the origin is more than the portion's device (a partition of it).
fn fits(state: &State, new: &New) -> Result<(), Refused> {
    let Some(device) = new.device() else {
        return Ok(());
    };
    let busy = Err(Refused::new(EBUSY, abi::BDSNAP_CAUSE_STORE_BUSY));
    let spans = || new.place().into_iter().flat_map(|p| p.spans.iter());
    if state.image(device.dev()).is_some() {
        return Err(Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_STORE_DEVICE));
    }
    let disk = device.disk();
    if !new.is_file() {
        let own = Span::of_len(device.start_sector(), device.sectors()).unwrap_or(Span::EMPTY);
        let inside = |t: &Arc<Tracker>| t.disk() == disk && t.span().overlaps(own);
        let part = |t: &Arc<Tracker>| t.span().len() > own.len() && t.span().intersect(own) == own;
        if state.trackers.iter().any(|t| inside(t) && !part(t)) {
            return busy;
        }
    }
    if spans().any(|span| state.places().any(|p| p.overlaps(disk, *span))) {
        return busy;
    }
    Ok(())
}

/// Copies a name into an ABI's field.
pub(super) fn copy_name<T: From<u8>>(to: &mut [T], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = T::from(*from);
    }
}

/// The file systems of these descriptors. One may be there twice: freezes nest. EBADF, with the
/// index.
fn file_systems(fds: &[i32]) -> Result<KVec<FileSystem>, Refused> {
    let mut list: KVec<FileSystem> = KVec::with_capacity(fds.len(), GFP_KERNEL)?;
    for (index, fd) in fds.iter().enumerate() {
        let fs = FileSystem::get(*fd).map_err(|e| Refused::from(e).of(index))?;
        list.push(fs, GFP_KERNEL)?;
    }
    Ok(list)
}

/// A copy of a list.
fn copies(trackers: &[Arc<Tracker>]) -> Result<KVec<Arc<Tracker>>> {
    let mut list = KVec::with_capacity(trackers.len(), GFP_KERNEL)?;
    for tracker in trackers {
        list.push(tracker.clone(), GFP_KERNEL)?;
    }
    Ok(list)
}

/// The first name that no image has.
fn free_name(state: &State, snapshot: &Snapshot) -> Result<[u8; NAME_LEN]> {
    let taken = |s: &Snapshot, name| s.images.iter().any(|i| i.name == name);
    let mut n: u32 = 0;
    loop {
        let name = CString::try_from_fmt(fmt!("bdsnap-image{}", n))?;
        let mut padded = [0u8; NAME_LEN];
        copy_name(&mut padded, name.to_bytes());
        let remains = state.remains.iter().any(|i| i.name == padded);
        let snapshots = Iterator::chain(state.snapshots.iter(), [snapshot]);
        if !remains && !snapshots.into_iter().any(|s| taken(s, padded)) {
            return Ok(padded);
        }
        n = n.checked_add(1).ok_or(ENOSPC)?;
    }
}

/// Allocates all that an origin needs for its cut.
fn prepare(
    state: &State,
    tracker: &Arc<Tracker>,
    making: &Making<'_>,
    spared: Option<Spared>,
) -> Result<Candidate, Refused> {
    let store = making.store;
    let is_recorded = spared.is_some();
    record::mark_differences(tracker, spared.as_ref().map(|s| &*s.free));
    let last_free = match &spared {
        Some(spared) => Some(KBox::new(spared.free.clone(), GFP_KERNEL)?),
        None => None,
    };
    let logical = tracker.device.logical_block();
    // The last granule may be short, and images are read in the origin's blocks.
    if logical > 1 << (store.shift() + SECTOR_SHIFT) || store.logical_block() > logical {
        return Err(Refused::new(EOPNOTSUPP, abi::BDSNAP_CAUSE_BLOCK_SIZE));
    }
    tracker.map.age_if_due();
    let (number, _) = tracker.map.numbers();
    let since = spared.as_ref().and_then(|s| s.since);
    if since.is_some_and(|since| !tracker.map.can_answer(since, number)) {
        return Err(ESTALE.into());
    }
    let view = tracker.map.prepare_view()?;
    let version = Version::new(view, store.clone(), tracker.sectors(), making.id, spared)?;
    let mut places = KVec::new();
    for place in state.places().filter(|p| p.disk == tracker.disk()) {
        places.push(place.clone(), GFP_KERNEL)?;
    }
    for span in places.iter().flat_map(|p| p.spans.iter()) {
        if let Some(part) = range::in_origin(*span, tracker.span()) {
            // A granule that is a store's in part only is copied.
            version.exclude(part.inward(store.shift(), tracker.sectors()))?;
        }
    }
    let version = Arc::new(version, GFP_KERNEL)?;
    cow::reserve(tracker)?;
    let mut list = cow::versions(tracker, None)?;
    list.insert_within_capacity(0, version.clone())
        .map_err(|_| ENOMEM)?;
    Ok(Candidate {
        tracker: tracker.clone(),
        version,
        list: Some(KBox::new(Versions::new(list, false), GFP_KERNEL)?),
        places,
        is_recorded,
        last_free,
    })
}

/// Gates that are closed, until dropped: opened from the last to the first.
struct Gates<'a> {
    /// The origins.
    candidates: &'a [Candidate],
    /// Those that are closed, in that order.
    closed: &'a [usize],
}

impl Drop for Gates<'_> {
    fn drop(&mut self) {
        for candidate in self
            .closed
            .iter()
            .rev()
            .filter_map(|i| self.candidates.get(*i))
        {
            candidate.tracker.open_gate();
        }
    }
}

/// What a cut needs, allocated before it.
struct Plan {
    /// The order in which gates close: the caller's, but where origins overlap, in the order in
    /// which a bio meets them. (Else it would wait at the second, counted by the first.)
    order: KVec<usize>,
    /// The lists that will be in force.
    lists: KVec<Option<KBox<Versions>>>,
    /// The lists that were: to be freed once all runs again.
    retired: KVec<Retired<Versions>>,
    /// The recorders that were.
    recorders: KVec<Retired<Recorder>>,
}

impl Plan {
    /// For these origins. ENOMEM.
    fn new(candidates: &mut [Candidate]) -> Result<Self> {
        let n = candidates.len();
        let mut plan = Self {
            order: KVec::with_capacity(n, GFP_KERNEL)?,
            lists: KVec::with_capacity(n, GFP_KERNEL)?,
            retired: KVec::with_capacity(n, GFP_KERNEL)?,
            recorders: KVec::with_capacity(n, GFP_KERNEL)?,
        };
        for (index, candidate) in candidates.iter_mut().enumerate() {
            plan.lists.push(candidate.list.take(), GFP_KERNEL)?;
            plan.order.push(index, GFP_KERNEL)?;
        }
        order::as_met(plan.order.as_mut_slice(), |index| {
            let tracker = candidates.get(*index).map(|c| &c.tracker);
            let span = tracker.map_or(Span::EMPTY, |t| t.span());
            (tracker.map(|t| t.disk()), span)
        });
        Ok(plan)
    }

    /// Closes and drains the gates in order, and makes the switch. Nothing here depends on the size
    /// of a device, allocates, or touches user memory.
    fn close_and_switch(
        &mut self,
        candidates: &[Candidate],
        frozen: &Frozen,
        drain_ms: u32,
    ) -> Result<Times, Refused> {
        let closed_at = time::monotonic_ns();
        let deadline = Deadline::after_ms(drain_ms);
        let mut gates = Gates {
            candidates,
            closed: &[],
        };
        for (n, &index) in self.order.iter().enumerate() {
            let Some(candidate) = candidates.get(index) else {
                continue;
            };
            candidate.tracker.inflight.close();
            gates.closed = self.order.get(..=n).unwrap_or_default();
            // The next one is closed only when nothing of this one's is left: what is let go here
            // may still have to pass there, and so may what goes to its stores.
            let alone = self.order.len() == n + 1;
            // What is read for a version after the cut could be newer than it.
            let is_read = || !candidate.tracker.lock_chain().is_reading();
            if !deadline.wait_until(|| {
                candidate.tracker.inflight.is_drained()
                    && is_read()
                    && (alone || candidate.tracker.is_idle())
            }) {
                let cause = abi::BDSNAP_CAUSE_DRAIN_TIMEOUT;
                return Err(Refused::new(ETIMEDOUT, cause).of(index));
            }
        }
        if let Some(index) = frozen.first_thawed() {
            return Err(Refused::new(EBUSY, abi::BDSNAP_CAUSE_UNFROZEN).of(index));
        }
        // A store that has ended meanwhile: its blocks may be in use for something else.
        let ended = |c: &Candidate| c.places.iter().any(|p| p.is_gone());
        if let Some(index) = candidates.iter().position(ended) {
            let cause = abi::BDSNAP_CAUSE_DRAIN_TIMEOUT;
            return Err(Refused::new(EBUSY, cause).of(index));
        }
        let mut times = Times {
            created_ns: time::realtime_ns(),
            ..Times::default()
        };
        for (candidate, list) in candidates.iter().zip(self.lists.drain_all()) {
            let tracker = &candidate.tracker;
            // Neither can fail: there is room for the version, and the map was made ready.
            tracker.lock_chain().push(candidate.version.clone())?;
            let no_marks = tracker.no_marks();
            tracker.map.cut()?;
            let _ = self
                .retired
                .push_within_capacity(tracker.versions.swap(list));
            if candidate.is_recorded {
                // What is free is fixed: nothing is written until the gates open.
                let _ = self.recorders.push_within_capacity(record::stop(tracker));
            }
            drop(no_marks);
        }
        drop(gates);
        times.gate_ns = time::monotonic_ns().saturating_sub(closed_at);
        for candidate in candidates.iter() {
            let number = candidate.version.view.number();
            trace::cut(candidate.tracker.dev(), number, times.gate_ns);
        }
        Ok(times)
    }
}
