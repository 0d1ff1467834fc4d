//! The random run.

use crate::calls::*;
use crate::Where;
use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::abi::Arg;
use bdsnap_tests::abi::Ioctl;
use bdsnap_tests::rng::Rng;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Cliff;
use libc::{
    E2BIG, EAGAIN, EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENOSPC, ENXIO, EOPNOTSUPP,
    EPERM, ESTALE,
};
use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

/// Errnos that the header names, and EAGAIN, EINTR, EBADF and EIO, which any
/// call may give.
const DOCUMENTED: [i32; 20] = [
    EPERM,
    ENOENT,
    E2BIG,
    EBADF,
    libc::ENOMEM,
    EFAULT,
    EBUSY,
    EEXIST,
    ENODEV,
    EINVAL,
    ENXIO,
    ENOSPC,
    libc::EROFS,
    EOPNOTSUPP,
    libc::ETIMEDOUT,
    ESTALE,
    libc::ENOMEDIUM,
    EAGAIN,
    libc::EINTR,
    libc::EIO,
];

const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    65,
    128,
    255,
    256,
    4095,
    4096,
    65535,
    65536,
    65537,
    1 << 31,
    u32::MAX as u64,
    1 << 52,
    1 << 63,
    u64::MAX,
];

/// Offsets of the pointers in an ioctl's struct.
fn pointers(io: Ioctl) -> &'static [usize] {
    match io {
        abi::LIST_ORIGINS | abi::LIST_SNAPSHOTS | abi::LIST_VERSIONS => &[at::LIST_BUFFER],
        abi::STORE_ADD => &[at::STORE_BUFFER],
        abi::SNAPSHOT_CREATE => &[at::SNAP_DEVICES, at::SNAP_FREEZE, at::SNAP_NOTE],
        abi::MAP_READ => &[at::MAP_BUFFER],
        abi::MARK | abi::FREE | abi::SNAPSHOT_RELEASE => &[at::MARK_RANGES],
        abi::SNAPSHOT_NOTE => &[at::NOTE_BUFFER],
        _ => &[],
    }
}

/// One thread of the random run.
struct Fuzz<'a> {
    w: &'a Where,
    devs: Vec<Dev>,
    rng: Rng,
    /// Ids, stores, generations that were seen.
    ids: Vec<[u8; 16]>,
    stores: Vec<u64>,
    events: Vec<File>,
    id: u64,
}

impl Fuzz<'_> {
    fn number(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.word(),
            1 => self.rng.below(16),
            _ => self
                .rng
                .pick(&NUMBERS)
                .wrapping_add(self.rng.below(3))
                .wrapping_sub(1),
        }
    }

    /// One of the stores that were seen, or none.
    fn any_store(&mut self) -> Option<u64> {
        let place = self.rng.below(self.stores.len() as u64 + 1) as usize;
        self.stores.get(place).copied()
    }

    fn pointer(&mut self, room: &Cliff, base: u64) -> u64 {
        match self.rng.below(20) {
            0 => self.number(),
            1 => room.edge(),
            2 => room.edge() - self.rng.below(64),
            3 => base + self.rng.below(8),
            _ => base,
        }
    }

    /// Fields as a caller would set them, so that deep code is reached.
    fn likely(&mut self, io: Ioctl, room: &mut Cliff, base: u64, fds: &[i32]) -> Arg {
        let dev = self.rng.pick(&self.devs);
        let mut id = [0u8; 16];
        if let Some(known) = self
            .ids
            .get(self.rng.below(self.ids.len() as u64 + 1) as usize)
        {
            id = *known;
        }
        let a = io.arg();
        let p = self.pointer(room, base);
        match io {
            abi::TRACK => a
                .dev(dev)
                .u32(at::BLOCK_SIZE, self.rng.pick(&[0, 0, 4096, 65536, 1 << 20])),
            abi::UNTRACK => a.dev(dev).u32(at::FLAGS, self.rng.below(2) as u32),
            abi::LIST_ORIGINS | abi::LIST_SNAPSHOTS => a
                .u32(at::LIST_COUNT, self.rng.below(8) as u32)
                .u32(
                    at::LIST_ITEM,
                    self.rng.pick(&[8, 80, 112, 120, 152, 160, 184, 256]),
                )
                .u64(at::LIST_BUFFER, p),
            abi::LIST_VERSIONS => a
                .u32(at::LIST_COUNT, self.rng.below(8) as u32)
                .u32(at::LIST_ITEM, self.rng.pick(&[8, 152, 256]))
                .u64(at::LIST_BUFFER, p)
                .put(at::LIST_ID, &id),
            abi::STORE_ADD if self.rng.below(3) == 0 => a
                .u32(at::STORE_KIND, abi::KIND_MEMORY)
                .u64(at::STORE_HANDLE, self.any_store().unwrap_or(0))
                .u64(at::STORE_LENGTH, self.rng.pick(&[4096, 1 << 20, 5000])),
            abi::STORE_ADD if self.rng.below(3) == 0 => a
                .u32(at::STORE_KIND, abi::KIND_MEMORY)
                .put(at::STORE_SNAPSHOT, &id)
                .u64(at::STORE_LENGTH, self.rng.pick(&[4096, 1 << 20])),
            abi::STORE_DROP => a.u64(at::STORE_HANDLE, self.any_store().unwrap_or(1)),
            abi::SNAPSHOT_NOTE => a
                .put(at::ID, &id)
                .u64(at::NOTE_BUFFER, p)
                .u32(at::NOTE_LENGTH, self.rng.below(100) as u32),
            abi::SERVE => a.u32(at::FLAGS, self.rng.below(2) as u32),
            abi::STORE_ADD => a
                .u32(at::STORE_KIND, abi::KIND_FILE)
                .u64(at::STORE_HANDLE, self.any_store().unwrap_or(0))
                .u32(at::STORE_FD, self.rng.pick(fds) as u32)
                .u64(at::STORE_BUFFER, p)
                .u32(at::STORE_EXTENTS, self.rng.pick(&[1, 8, 64])),
            abi::SNAPSHOT_CREATE => {
                let n = self.rng.between(1, 3);
                let mem = room.mem();
                for i in 0..n as usize {
                    let d = self.rng.pick(&self.devs);
                    let off = i * abi::SNAPSHOT_DEVICE as usize;
                    mem[off..off + 4].copy_from_slice(&d.0.to_ne_bytes());
                    mem[off + 4..off + 8].copy_from_slice(&d.1.to_ne_bytes());
                }
                let store = self.any_store();
                let grows = self.rng.below(2) as usize;
                a.u64(at::SNAP_STORE, store.unwrap_or(1))
                    .u64(at::SNAP_DEVICES, p)
                    .u32(at::SNAP_DEVICE_COUNT, self.rng.between(1, n) as u32)
                    .u32(at::SNAP_FREEZE_MS, 1000)
                    .u32(at::SNAP_DRAIN_MS, 1000)
                    .u64(at::SNAP_LIMIT, [0, 1 << 30][grows])
                    .u64(at::SNAP_PORTION, [0, 1 << 20][grows])
                    .u64(at::SNAP_NOTE, p)
                    .u32(at::SNAP_NOTE_LEN, self.rng.pick(&[0, 3, 100]))
            }
            abi::SNAPSHOT_KEEP | abi::SNAPSHOT_DELETE => {
                let f = if io == abi::SNAPSHOT_DELETE {
                    self.rng.below(2) as u32
                } else {
                    0
                };
                a.put(at::ID, &id).u32(at::FLAGS, f)
            }
            abi::MAP_READ => a
                .dev(dev)
                .u32(at::FLAGS, self.rng.below(4) as u32)
                .u64(at::MAP_SINCE, self.rng.below(4))
                .u64(at::MAP_FIRST, self.rng.below(2000))
                .u64(at::MAP_COUNT, self.rng.below(2000))
                .u64(at::MAP_BUFFER, p),
            abi::RECORD => a.dev(dev).u32(at::FLAGS, self.rng.below(2) as u32),
            abi::SINCE => a.dev(dev).u64(at::SINCE_NUMBER, self.rng.below(4)),
            abi::MARK | abi::FREE | abi::SNAPSHOT_RELEASE => {
                let n = self.rng.between(1, 4) as usize;
                for i in 0..n {
                    let (o, l) = (self.rng.below(1 << 20), self.rng.below(1 << 20));
                    let mem = room.mem();
                    mem[i * 16..i * 16 + 8].copy_from_slice(&o.to_ne_bytes());
                    mem[i * 16 + 8..i * 16 + 16].copy_from_slice(&l.to_ne_bytes());
                }
                a.dev(dev)
                    .u64(at::MARK_RANGES, p)
                    .u32(at::MARK_COUNT, n as u32)
            }
            _ => a,
        }
    }

    fn one(
        &mut self,
        fd: &File,
        arg: &mut Cliff,
        room: &mut Cliff,
        fds: &[i32],
    ) -> Result<(), String> {
        let io = self.rng.pick(&abi::ALL);
        let base = room.edge() - room.mem().len() as u64;
        let mut a = self.likely(io, room, base, fds);
        for _ in 0..[0, 0, 0, 1, 2][self.rng.below(5) as usize] {
            let field = self.rng.below(u64::from(io.size) / 4) as usize * 4;
            // A random device could be the machine's own disk.
            let device = [
                abi::TRACK,
                abi::UNTRACK,
                abi::MAP_READ,
                abi::MARK,
                abi::RECORD,
                abi::FREE,
                abi::SNAPSHOT_RELEASE,
                abi::SINCE,
            ]
            .contains(&io);
            // Half a pointer changed could well name our own stack.
            if device && (field == at::MAJOR || field == at::MINOR)
                || pointers(io).contains(&(field & !7))
            {
                continue;
            }
            let v = self.number() as u32;
            a = a.u32(field, v);
        }
        if self.rng.chance(5) {
            let more = self.rng.below(200) as u32;
            let fill = self.rng.below(2) as u8;
            a = a.sized(io.size + more, fill);
        }
        if io == abi::SNAPSHOT_CREATE {
            // Long time-outs are legal, but waste the test's time.
            if (1001..=abi::HOLD_MAX_MS).contains(&a.get32(at::SNAP_HOLD_MS)) {
                a = a.u32(at::SNAP_HOLD_MS, 1000);
            }
            for field in [at::SNAP_FREEZE_MS, at::SNAP_DRAIN_MS] {
                if (1001..=abi::TIMEOUT_MAX_MS).contains(&a.get32(field)) {
                    a = a.u32(field, 1000);
                }
            }
        }
        let addr = arg.put(&a.bytes);
        let start = Instant::now();
        sys::watchdog(120);
        let r = sys::ioctl_at(fd.as_raw_fd(), io.code(), addr);
        let took = start.elapsed();
        let len = a.bytes.len();
        let mem = arg.mem();
        let from = mem.len() - len;
        let front = from.saturating_sub(256);
        if mem[front..from].iter().any(|&b| b != 0xa5) {
            return Err(format!(
                "{}: wrote before its argument {:?}",
                io.name, a.bytes
            ));
        }
        a.bytes.copy_from_slice(&mem[from..]);
        mem[from..].fill(0xa5);
        match r {
            Ok(_) => self.learn(&a)?,
            Err(e) if DOCUMENTED.contains(&e) => {}
            Err(e) => {
                return Err(format!(
                    "{}: undocumented {} for {:02x?}",
                    io.name,
                    sys::errno_name(e),
                    a.bytes
                ));
            }
        }
        if took > Duration::from_secs(60) {
            return Err(format!("{}: took {took:?}: {:02x?}", io.name, a.bytes));
        }
        Ok(())
    }

    fn learn(&mut self, a: &Arg) -> Result<(), String> {
        match a.ioctl {
            abi::EVENTS => return self.read_events(a.get32(at::EVENTS_FD) as i32),
            abi::STORE_ADD => self.stores.push(a.get64(at::STORE_HANDLE)),
            abi::SNAPSHOT_CREATE => {
                let mut id = [0; 16];
                id.copy_from_slice(&a.bytes[at::ID..at::ID + 16]);
                self.ids.push(id);
            }
            _ => {}
        }
        if self.ids.len() > 16 {
            self.ids.drain(..8);
        }
        if self.stores.len() > 16 {
            self.stores.drain(..8);
        }
        Ok(())
    }

    /// Keeps the newest files of EVENTS, so that others get what happens; reads from one with some room.
    fn read_events(&mut self, fd: i32) -> Result<(), String> {
        self.events
            .push(sys::own(fd).map_err(|e| format!("EVENTS: {e}"))?);
        if self.events.len() > 8 {
            self.events.remove(0);
        }
        let room = self.rng.pick(&[0, 1, 103, 104, 105, 208, 4096]);
        let mut buf = vec![0xa5u8; room + 8];
        let file = self.rng.below(self.events.len() as u64) as usize;
        let got = match (&self.events[file]).read(&mut buf[..room]) {
            Ok(n) if n % abi::EVENT == 0 && n > 0 => n,
            Ok(n) => return Err(format!("a read of {room} bytes of events gave {n}")),
            Err(e) if room < abi::EVENT && e.raw_os_error() == Some(EINVAL) => 0,
            Err(e) if room >= abi::EVENT && e.raw_os_error() == Some(EAGAIN) => 0,
            Err(e) => return Err(format!("a read of {room} bytes of events: {e}")),
        };
        if buf[got..].iter().any(|&b| b != 0xa5) {
            return Err(format!("a read of {got} bytes of events wrote behind them"));
        }
        Ok(())
    }

    fn thread(mut self, iterations: u64, until: Instant) -> Result<u64, String> {
        let mut arg = Cliff::new(4096).map_err(|e| e.to_string())?;
        arg.mem().fill(0xa5);
        let mut room = Cliff::new(16384).map_err(|e| e.to_string())?;
        let mut fd = control()?;
        let names: Vec<String> = (0..3).map(|i| format!("abifuzz.{}.{i}", self.id)).collect();
        let files = names
            .iter()
            .map(|n| store_file(&self.w.store_dir, n, self.w.store_size))
            .collect::<Result<Vec<_>, _>>()?;
        let fds: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let mut n = 0;
        while n < iterations && Instant::now() < until {
            self.one(&fd, &mut arg, &mut room, &fds)
                .map_err(|e| format!("call {n} of thread {}: {e}", self.id))?;
            n += 1;
            if self.rng.chance(1) {
                fd = control()?;
                self.stores.clear();
            }
        }
        drop(fd);
        for n in names {
            let _ = fs::remove_file(format!("{}/{n}", self.w.store_dir));
        }
        Ok(n)
    }
}

/// The random run, and a look at what it left.
pub fn random(
    w: &Where,
    iterations: u64,
    threads: u64,
    seconds: u64,
    seed: Option<u64>,
) -> Result<(), String> {
    let seed = Rng::seed(seed);
    let devs = vec![dev_of(&w.dev)?, dev_of(&w.other)?];
    let until = Instant::now() + Duration::from_secs(seconds);
    let total = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|id| {
                let f = Fuzz {
                    w,
                    devs: devs.clone(),
                    rng: Rng::new(seed + id),
                    ids: vec![],
                    stores: vec![],
                    events: vec![],
                    id,
                };
                scope.spawn(move || f.thread(iterations, until))
            })
            .collect();
        let mut total = 0;
        for h in handles {
            total += h
                .join()
                .unwrap_or_else(|_| Err("a thread panicked".into()))?;
        }
        Ok::<u64, String>(total)
    })?;
    // Whatever is left is there by KEEP or TRACK: it must go the ordinary way.
    let fd = control()?;
    for s in list(&fd, abi::LIST_SNAPSHOTS, &[0; 16], abi::SNAPSHOT_INFO)? {
        let r = abi::SNAPSHOT_DELETE
            .arg()
            .put(at::ID, &s[..16])
            .u32(at::FLAGS, 1)
            .call(&fd);
        if !matches!(r, Ok(_) | Err(ENOENT)) {
            return Err(format!(
                "deleting {:02x?} afterwards: {}",
                &s[..16],
                shown(&r)
            ));
        }
    }
    for d in devs {
        let r = abi::UNTRACK.arg().dev(d).u32(at::FLAGS, 1).call(&fd);
        if !matches!(r, Ok(_) | Err(ENOENT)) {
            return Err(format!("untracking {d:?} afterwards: {}", shown(&r)));
        }
    }
    let left = list(&fd, abi::LIST_ORIGINS, &[0; 16], abi::ORIGIN_INFO)?.len();
    let snaps = list(&fd, abi::LIST_SNAPSHOTS, &[0; 16], abi::SNAPSHOT_INFO)?.len();
    println!("abifuzz: {total} random calls; left: {left} origins, {snaps} snapshots");
    if left + snaps > 0 {
        return Err("something is left that can't be deleted".into());
    }
    Ok(())
}
