//! The torn-cut writer: an increasing counter goes to each device in turn,
//! every write completed before the next begins. A set of images that is not
//! from one instant shows a counter that was never seen together.

use bdsnap_tests::rng::Rng;
use bdsnap_tests::sector;
use bdsnap_tests::sector::Found;
use bdsnap_tests::sector::Header;
use bdsnap_tests::sector::SECTOR;
use bdsnap_tests::size;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Buf;
use bdsnap_tests::sys::Open;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

/// Writes an increasing counter to A, then B (then C …), O_DIRECT, each write
/// completed before the next; a set of images with B ahead of A, or A ahead
/// of B by more than one, was not cut at one instant.
#[derive(Parser)]
#[command(after_help = "Example:
  twins init /dev/vdb /dev/vdc
  twins run /dev/vdb /dev/vdc --seconds 20 &
  bdsnap snapshot create /dev/vdb /dev/vdc --no-freeze
  twins check /dev/bdsnap-image0 /dev/bdsnap-image1

Files on a file system will do as well as devices (`init --size 1M FILE`).
Exit status: 0 done or not torn, 1 torn or damaged, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write counter 0 to all slots.
    Init(Common),
    /// Count, one thread a slot, until the time is over or SIGTERM comes.
    Run {
        #[command(flatten)]
        c: Common,
        /// Stop after so many seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Check the images (in the order of the devices).
    Check {
        #[command(flatten)]
        c: Common,
        /// Fail unless every slot's counter has got this far
        #[arg(long, default_value_t = 0)]
        at_least: u64,
    },
}

#[derive(Args)]
struct Common {
    /// Devices or files, in the order of writing
    #[arg(required = true, num_args = 2..)]
    devices: Vec<String>,
    /// Counters, each with its own thread and place
    #[arg(long, default_value_t = 4)]
    slots: u32,
    /// Bytes written for a counter; more than one block can be torn in itself
    #[arg(long, default_value = "4K", value_parser = size::parse)]
    size: u64,
    /// Bytes from slot to slot
    #[arg(long, default_value = "128K", value_parser = size::parse)]
    stride: u64,
    /// Repeat with this seed (it only sets the pauses between writes)
    #[arg(long)]
    seed: Option<u64>,
}

impl Common {
    fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * self.stride
    }

    fn sane(&self) -> Result<(), String> {
        if self.size == 0
            || self.size % SECTOR as u64 != 0
            || self.stride < self.size
            || self.stride % 4096 != 0
        {
            return Err(
                "--size must be whole sectors, --stride a multiple of 4K and not below it".into(),
            );
        }
        Ok(())
    }

    fn open(&self, write: bool) -> Result<Vec<File>, String> {
        self.sane()?;
        self.devices
            .iter()
            .map(|d| {
                sys::open(
                    d,
                    Open {
                        write,
                        direct: true,
                        dsync: false,
                    },
                )
            })
            .collect()
    }

    fn put(
        &self,
        f: &File,
        dev: usize,
        slot: u32,
        count: u64,
        buf: &mut Buf,
    ) -> Result<(), String> {
        let at = self.offset(slot);
        let h = Header {
            sector: at / SECTOR as u64,
            seq: count,
            writer: slot,
            span: dev as u32,
            time: sys::realtime_ns(),
            mono: sys::monotonic_ns(),
        };
        let part = &mut buf[..self.size as usize];
        sector::encode_all(&h, part);
        f.write_all_at(part, at)
            .map_err(|e| format!("write {count} at {at} of {}: {e}", self.devices[dev]))
    }

    /// The counter of a slot on one device.
    fn get(&self, f: &File, dev: usize, slot: u32, buf: &mut Buf) -> Result<u64, String> {
        let at = self.offset(slot);
        let name = &self.devices[dev];
        let part = &mut buf[..self.size as usize];
        f.read_exact_at(part, at)
            .map_err(|e| format!("read {at} of {name}: {e}"))?;
        let mut count = None;
        for (i, s) in part.chunks_exact(SECTOR).enumerate() {
            let sector = at / SECTOR as u64 + i as u64;
            match sector::decode(s) {
                Found::Good(h)
                    if h.sector == sector && h.writer == slot && h.span == dev as u32 =>
                {
                    if *count.get_or_insert(h.seq) != h.seq {
                        return Err(format!(
                            "slot {slot}: one write is torn in itself: {name} sector {sector} has {}, its first {count:?}",
                            h.seq
                        ));
                    }
                }
                other => return Err(format!("slot {slot}: {name} sector {sector}: {other:?}")),
            }
        }
        count.ok_or_else(|| "no sectors".into())
    }
}

/// True if these counters (in the order of writing) can be of one instant.
fn one_instant(counts: &[u64]) -> bool {
    counts.windows(2).all(|w| w[0] >= w[1]) && counts[0] - counts[counts.len() - 1] <= 1
}

fn init(c: &Common) -> Result<(), String> {
    for d in &c.devices {
        if !std::path::Path::new(d).exists() {
            File::create(d).map_err(|e| format!("{d}: {e}"))?;
        }
    }
    let files = c.open(true)?;
    let mut buf = Buf::new(c.size as usize);
    for (dev, f) in files.iter().enumerate() {
        for slot in 0..c.slots {
            c.put(f, dev, slot, 0, &mut buf)?;
        }
        f.sync_all()
            .map_err(|e| format!("sync {}: {e}", c.devices[dev]))?;
    }
    println!(
        "twins: initialised {} slots on {} devices",
        c.slots,
        files.len()
    );
    Ok(())
}

fn count(c: &Common, files: &[File], slot: u32, until: Instant, seed: u64) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let mut buf = Buf::new(c.size as usize);
    let mut counts = Vec::new();
    for (dev, f) in files.iter().enumerate() {
        counts.push(c.get(f, dev, slot, &mut buf)?);
    }
    let mut n = counts[0];
    // An earlier run that was killed may have left the last ones behind.
    for (dev, f) in files.iter().enumerate() {
        c.put(f, dev, slot, n, &mut buf)?;
    }
    while !sys::stopped() && Instant::now() < until {
        n += 1;
        for (dev, f) in files.iter().enumerate() {
            c.put(f, dev, slot, n, &mut buf)?;
            if rng.chance(10) {
                std::thread::sleep(Duration::from_micros(rng.below(500)));
            }
        }
    }
    Ok(n)
}

fn run(c: &Common, seconds: u64) -> Result<(), String> {
    let seed = Rng::seed(c.seed);
    let files = c.open(true)?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let lowest = AtomicU64::new(u64::MAX);
    sys::stop_on_signals();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..c.slots)
            .map(|slot| {
                let (files, lowest) = (&files, &lowest);
                scope.spawn(move || {
                    let r = count(c, files, slot, until, seed + u64::from(slot));
                    match &r {
                        Ok(n) => {
                            lowest.fetch_min(*n, Ordering::Relaxed);
                        }
                        Err(_) => sys::stop_now(),
                    }
                    r
                })
            })
            .collect();
        for t in threads {
            t.join()
                .unwrap_or_else(|_| Err("a thread panicked".into()))?;
        }
        Ok::<(), String>(())
    })?;
    println!(
        "twins: ran slots={} lowest_count={}",
        c.slots,
        lowest.load(Ordering::Relaxed)
    );
    Ok(())
}

fn check(c: &Common, at_least: u64) -> Result<(), String> {
    let files = c.open(false)?;
    let mut buf = Buf::new(c.size as usize);
    let mut errors = Vec::new();
    let mut between = 0;
    for slot in 0..c.slots {
        let counts = files
            .iter()
            .enumerate()
            .map(|(dev, f)| c.get(f, dev, slot, &mut buf))
            .collect::<Result<Vec<_>, _>>()?;
        println!("twins: slot {slot}: {counts:?}");
        if !one_instant(&counts) {
            errors.push(format!("slot {slot}: TORN: {counts:?}"));
        }
        if counts[0] < at_least {
            errors.push(format!(
                "slot {slot}: only at {}, expected {at_least}",
                counts[0]
            ));
        }
        between += u32::from(counts[0] != counts[counts.len() - 1]);
    }
    println!(
        "twins: checked slots={} cut_between_writes={between}",
        c.slots
    );
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| match &cli.command {
        Command::Init(c) => init(c),
        Command::Run { c, seconds } => run(c, *seconds),
        Command::Check { c, at_least } => check(c, *at_least),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_counts_are_torn() {
        for good in [&[5, 5][..], &[5, 4], &[7, 7, 7], &[7, 7, 6], &[7, 6, 6]] {
            assert!(one_instant(good), "{good:?}");
        }
        for torn in [&[4, 5][..], &[6, 4], &[7, 6, 7], &[7, 6, 5], &[6, 7, 7]] {
            assert!(!one_instant(torn), "{torn:?}");
        }
    }
}
