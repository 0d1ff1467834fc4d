//! Forms of I/O that other programs don't do: buffers in many pieces, buffers
//! that are the pages of an image or of the origin itself, atomic writes.

use bdsnap_tests::rng::Rng;
use bdsnap_tests::sector;
use bdsnap_tests::sector::Found;
use bdsnap_tests::sector::Header;
use bdsnap_tests::sector::SECTOR;
use bdsnap_tests::size;
use bdsnap_tests::sys;
use bdsnap_tests::sys::memory;
use bdsnap_tests::sys::memory::Mapping;
use bdsnap_tests::sys::Buf;
use bdsnap_tests::sys::Open;
use clap::Parser;
use clap::Subcommand;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// Unusual forms of direct I/O on a block device.
#[derive(Parser)]
#[command(after_help = "Example:
  ioforms pieces /dev/vdb --piece 512 --count 1000 --ops 20 --seed 1
  ioforms from-image /dev/bdsnap-image0 /dev/vdb --ops 100 --seed 2
  ioforms into-origin /dev/bdsnap-image0 /dev/vdb --ops 100 --seed 3
  ioforms atomic /dev/sda --unit 16K --ops 500 --seed 4
  ioforms torn /dev/bdsnap-image0 --unit 16K

Exit status: 0 done or all good, 1 a check or an operation failed, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Each write is made of many small pieces, in a page of its own each; all is read back.
    Pieces {
        /// Block device
        device: String,
        /// Bytes in a piece, a multiple of the logical block size
        #[arg(long, default_value = "512", value_parser = size::parse)]
        piece: u64,
        /// Pieces in a write, at most 1024
        #[arg(long, default_value_t = 1000)]
        count: usize,
        /// Writes
        #[arg(long, default_value_t = 20)]
        ops: u64,
        /// Repeat with this seed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Write to the origin from the image's own pages, mapped; all is read back.
    FromImage {
        /// The image
        image: String,
        /// Its origin
        origin: String,
        /// Writes
        #[arg(long, default_value_t = 100)]
        ops: u64,
        /// Repeat with this seed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Read the image into the origin's own pages, mapped, and into a buffer that is being
    /// written to the origin.
    IntoOrigin {
        /// The image
        image: String,
        /// Its origin
        origin: String,
        /// Reads
        #[arg(long, default_value_t = 100)]
        ops: u64,
        /// Repeat with this seed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Write whole units with RWF_ATOMIC from several threads, the same units at the same time.
    Atomic {
        /// Block device
        device: String,
        /// Bytes in a unit
        #[arg(long, default_value = "16K", value_parser = size::parse)]
        unit: u64,
        /// Writes
        #[arg(long, default_value_t = 500)]
        ops: u64,
        /// Repeat with this seed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Check that each unit is all of one write.
    Torn {
        /// Block device or image
        device: String,
        /// Bytes in a unit
        #[arg(long, default_value = "16K", value_parser = size::parse)]
        unit: u64,
    },
}

fn device(path: &str, write: bool, direct: bool) -> Result<(File, u64), String> {
    let how = Open {
        write,
        direct,
        dsync: false,
    };
    let f = sys::open(path, how)?;
    let size = sys::size_of(&f).map_err(|e| format!("size of {path}: {e}"))?;
    Ok((f, size))
}

/// All of it, or an error.
fn whole(what: &str, len: u64, r: std::io::Result<usize>) -> Result<(), String> {
    match r {
        Ok(n) if n as u64 == len => Ok(()),
        Ok(n) => Err(format!("{what}: {n} of {len} bytes")),
        Err(e) => Err(format!("{what}: {e}")),
    }
}

fn pieces(path: &str, piece: u64, count: usize, ops: u64, rng: &mut Rng) -> Result<(), String> {
    let (f, size) = device(path, true, true)?;
    let len = piece * count as u64;
    if piece == 0 || piece > 4096 || len > size {
        return Err(format!("{count} pieces of {piece} do not fit"));
    }
    let mut memory = Buf::new(count * 4096);
    let mut back = Buf::new(len as usize);
    for _ in 0..ops {
        rng.fill(&mut memory);
        // Somewhere in its page, so that no two pieces are neighbours.
        let list: Vec<&[u8]> = (0..count)
            .map(|i| {
                let at = i * 4096 + (rng.below(4096 / piece) * piece) as usize;
                &memory[at..at + piece as usize]
            })
            .collect();
        let offset = rng.below((size - len) / piece + 1) * piece;
        let done = memory::write_pieces(&f, &list, offset, 0);
        whole(&format!("write pieces at {offset}"), len, done)?;
        f.read_exact_at(&mut back, offset)
            .map_err(|e| format!("read back at {offset}: {e}"))?;
        if back[..] != list.concat()[..] {
            return Err(format!("{len} bytes at {offset} are not what was written"));
        }
    }
    println!("ioforms: {path}: {ops} writes of {count} pieces");
    Ok(())
}

/// A random range of whole pages.
fn range(rng: &mut Rng, size: u64) -> (u64, u64) {
    let pages = size / 4096;
    let len = rng.log_between(1, 256.min(pages));
    (rng.below(pages - len + 1) * 4096, len * 4096)
}

fn from_image(image: &str, origin: &str, ops: u64, rng: &mut Rng) -> Result<(), String> {
    let (i, size) = device(image, false, false)?;
    let (o, _) = device(origin, true, true)?;
    let map = Mapping::new(&i, size as usize, false).map_err(|e| format!("mmap: {e}"))?;
    let (mut want, mut got) = (Buf::new(1 << 20), Buf::new(1 << 20));
    for n in 0..ops {
        sys::watchdog(60);
        let (from, len) = range(rng, size);
        // Half of them onto the very same place.
        let to = if n % 2 == 0 {
            from
        } else {
            rng.below((size - len) / 4096 + 1) * 4096
        };
        let done = map.write_to(&o, from as usize, len as usize, to);
        whole(
            &format!("write the image's {from}+{len} to {to}"),
            len,
            done,
        )?;
        let n = len as usize;
        let read = |f: &File, b: &mut [u8], at| f.read_exact_at(b, at);
        read(&i, &mut want[..n], from).map_err(|e| format!("read the image at {from}: {e}"))?;
        read(&o, &mut got[..n], to).map_err(|e| format!("read back at {to}: {e}"))?;
        if want[..n] != got[..n] {
            return Err(format!(
                "{len} bytes at {to} are not those of the image at {from}"
            ));
        }
    }
    println!("ioforms: {origin}: {ops} writes from the pages of {image}");
    Ok(())
}

fn into_origin(image: &str, origin: &str, ops: u64, rng: &mut Rng) -> Result<(), String> {
    let (i, size) = device(image, false, true)?;
    let (buffered, _) = device(origin, true, false)?;
    let (direct, _) = device(origin, true, true)?;
    // Two halves: direct writes and dirty pages of the same place would be an error of our own.
    let half = size / 2 / 4096 * 4096;
    let map = Mapping::new(&buffered, half as usize, true).map_err(|e| format!("mmap: {e}"))?;
    for _ in 0..ops {
        sys::watchdog(60);
        let (from, len) = range(rng, size);
        let to = rng.below((half.max(len) - len) / 4096 + 1) * 4096;
        if to + len <= half {
            let done = map.read_from(&i, to as usize, len as usize, from);
            whole(
                &format!("read {from}+{len} into the origin's pages"),
                len,
                done,
            )?;
        }
    }
    buffered
        .sync_all()
        .map_err(|e| format!("sync {origin}: {e}"))?;
    // A page that holds what the image holds, mapped by both sides.
    let path = format!("/dev/shm/ioforms-{}", std::process::id());
    let shared = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|f| f.set_len(1 << 20).map(|()| f))
        .map_err(|e| format!("{path}: {e}"))?;
    let _ = std::fs::remove_file(&path);
    let buffer = Mapping::new(&shared, 1 << 20, true).map_err(|e| format!("mmap: {e}"))?;
    let over = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let seed = rng.word();
    std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut rng = Rng::new(seed);
            while !over.load(Ordering::Relaxed) {
                let (from, len) = range(&mut rng, size);
                let done = buffer.read_from(&i, 0, len as usize, from);
                whole(
                    &format!("read {from}+{len} into the shared buffer"),
                    len,
                    done,
                )?;
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let mut result = Ok(());
        for _ in 0..ops {
            sys::watchdog(60);
            let (at, len) = range(rng, half);
            let done = buffer.write_to(&direct, 0, len as usize, half + at);
            result = whole(
                &format!("write the shared buffer to {}", half + at),
                len,
                done,
            );
            if result.is_err() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        let read: Result<(), String> = reader.join().unwrap_or_else(|_| Err("panic".into()));
        result.and(read)
    })?;
    println!(
        "ioforms: {origin}: {ops} writes of a buffer into which {image} was read {} times",
        reads.load(Ordering::Relaxed)
    );
    Ok(())
}

fn atomic(path: &str, unit: u64, ops: u64, rng: &mut Rng) -> Result<(), String> {
    let (f, size) = device(path, true, true)?;
    let next = AtomicU64::new(0);
    let seed = rng.word();
    sys::stop_on_signals();
    let write = |writer: u32| -> Result<(), String> {
        let mut rng = Rng::new(seed ^ u64::from(writer));
        let mut buf = Buf::new(unit as usize);
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= ops || sys::stopped() {
                return Ok(());
            }
            // Few units, so that they meet.
            let at = rng.below((size / unit).min(64)) * unit;
            let h = Header {
                sector: at / SECTOR as u64,
                seq: 100 + n,
                writer,
                span: (unit / SECTOR as u64) as u32,
                time: sys::realtime_ns(),
                mono: sys::monotonic_ns(),
            };
            sector::encode_all(&h, &mut buf);
            let done = memory::write_pieces(&f, &[&buf], at, memory::ATOMIC);
            whole(&format!("atomic write of {unit} bytes at {at}"), unit, done)?;
        }
    };
    std::thread::scope(|s| {
        let threads: Vec<_> = (1..=4).map(|w| s.spawn(move || write(w))).collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|_| Err("panic".into())))
    })?;
    println!(
        "ioforms: {path}: {} atomic writes of {unit} bytes",
        next.load(Ordering::Relaxed).min(ops)
    );
    Ok(())
}

fn torn(path: &str, unit: u64) -> Result<(), String> {
    let (f, size) = device(path, false, true)?;
    let mut buf = Buf::new(unit as usize);
    let (mut new, mut bad) = (0u64, 0u64);
    for n in 0..size / unit {
        f.read_exact_at(&mut buf, n * unit)
            .map_err(|e| format!("read {path} at {}: {e}", n * unit))?;
        let mut seqs: Vec<u64> = Vec::new();
        for b in buf.chunks_exact(SECTOR) {
            match sector::decode(b) {
                Found::Good(h) => seqs.push(h.seq),
                x => return Err(format!("unit {n} of {path}: {x:?}")),
            }
        }
        seqs.dedup();
        new += u64::from(seqs[0] >= 100);
        if seqs.len() > 1 {
            bad += 1;
            println!("  torn: unit {n}: of writes {seqs:?}");
        }
    }
    println!(
        "ioforms: {path}: units={} written={new} torn={bad}",
        size / unit
    );
    if bad > 0 {
        return Err(format!("{bad} units of {path} are of several writes"));
    }
    Ok(())
}

fn main() {
    let cli = Cli::parse();
    let rng = |seed| Rng::new(Rng::seed(seed));
    bdsnap_tests::run(|| match cli.command {
        Command::Pieces {
            device,
            piece,
            count,
            ops,
            seed,
        } => pieces(&device, piece, count, ops, &mut rng(seed)),
        Command::FromImage {
            image,
            origin,
            ops,
            seed,
        } => from_image(&image, &origin, ops, &mut rng(seed)),
        Command::IntoOrigin {
            image,
            origin,
            ops,
            seed,
        } => into_origin(&image, &origin, ops, &mut rng(seed)),
        Command::Atomic {
            device,
            unit,
            ops,
            seed,
        } => atomic(&device, unit, ops, &mut rng(seed)),
        Command::Torn { device, unit } => torn(&device, unit),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_unit_is_found() {
        let path = format!("/var/tmp/ioforms-{}", std::process::id());
        let mut data = vec![0u8; 64 << 10];
        let h = |sector, seq| Header {
            sector,
            seq,
            time: 0,
            mono: 0,
            writer: 1,
            span: 8,
        };
        for s in 0..128 {
            sector::encode_all(
                &h(s, 100 + s / 32),
                &mut data[s as usize * SECTOR..][..SECTOR],
            );
        }
        std::fs::write(&path, &data).expect("write");
        assert_eq!(torn(&path, 16 << 10), Ok(()));
        sector::encode_all(&h(5, 99), &mut data[5 * SECTOR..6 * SECTOR]);
        std::fs::write(&path, &data).expect("write");
        assert!(torn(&path, 16 << 10).is_err());
        std::fs::remove_file(path).expect("rm");
    }
}
