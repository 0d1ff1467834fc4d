//! Takes block hashes of a device, compares two such lists, and measures
//! `bdsnap changes` against them.

use bdsnap_tests::digests;
use bdsnap_tests::digests::Digest;
use bdsnap_tests::digests::Extent;
use bdsnap_tests::size;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Buf;
use bdsnap_tests::sys::Open;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use std::fs;
use std::os::unix::fs::FileExt;

/// Block hashes of devices: take, compare, and judge a list of changes.
#[derive(Parser)]
#[command(after_help = "Example:
  digest take /dev/bdsnap-image0 one.digest
  digest take /dev/bdsnap-image1 two.digest
  digest diff one.digest two.digest
  bdsnap --json changes /dev/bdsnap-image1 --since 1 > changes.json
  digest changes one.digest two.digest changes.json

Exit status: 0 equal or nothing missed, 1 they differ or something is missed,
2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read a device or file and write its block hashes.
    Take(Take),
    /// Compare two lists; print what differs.
    Diff {
        /// One list
        a: String,
        /// The other
        b: String,
        /// Succeed if they differ, fail if they are equal
        #[arg(long)]
        expect_different: bool,
    },
    /// Check the JSON of `bdsnap changes` for differences it leaves out.
    Changes {
        /// The list of the older image
        old: String,
        /// The list of the newer image
        new: String,
        /// What `bdsnap --json changes` printed
        json: String,
        /// Fail if more than so many percent of the blocks listed have not changed
        #[arg(long)]
        max_false_positives: Option<u64>,
        /// Pretend that the list does not have its N-th extent: a check of this
        /// check, which must then fail
        #[arg(long)]
        forget: Option<usize>,
    },
}

#[derive(Args)]
struct Take {
    /// Block device or file
    device: String,
    /// Where to write the list
    out: String,
    /// Bytes that share a hash
    #[arg(long, default_value = "4K", value_parser = size::parse)]
    block: u64,
    /// Read with O_DIRECT
    #[arg(long)]
    direct: bool,
    /// Bytes to read at a time
    #[arg(long, default_value = "1M", value_parser = size::parse)]
    read: u64,
}

fn take(device: &str, block: u64, read: u64, direct: bool) -> Result<Digest, String> {
    if block == 0 || block > 1 << 30 {
        return Err(format!("bad block size {block}"));
    }
    let f = sys::open(
        device,
        Open {
            direct,
            ..Open::default()
        },
    )?;
    let size = sys::size_of(&f).map_err(|e| format!("size of {device}: {e}"))?;
    let mut buf = Buf::new((read.max(block) / block * block) as usize);
    let mut hashes = Vec::with_capacity(size.div_ceil(block) as usize);
    let mut at = 0;
    while at < size {
        let n = (buf.len() as u64).min(size - at) as usize;
        f.read_exact_at(&mut buf[..n], at).map_err(|e| {
            format!(
                "read {n} bytes at {at} (sector {}) of {device}: {e}",
                at / 512
            )
        })?;
        hashes.extend(buf[..n].chunks(block as usize).map(digests::hash));
        at += n as u64;
    }
    Ok(Digest {
        block,
        size,
        hashes,
    })
}

fn load(path: &str) -> Result<Digest, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    Digest::from_text(&text).map_err(|e| format!("{path}: {e}"))
}

fn print(what: &str, extents: &[Extent]) {
    for e in extents.iter().take(20) {
        println!(
            "  {what}: offset {} length {} (sector {})",
            e.offset,
            e.length,
            e.offset / 512
        );
    }
    if extents.len() > 20 {
        println!("  {what}: and {} more extents", extents.len() - 20);
    }
}

fn diff(a: &str, b: &str, expect_different: bool) -> Result<(), String> {
    let d = load(a)?.diff(&load(b)?)?;
    let bytes: u64 = d.iter().map(|e| e.length).sum();
    println!(
        "digest: {a} and {b}: extents={} bytes={bytes} different",
        d.len()
    );
    if expect_different {
        return if d.is_empty() {
            Err(format!("{a} and {b} are equal and should not be"))
        } else {
            Ok(())
        };
    }
    print("differs", &d);
    if d.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "{a} and {b} differ in {bytes} bytes, from byte {} on",
            d[0].offset
        ))
    }
}

fn changes(
    old: &str,
    new: &str,
    json: &str,
    max: Option<u64>,
    forget: Option<usize>,
) -> Result<(), String> {
    let (a, b) = (load(old)?, load(new)?);
    let text = fs::read_to_string(json).map_err(|e| format!("{json}: {e}"))?;
    let (block, mut listed) = digests::parse_changes(&text).map_err(|e| format!("{json}: {e}"))?;
    if block == 0 || block % a.block != 0 {
        return Err(format!(
            "{json}: blocks of {block} can't be judged by hashes of {} bytes",
            a.block
        ));
    }
    if let Some(n) = forget {
        if n >= listed.len() {
            return Err(format!("{json} has no extent {n}"));
        }
        listed.remove(n);
    }
    let truth = a.diff(&b)?;
    let v = digests::judge(&truth, &listed, block, a.size).map_err(|e| format!("{json}: {e}"))?;
    let surplus = v.listed_blocks - (v.true_blocks - v.missed.len() as u64);
    let percent = surplus * 100 / v.listed_blocks.max(1);
    println!(
        "digest: changes: bytes_differing={} blocks_differing={} blocks_listed={} of={} missed={} \
         false_positives={surplus} ({percent} % of those listed)",
        v.truth,
        v.true_blocks,
        v.listed_blocks,
        a.size.div_ceil(block),
        v.missed.len(),
    );
    if !v.missed.is_empty() {
        print("MISSED", &v.missed);
        return Err(format!(
            "{} changed blocks are not in {json}: data would be lost",
            v.missed.len()
        ));
    }
    if max.is_some_and(|m| percent > m) {
        return Err(format!("{percent} % of the blocks listed have not changed"));
    }
    Ok(())
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| match &cli.command {
        Command::Take(t) => {
            let d = take(&t.device, t.block, t.read, t.direct)?;
            fs::write(&t.out, d.to_text()).map_err(|e| format!("{}: {e}", t.out))?;
            println!(
                "digest: {} bytes={} total={:016x}",
                t.device,
                d.size,
                d.total()
            );
            Ok(())
        }
        Command::Diff {
            a,
            b,
            expect_different,
        } => diff(a, b, *expect_different),
        Command::Changes {
            old,
            new,
            json,
            max_false_positives,
            forget,
        } => changes(old, new, json, *max_false_positives, *forget),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_of_a_file() {
        let path = format!(
            "{}/digest-{}",
            std::env::temp_dir().display(),
            std::process::id()
        );
        let mut data: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
        fs::write(&path, &data).expect("write");
        let a = take(&path, 4096, 1 << 20, false).expect("take");
        let small = take(&path, 4096, 8192, false).expect("take in small reads");
        assert_eq!(a, small);
        data[299_999] ^= 1;
        fs::write(&path, &data).expect("write");
        let b = take(&path, 4096, 1 << 20, false).expect("take");
        assert_eq!(
            a.diff(&b),
            Ok(vec![Extent {
                offset: 73 * 4096,
                length: 300_000 - 73 * 4096
            }])
        );
        fs::remove_file(path).expect("rm");
    }
}
