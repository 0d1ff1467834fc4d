//! Reads of an image that race with the first writes to the same granules.
//!
//! Writers take the granules of the origin in a random order, each once. Readers
//! read the image where writers are about to be, or have just been. Whatever they
//! get must be what the origin held at the cut: sectors of one known write.

use bdsnap_tests::rng::Rng;
use bdsnap_tests::sector;
use bdsnap_tests::sector::Found;
use bdsnap_tests::sector::Header;
use bdsnap_tests::sector::SECTOR;
use bdsnap_tests::size;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Buf;
use bdsnap_tests::sys::Open;
use clap::Parser;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// Overwrites every granule of a device once, in a random order, while its image is read in
/// the same places at the same time.
#[derive(Parser)]
#[command(after_help = "Example:
  stomp fill /dev/vdb --seq 1
  bdsnap snapshot create /dev/vdb --no-freeze
  race /dev/vdb /dev/bdsnap-image0 --seq 2

Every sector of the image must be of write SEQ - 1. Exit status: 0 all good, 1 not, 2 wrong usage.")]
struct Cli {
    /// The device
    origin: String,
    /// Its image
    image: String,
    /// Sequence number of what is written
    #[arg(long)]
    seq: u64,
    /// Bytes written at a time; reads are of any size from a sector to twice that
    #[arg(long, default_value = "4K", value_parser = size::parse)]
    unit: u64,
    /// Threads that write
    #[arg(long, default_value_t = 2)]
    writers: u32,
    /// Threads that read
    #[arg(long, default_value_t = 3)]
    readers: u32,
    /// Repeat with this seed
    #[arg(long)]
    seed: Option<u64>,
}

const UNTOUCHED: u8 = 0;
const WRITING: u8 = 1;
const WRITTEN: u8 = 2;

struct Race<'a> {
    args: &'a Cli,
    size: u64,
    block: u64,
    /// Numbers of units, in the order of writing.
    order: Vec<u64>,
    /// By number of unit.
    state: Vec<AtomicU8>,
    /// The next place in `order` to be written.
    next: AtomicUsize,
    reads: AtomicU64,
    overtaken: AtomicU64,
}

impl Race<'_> {
    fn write(&self, writer: u32) -> Result<(), String> {
        let how = Open {
            write: true,
            direct: true,
            dsync: false,
        };
        let f = sys::open(&self.args.origin, how)?;
        let mut buf = Buf::new(self.args.unit as usize);
        loop {
            let Some(&unit) = self.order.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                return Ok(());
            };
            let at = unit * self.args.unit;
            let len = self.args.unit.min(self.size - at);
            let part = &mut buf[..len as usize];
            let header = Header {
                sector: at / SECTOR as u64,
                seq: self.args.seq,
                time: sys::realtime_ns(),
                mono: sys::monotonic_ns(),
                writer,
                span: (len / SECTOR as u64) as u32,
            };
            sector::encode_all(&header, part);
            let state = &self.state[unit as usize];
            state.store(WRITING, Ordering::SeqCst);
            f.write_all_at(part, at)
                .map_err(|e| format!("write {len} bytes at {at}: {e}"))?;
            state.store(WRITTEN, Ordering::SeqCst);
        }
    }

    fn read(&self, seed: u64) -> Result<(), String> {
        let how = Open {
            direct: true,
            ..Open::default()
        };
        let f = sys::open(&self.args.image, how)?;
        let mut rng = Rng::new(seed);
        let mut buf = Buf::new(self.args.unit as usize * 2);
        let ahead = u64::from(self.args.writers) * 2;
        loop {
            let next = self.next.load(Ordering::Relaxed) as u64;
            if next >= self.order.len() as u64 {
                return Ok(());
            }
            let place = (next + rng.below(ahead)).saturating_sub(u64::from(self.args.writers));
            let Some(&unit) = self.order.get(place as usize) else {
                continue;
            };
            let state = &self.state[unit as usize];
            let blocks = self.args.unit / self.block;
            let at = unit * self.args.unit + rng.below(blocks) * self.block;
            let len = rng.between(1, blocks * 2) * self.block;
            if at >= self.size {
                continue;
            }
            let part = &mut buf[..len.min(self.size - at) as usize];
            let before = state.load(Ordering::SeqCst);
            f.read_exact_at(part, at)
                .map_err(|e| format!("read {} bytes at {at} of the image: {e}", part.len()))?;
            let after = state.load(Ordering::SeqCst);
            self.reads.fetch_add(1, Ordering::Relaxed);
            if before != WRITTEN && after != UNTOUCHED {
                self.overtaken.fetch_add(1, Ordering::Relaxed);
            }
            for (i, b) in part.chunks_exact(SECTOR).enumerate() {
                let number = at / SECTOR as u64 + i as u64;
                match sector::decode(b) {
                    Found::Good(h) if h.sector == number && h.seq == self.args.seq - 1 => {}
                    found => {
                        return Err(format!(
                            "sector {number} of the image (unit {unit}: {before}, then {after}): {found:?}"
                        ))
                    }
                }
            }
        }
    }
}

fn race(args: &Cli) -> Result<(), String> {
    let f = sys::open(&args.origin, Open::default())?;
    let size = sys::size_of(&f).map_err(|e| format!("size of {}: {e}", args.origin))?;
    let block = sys::logical_block_size(&f);
    if args.unit == 0 || args.unit % block != 0 || size % block != 0 || args.seq == 0 {
        return Err(format!("units of {} on blocks of {block}", args.unit));
    }
    let mut rng = Rng::new(Rng::seed(args.seed));
    let mut order: Vec<u64> = (0..size.div_ceil(args.unit)).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i as u64 + 1) as usize);
    }
    let race = Race {
        args,
        size,
        block,
        state: order.iter().map(|_| AtomicU8::new(UNTOUCHED)).collect(),
        order,
        next: AtomicUsize::new(0),
        reads: AtomicU64::new(0),
        overtaken: AtomicU64::new(0),
    };
    let result = std::thread::scope(|scope| {
        let race = &race;
        let mut threads = Vec::new();
        for writer in 0..args.writers {
            threads.push(scope.spawn(move || race.write(writer + 1)));
        }
        for _ in 0..args.readers {
            let seed = rng.word();
            threads.push(scope.spawn(move || race.read(seed)));
        }
        // All of them are waited for, whatever the first one says.
        let results: Vec<Result<(), String>> = threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into())))
            .collect();
        results.into_iter().collect::<Result<Vec<()>, String>>()
    });
    println!(
        "race: units={} reads={} overtaken={}",
        race.order.len(),
        race.reads.load(Ordering::Relaxed),
        race.overtaken.load(Ordering::Relaxed)
    );
    result.map(|_| ())
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| race(&cli));
}
