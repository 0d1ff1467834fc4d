//! Replays a log of dm-log-writes: the truth that images and `bdsnap changes`
//! are measured against.

use bdsnap_tests::digests;
use bdsnap_tests::replica;
use bdsnap_tests::replica::Discards;
use bdsnap_tests::replica::Replica;
use bdsnap_tests::replica::PAGE;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Open;
use bdsnap_tests::writelog::Log;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Replays the log of a device's writes.
///
/// A place in the log is a mark's name, `start`, or `@N`: after the first N entries.
#[derive(Parser)]
#[command(after_help = "Example:
  replay find /dev/vdc /dev/bdsnap-image0 --from before --to after --out at.1
  replay changes /dev/vdc changes.json --size-of /dev/mapper/log --from \"$(cat at.1)\" --to \"$(cat at.2)\"
  replay image /dev/vdc truth.img --size-of /dev/mapper/log --to \"$(cat at.1)\"

Exit status: 0 found or nothing missed, 1 not so, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find the one instant at which the device was what the image shows, byte for byte.
    Find {
        #[command(flatten)]
        log: Source,
        /// The image
        image: String,
        /// Not before this place
        #[arg(long, default_value = "start")]
        from: String,
        /// Not after this one
        #[arg(long)]
        to: String,
        /// Write the place found to this file, as `@N`
        #[arg(long)]
        out: Option<String>,
    },
    /// Check the JSON of `bdsnap changes` for changes it leaves out.
    Changes {
        #[command(flatten)]
        log: Source,
        /// What `bdsnap --json changes` printed
        json: String,
        /// The device, or anything of its size
        #[arg(long)]
        size_of: String,
        /// The older place
        #[arg(long)]
        from: String,
        /// The newer place
        #[arg(long)]
        to: String,
        /// Fail if more than so many blocks are listed that were not written at all
        #[arg(long)]
        max_idle: Option<usize>,
        /// Pretend that the list does not have its N-th extent: a check of this
        /// check, which must then fail
        #[arg(long)]
        forget: Option<usize>,
    },
    /// Write what the device held to a file.
    Image {
        #[command(flatten)]
        log: Source,
        /// The file
        out: String,
        /// The device, or anything of its size
        #[arg(long)]
        size_of: String,
        /// The place
        #[arg(long)]
        to: String,
    },
}

#[derive(Args)]
struct Source {
    /// The device (or a copy) that the log was written to
    log: String,
    /// What the device held before the log began: a file (default: zeros)
    #[arg(long)]
    base: Option<String>,
    /// What the device under the log does with a discard
    #[arg(long, value_enum, default_value = "keep")]
    discards: Discards,
}

fn open(path: &str) -> Result<(File, u64), String> {
    let f = sys::open(path, Open::default())?;
    let size = sys::size_of(&f).map_err(|e| format!("size of {path}: {e}"))?;
    Ok((f, size))
}

impl Source {
    fn open(&self, places: &[&String], size: u64) -> Result<(Log, Replica), String> {
        let marks: Vec<&str> = places.iter().map(|p| p.as_str()).collect();
        let base = match &self.base {
            Some(b) => Some(open(b)?.0),
            None => None,
        };
        Ok((
            Log::open(&self.log, &marks)?,
            Replica::new(base, size, self.discards),
        ))
    }
}

fn find(
    source: &Source,
    image: &str,
    from: &str,
    to: &str,
    out: Option<&str>,
) -> Result<(), String> {
    let (file, size) = open(image)?;
    let (log, mut r) = source.open(&[&from.to_owned(), &to.to_owned()], size)?;
    let (a, b) = (log.position(from)?, log.position(to)?);
    r.replay(&log, 0, a)?;
    let found = replica::find(&mut r, &log, a, b, &file).map_err(|e| format!("{image}: {e}"))?;
    println!(
        "replay: {image} is the device after {}..{} of entries {a}..{b} ({} in all)",
        found.first,
        found.last,
        log.entries.len()
    );
    if let Some(out) = out {
        fs::write(out, format!("@{}\n", found.first)).map_err(|e| format!("{out}: {e}"))?;
    }
    Ok(())
}

struct Judged<'a> {
    json: &'a str,
    size_of: &'a str,
    from: &'a str,
    to: &'a str,
    max_idle: Option<usize>,
    forget: Option<usize>,
}

fn changes(source: &Source, j: &Judged<'_>) -> Result<(), String> {
    let json = j.json;
    let text = fs::read_to_string(json).map_err(|e| format!("{json}: {e}"))?;
    let (block, mut listed) = digests::parse_changes(&text).map_err(|e| format!("{json}: {e}"))?;
    if block == 0 || block % PAGE != 0 {
        return Err(format!("{json}: change blocks of {block} bytes?"));
    }
    if let Some(n) = j.forget {
        if n >= listed.len() {
            return Err(format!("{json} has no extent {n}"));
        }
        listed.remove(n);
    }
    let size = open(j.size_of)?.1;
    let (log, mut r) = source.open(&[&j.from.to_owned(), &j.to.to_owned()], size)?;
    let (a, b) = (log.position(j.from)?, log.position(j.to)?);
    if a > b {
        return Err(format!("{} comes after {}", j.from, j.to));
    }
    r.replay(&log, 0, a)?;
    let before = r.replay(&log, a, b)?;
    let truth = r.changed(&before)?;
    let v = digests::judge(&truth, &listed, block, size).map_err(|e| format!("{json}: {e}"))?;
    let written: BTreeSet<u64> = before.keys().map(|n| n * PAGE / block).collect();
    let idle = listed
        .iter()
        .flat_map(|e| e.offset / block..(e.offset + e.length).div_ceil(block))
        .filter(|b| !written.contains(b))
        .count();
    let surplus = v.listed_blocks - (v.true_blocks - v.missed.len() as u64);
    println!(
        "replay: changes: entries={a}..{b} blocks_differing={} blocks_written={} blocks_listed={} of={} \
         missed={} false_positives={surplus} ({} % of those listed) never_written={idle}",
        v.true_blocks,
        written.len(),
        v.listed_blocks,
        size.div_ceil(block),
        v.missed.len(),
        surplus * 100 / v.listed_blocks.max(1),
    );
    for e in v.missed.iter().take(20) {
        println!("  MISSED: offset {} length {}", e.offset, e.length);
    }
    if !v.missed.is_empty() {
        return Err(format!(
            "{} changed blocks are not in {json}: data would be lost",
            v.missed.len()
        ));
    }
    if j.max_idle.is_some_and(|m| idle > m) {
        return Err(format!("{idle} blocks are listed that nobody wrote"));
    }
    Ok(())
}

fn image(source: &Source, out: &str, size_of: &str, to: &str) -> Result<(), String> {
    let size = open(size_of)?.1;
    let (log, mut r) = source.open(&[&to.to_owned()], size)?;
    r.replay(&log, 0, log.position(to)?)?;
    let io = |e| format!("{out}: {e}");
    let f = File::create(out).map_err(io)?;
    f.set_len(size).map_err(io)?;
    let zeros = [0u8; PAGE as usize];
    for n in 0..size.div_ceil(PAGE) {
        let page = r.page(n)?;
        let len = PAGE.min(size - n * PAGE) as usize;
        if page.bytes()[..len] != zeros[..len] {
            f.write_all_at(&page.bytes()[..len], n * PAGE).map_err(io)?;
        }
    }
    println!("replay: {out} is the device at {to}");
    Ok(())
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| match &cli.command {
        Command::Find {
            log,
            image,
            from,
            to,
            out,
        } => find(log, image, from, to, out.as_deref()),
        Command::Changes {
            log,
            json,
            size_of,
            from,
            to,
            max_idle,
            forget,
        } => changes(
            log,
            &Judged {
                json,
                size_of,
                from,
                to,
                max_idle: *max_idle,
                forget: *forget,
            },
        ),
        Command::Image {
            log,
            out,
            size_of,
            to,
        } => image(log, out, size_of, to),
    });
}
