//! Writes self-describing sectors to a block device, and checks them.
//!
//! See `bdsnap_tests::sector` for what a sector holds.

use bdsnap_tests::die;
use bdsnap_tests::rng::Rng;
use bdsnap_tests::sector;
use bdsnap_tests::sector::Found;
use bdsnap_tests::sector::Header;
use bdsnap_tests::sector::SECTOR;
use bdsnap_tests::size;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Buf;
use bdsnap_tests::sys::Erase;
use bdsnap_tests::sys::Open;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

/// Pattern stomper: every sector it writes says where and when it was written.
#[derive(Parser)]
#[command(after_help = "Example:
  stomp fill /dev/vdb --seq 1
  stomp run /dev/vdb --seconds 10 --writers 4 --mix write=90,discard=5,zeroout=5 --seed 7
  stomp check /dev/bdsnap-image0 --max-seq 1

Exit status: 0 done or all good, 1 a check or a write failed, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write every sector of the device once.
    Fill(Fill),
    /// Write at random places until the time is over, or SIGTERM comes.
    Run(Run),
    /// Read everything and check every byte of every sector.
    Check(Check),
}

#[derive(Args)]
struct Fill {
    /// Block device or file
    device: String,
    /// Sequence number for all sectors
    #[arg(long, default_value_t = 1)]
    seq: u64,
    /// First sector's number (a partition's start on its disk)
    #[arg(long, default_value_t = 0)]
    base: u64,
    /// Through the page cache instead of O_DIRECT
    #[arg(long)]
    buffered: bool,
}

#[derive(Args)]
struct Run {
    /// Block device or file
    device: String,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Stop after so many operations
    #[arg(long)]
    ops: Option<u64>,
    /// Threads
    #[arg(long, default_value_t = 4)]
    writers: u32,
    /// Smallest operation
    #[arg(long, default_value = "512", value_parser = size::parse)]
    min: u64,
    /// Largest operation
    #[arg(long, default_value = "4M", value_parser = size::parse)]
    max: u64,
    /// Of 100 operations, so many start and end at multiples of 4K
    #[arg(long, default_value_t = 50)]
    aligned: u64,
    /// Of 100 writes, so many use O_DIRECT
    #[arg(long, default_value_t = 70)]
    direct: u64,
    /// Of 100 O_DIRECT writes, so many are O_DSYNC (FUA)
    #[arg(long, default_value_t = 10)]
    dsync: u64,
    /// Of 100 O_DIRECT writes, so many are tried with RWF_NOWAIT first
    #[arg(long, default_value_t = 0)]
    nowait: u64,
    /// Kinds of operation and their shares: write, discard, zeroout, punch,
    /// zerorange, secure
    #[arg(long, default_value = "write=100", value_parser = parse_mix)]
    mix: Mix,
    /// Only here: START:LEN in bytes
    #[arg(long, value_parser = size::parse_range)]
    range: Option<(u64, u64)>,
    /// Pause between the operations of a thread, in microseconds
    #[arg(long, default_value_t = 0)]
    pace_us: u64,
    /// The first operation's sequence number
    #[arg(long, default_value_t = 1000)]
    seq_base: u64,
    /// First sector's number (a partition's start on its disk)
    #[arg(long, default_value_t = 0)]
    base: u64,
    /// Repeat the run with this seed
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Args)]
struct Check {
    /// Block device or file
    device: String,
    /// A sector of zeros is no error
    #[arg(long)]
    allow_zero: bool,
    /// Nothing may be newer than this write
    #[arg(long)]
    max_seq: Option<u64>,
    /// Nothing may be older than this write
    #[arg(long)]
    min_seq: Option<u64>,
    /// Nothing may have been written after this (CLOCK_REALTIME, ns)
    #[arg(long)]
    max_time_ns: Option<u64>,
    /// First sector's number (a partition's start on its disk)
    #[arg(long, default_value_t = 0)]
    base: u64,
    /// Only here: START:LEN in bytes
    #[arg(long, value_parser = size::parse_range)]
    range: Option<(u64, u64)>,
    /// With O_DIRECT
    #[arg(long)]
    direct: bool,
    /// Bad sectors to print
    #[arg(long, default_value_t = 10)]
    show: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Write,
    Erase(Erase),
}

#[derive(Clone, Debug)]
struct Mix(Vec<(Op, u64)>);

fn parse_mix(s: &str) -> Result<Mix, String> {
    let mut mix = Vec::new();
    for part in s.split(',') {
        let (name, share) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' is not KIND=SHARE"))?;
        let op = match name {
            "write" => Op::Write,
            "discard" => Op::Erase(Erase::Discard),
            "zeroout" => Op::Erase(Erase::ZeroOut),
            "punch" => Op::Erase(Erase::PunchHole),
            "zerorange" => Op::Erase(Erase::ZeroRange),
            "secure" => Op::Erase(Erase::SecureErase),
            _ => return Err(format!("no such kind of operation: {name}")),
        };
        mix.push((
            op,
            share
                .parse()
                .map_err(|_| format!("'{share}' is no number"))?,
        ));
    }
    if mix.iter().all(|m| m.1 == 0) {
        return Err("all shares are 0".into());
    }
    Ok(Mix(mix))
}

impl Mix {
    fn pick(&self, rng: &mut Rng) -> Op {
        let mut n = rng.below(self.0.iter().map(|m| m.1).sum());
        for (op, share) in &self.0 {
            if n < *share {
                return *op;
            }
            n -= share;
        }
        Op::Write
    }
}

/// An operation in progress.
#[derive(Clone, Copy, PartialEq)]
struct Busy {
    start: u64,
    end: u64,
    buffered: bool,
}

impl Busy {
    /// Buffered and direct writes keep this far apart: a page cache folio, which
    /// may be a large one, that both touch at a time is an I/O error of the kernel's
    /// ("Page cache invalidation failure on direct I/O").
    const ZONE: u64 = 4 << 20;

    fn conflicts(&self, other: &Self) -> bool {
        if self.buffered == other.buffered {
            return self.start < other.end && other.start < self.end;
        }
        let zones = |b: &Self| (b.start / Self::ZONE, b.end.div_ceil(Self::ZONE));
        let ((a, b), (c, d)) = (zones(self), zones(other));
        a < d && c < b
    }
}

/// Keeps operations that overlap from running at the same time: which of two
/// such writes wins is nobody's promise, not even for a whole sector.
#[derive(Default)]
struct Ranges {
    busy: Mutex<Vec<Busy>>,
    freed: Condvar,
}

impl Ranges {
    fn with<T>(&self, me: Busy, f: impl FnOnce() -> T) -> T {
        let Ok(mut busy) = self.busy.lock() else {
            die!("a writer panicked")
        };
        while busy.iter().any(|b| b.conflicts(&me)) {
            busy = match self.freed.wait(busy) {
                Ok(b) => b,
                Err(_) => die!("a writer panicked"),
            };
        }
        busy.push(me);
        drop(busy);
        let r = f();
        if let Ok(mut busy) = self.busy.lock() {
            busy.retain(|b| *b != me);
        }
        self.freed.notify_all();
        r
    }
}

fn now(sector: u64, seq: u64, writer: u32, len: u64) -> Header {
    Header {
        sector,
        seq,
        writer,
        span: (len / SECTOR as u64) as u32,
        time: sys::realtime_ns(),
        mono: sys::monotonic_ns(),
    }
}

fn fill(a: &Fill) -> Result<(), String> {
    let f = sys::open(
        &a.device,
        Open {
            write: true,
            direct: !a.buffered,
            dsync: false,
        },
    )?;
    let size = whole_sectors(&f, &a.device)?;
    let mut buf = Buf::new(4 << 20);
    let mut at = 0;
    while at < size && !sys::stopped() {
        let len = (buf.len() as u64).min(size - at);
        let part = &mut buf[..len as usize];
        sector::encode_all(&now(a.base + at / SECTOR as u64, a.seq, 0, len), part);
        f.write_all_at(part, at)
            .map_err(|e| format!("write {} bytes at {at} of {}: {e}", len, a.device))?;
        at += len;
    }
    f.sync_all()
        .map_err(|e| format!("sync {}: {e}", a.device))?;
    println!("stomp: filled {} bytes={at} seq={}", a.device, a.seq);
    Ok(())
}

fn whole_sectors(f: &File, name: &str) -> Result<u64, String> {
    let size = sys::size_of(f).map_err(|e| format!("size of {name}: {e}"))?;
    if size == 0 || size % SECTOR as u64 != 0 {
        return Err(format!(
            "{name} has {size} bytes: not a positive number of sectors"
        ));
    }
    Ok(size)
}

#[derive(Default)]
struct Counts {
    ops: AtomicU64,
    bytes: AtomicU64,
    erases: AtomicU64,
    nowait_again: AtomicU64,
    refused: AtomicU64,
}

struct Shared<'a> {
    args: &'a Run,
    direct: File,
    dsync: File,
    buffered: File,
    start: u64,
    len: u64,
    unit: u64,
    /// The next operation's number, from 0.
    next: AtomicU64,
    until: Instant,
    ranges: Ranges,
    counts: Counts,
}

impl Shared<'_> {
    /// A random place and length within the range, whole units.
    fn place(&self, rng: &mut Rng) -> (u64, u64) {
        let unit = if rng.chance(self.args.aligned) {
            self.unit.max(4096)
        } else {
            self.unit
        };
        let unit = if unit > self.len { self.unit } else { unit };
        let len = rng.log_between(self.args.min, self.args.max).div_ceil(unit) * unit;
        let len = len.min(self.len / unit * unit);
        // Now and then at the very end, where devices have their odd sectors.
        let room = self.len - len;
        let at = if rng.chance(3) {
            room / self.unit * self.unit
        } else {
            rng.below(room / unit + 1) * unit
        };
        (self.start + at, len)
    }

    fn write(&self, rng: &mut Rng, buffered: bool, part: &[u8], at: u64) -> io::Result<()> {
        if buffered {
            self.buffered.write_all_at(part, at)?;
            if rng.chance(5) {
                self.buffered.sync_data()?;
            }
            return Ok(());
        }
        if rng.chance(self.args.nowait) {
            match sys::pwrite2(&self.direct, part, at, sys::NOWAIT) {
                Ok(n) if n == part.len() => return Ok(()),
                // A part may have been written: the whole again, the same bytes.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.counts.nowait_again.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => return Err(e),
            }
        }
        let f = if rng.chance(self.args.dsync) {
            &self.dsync
        } else {
            &self.direct
        };
        f.write_all_at(part, at)
    }

    fn one(&self, rng: &mut Rng, buf: &mut [u8], writer: u32, seq: u64) -> Result<(), String> {
        let (at, len) = self.place(rng);
        let op = self.args.mix.pick(rng);
        let buffered = op == Op::Write && !rng.chance(self.args.direct);
        let me = Busy {
            start: at,
            end: at + len,
            buffered,
        };
        let done = self.ranges.with(me, || match op {
            Op::Write => {
                let part = &mut buf[..len as usize];
                sector::encode_all(
                    &now(self.args.base + at / SECTOR as u64, seq, writer, len),
                    part,
                );
                self.write(rng, buffered, part, at)
            }
            Op::Erase(how) => {
                let r = sys::erase(&self.direct, how, at, len);
                match &r {
                    Ok(()) => self.counts.erases.fetch_add(1, Ordering::Relaxed),
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                        self.counts.refused.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    Err(_) => 0,
                };
                r
            }
        });
        done.map_err(|e| {
            format!(
                "{op:?} of {len} bytes at {at} (sector {}), seq {seq}: {e}",
                at / SECTOR as u64
            )
        })?;
        self.counts.ops.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    fn thread(&self, writer: u32, seed: u64) -> Result<(), String> {
        let mut rng = Rng::new(seed);
        let mut buf = Buf::new(self.args.max.div_ceil(4096) as usize * 4096 + 4096);
        while !sys::stopped() && Instant::now() < self.until {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            if self.args.ops.is_some_and(|max| n >= max) {
                break;
            }
            self.one(&mut rng, &mut buf, writer, self.args.seq_base + n)?;
            if self.args.pace_us > 0 {
                std::thread::sleep(Duration::from_micros(self.args.pace_us));
            }
        }
        Ok(())
    }
}

fn run(a: &Run) -> Result<(), String> {
    let seed = Rng::seed(a.seed);
    let direct = sys::open(
        &a.device,
        Open {
            write: true,
            direct: true,
            dsync: false,
        },
    )?;
    let size = whole_sectors(&direct, &a.device)?;
    let (start, len) = a.range.unwrap_or((0, size));
    let unit = sys::logical_block_size(&direct);
    if start % unit != 0 || len < unit || start.checked_add(len).is_none_or(|end| end > size) {
        return Err(format!(
            "range {start}:{len} is not inside {size} bytes, or not in blocks of {unit}"
        ));
    }
    let s = Shared {
        args: a,
        direct,
        dsync: sys::open(
            &a.device,
            Open {
                write: true,
                direct: true,
                dsync: true,
            },
        )?,
        buffered: sys::open(
            &a.device,
            Open {
                write: true,
                direct: false,
                dsync: false,
            },
        )?,
        start,
        len: len / unit * unit,
        unit,
        next: AtomicU64::new(0),
        until: Instant::now() + Duration::from_secs(a.seconds),
        ranges: Ranges::default(),
        counts: Counts::default(),
    };
    sys::stop_on_signals();
    let errors: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..a.writers)
            .map(|w| {
                let s = &s;
                scope.spawn(move || {
                    let r = s.thread(w + 1, seed.wrapping_add(u64::from(w) << 32));
                    if r.is_err() {
                        sys::stop_now();
                    }
                    r
                })
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err("a writer panicked".into()))
                    .err()
            })
            .collect()
    });
    s.buffered
        .sync_all()
        .map_err(|e| format!("sync {}: {e}", a.device))?;
    let c = |x: &AtomicU64| x.load(Ordering::Relaxed);
    println!(
        "stomp: ran {} ops={} bytes={} erases={} refused={} nowait_again={} last_seq={}",
        a.device,
        c(&s.counts.ops),
        c(&s.counts.bytes),
        c(&s.counts.erases),
        c(&s.counts.refused),
        c(&s.counts.nowait_again),
        a.seq_base + c(&s.next),
    );
    if errors.is_empty() {
        Ok(())
    } else {
        Err(format!("{}: {}", a.device, errors.join("; ")))
    }
}

#[derive(Default)]
struct Seen {
    good: u64,
    zero: u64,
    bad: u64,
    min_seq: Option<u64>,
    max_seq: u64,
    max_time: u64,
}

impl Seen {
    /// What is wrong with this sector, if anything.
    fn look(&mut self, a: &Check, number: u64, b: &[u8]) -> Option<String> {
        let h = match sector::decode(b) {
            Found::Good(h) => h,
            Found::Zero => {
                self.zero += 1;
                return (!a.allow_zero).then(|| "all zeros".into());
            }
            Found::Foreign => {
                return Some(format!(
                    "not written by stomp: starts with {:02x?}",
                    &b[..16]
                ))
            }
            Found::BadHeader => return Some(format!("damaged header: {:02x?}", &b[..56])),
            Found::Torn(h, at) => {
                return Some(format!(
                    "mixed from two writes from byte {at} on; header {h:?}"
                ))
            }
        };
        self.good += 1;
        self.min_seq = Some(self.min_seq.map_or(h.seq, |m| m.min(h.seq)));
        self.max_seq = self.max_seq.max(h.seq);
        self.max_time = self.max_time.max(h.time);
        if h.sector != number {
            return Some(format!(
                "belongs to sector {} (expected {number}): {h:?}",
                h.sector
            ));
        }
        if a.max_seq.is_some_and(|m| h.seq > m) {
            return Some(format!(
                "newer than the cut: seq {} > {:?}: {h:?}",
                h.seq, a.max_seq
            ));
        }
        if a.min_seq.is_some_and(|m| h.seq < m) {
            return Some(format!(
                "a lost write: seq {} < {:?}: {h:?}",
                h.seq, a.min_seq
            ));
        }
        if let Some(m) = a.max_time_ns.filter(|m| h.time > *m) {
            return Some(format!(
                "newer than the cut by {} us: {h:?}",
                (h.time - m) / 1000
            ));
        }
        None
    }
}

fn check(a: &Check) -> Result<(), String> {
    let f = sys::open(
        &a.device,
        Open {
            direct: a.direct,
            ..Open::default()
        },
    )?;
    let size = whole_sectors(&f, &a.device)?;
    let (start, len) = a.range.unwrap_or((0, size));
    if start % SECTOR as u64 != 0 || start.checked_add(len).is_none_or(|end| end > size) {
        return Err(format!("range {start}:{len} is not inside {size} bytes"));
    }
    let mut seen = Seen::default();
    let mut buf = Buf::new(1 << 20);
    let mut at = start;
    while at < start + len {
        let n = (buf.len() as u64).min(start + len - at) as usize;
        f.read_exact_at(&mut buf[..n], at)
            .map_err(|e| format!("read {n} bytes at {at} of {}: {e}", a.device))?;
        for (i, b) in buf[..n].chunks_exact(SECTOR).enumerate() {
            let local = at / SECTOR as u64 + i as u64;
            if let Some(why) = seen.look(a, a.base + local, b) {
                seen.bad += 1;
                if seen.bad <= a.show {
                    eprintln!(
                        "stomp: {} sector {local} (byte {}): {why}",
                        a.device,
                        local * SECTOR as u64
                    );
                }
            }
        }
        at += n as u64;
    }
    println!(
        "stomp: checked {} bytes={len} good={} zero={} bad={} min_seq={} max_seq={} max_time_ns={}",
        a.device,
        seen.good,
        seen.zero,
        seen.bad,
        seen.min_seq.unwrap_or(0),
        seen.max_seq,
        seen.max_time
    );
    if seen.bad > 0 {
        return Err(format!(
            "{} bad sectors of {} in {}",
            seen.bad,
            len / SECTOR as u64,
            a.device
        ));
    }
    if seen.good == 0 {
        return Err(format!("{} holds no sector of stomp at all", a.device));
    }
    Ok(())
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| match &cli.command {
        Command::Fill(a) => fill(a),
        Command::Run(a) => run(a),
        Command::Check(a) => check(a),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, size: u64) -> String {
        let dir = std::env::var("CARGO_TARGET_TMPDIR")
            .unwrap_or_else(|_| std::env::temp_dir().display().to_string());
        let path = format!("{dir}/stomp-{name}-{}", std::process::id());
        File::create(&path)
            .and_then(|f| f.set_len(size))
            .expect("test file");
        path
    }

    fn checking(device: &str) -> Check {
        let Command::Check(c) = Cli::parse_from(["stomp", "check", device, "--show", "0"]).command
        else {
            unreachable!()
        };
        c
    }

    fn exec(args: &[&str]) -> Result<(), String> {
        match Cli::parse_from([&["stomp"], args].concat()).command {
            Command::Fill(a) => fill(&a),
            Command::Run(a) => run(&a),
            Command::Check(a) => check(&a),
        }
    }

    #[test]
    fn fill_run_check() {
        // An odd number of sectors: the last 4K block is short.
        let p = file("frc", (8 << 20) + 512);
        exec(&["fill", &p, "--seq", "3", "--buffered"]).expect("fill");
        exec(&["check", &p, "--max-seq", "3", "--min-seq", "3"]).expect("check the fill");
        // --aligned 100: on a file there is no telling what O_DIRECT accepts.
        exec(&[
            "run",
            &p,
            "--ops",
            "200",
            "--seconds",
            "60",
            "--direct",
            "0",
            "--max",
            "64K",
            "--mix",
            "write=80,punch=20",
            "--seed",
            "1",
        ])
        .expect("run");
        assert!(check(&checking(&p)).is_err(), "the holes punched are zeros");
        exec(&["check", &p, "--allow-zero"]).expect("check the run");
        assert!(
            exec(&["check", &p, "--allow-zero", "--max-seq", "3", "--show", "0"]).is_err(),
            "newer sectors"
        );
        assert!(
            exec(&["check", &p, "--allow-zero", "--base", "1", "--show", "0"]).is_err(),
            "shifted sectors"
        );
        std::fs::remove_file(p).expect("rm");
    }

    #[test]
    fn one_bad_byte_is_found() {
        let p = file("bad", 1 << 20);
        exec(&["fill", &p, "--buffered"]).expect("fill");
        check(&checking(&p)).expect("good so far");
        let f = sys::open(
            &p,
            Open {
                write: true,
                ..Open::default()
            },
        )
        .expect("open");
        let byte = std::fs::read(&p).expect("read")[700_001];
        f.write_all_at(&[!byte], 700_001).expect("spoil");
        assert!(check(&checking(&p)).is_err());
        std::fs::remove_file(p).expect("rm");
    }

    #[test]
    fn what_may_run_at_a_time() {
        let b = |start, end, buffered| Busy {
            start,
            end,
            buffered,
        };
        assert!(b(0, 512, false).conflicts(&b(0, 4096, false)));
        assert!(!b(0, 512, false).conflicts(&b(512, 1024, false)));
        assert!(b(0, 512, false).conflicts(&b(512, 1024, true)));
        assert!(!b(0, 4 << 20, false).conflicts(&b(4 << 20, 8 << 20, true)));
        assert!(b(0, (4 << 20) + 512, false).conflicts(&b(7 << 20, 8 << 20, true)));
    }

    #[test]
    fn mixes() {
        assert!(parse_mix("write=1,discard=2").is_ok());
        assert!(parse_mix("write").is_err());
        assert!(parse_mix("write=0").is_err());
        assert!(parse_mix("fly=1").is_err());
    }
}
