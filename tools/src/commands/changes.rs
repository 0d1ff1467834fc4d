//! `bdsnap changes`.

use crate::output;
use bdsnap::blockdev::Sysfs;
use bdsnap::changes;
use bdsnap::changes::Query;
use bdsnap::device::Control;
use bdsnap::device::MapHead;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::state;
use clap::ValueEnum;
use serde_json::json;
use serde_json::Value;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;
use uuid::Uuid;

/// The forms of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Ranges that differ: offset and length in bytes.
    Extents,
    /// A bit a block, first block in the lowest bit: raw bytes, or hexadecimal in JSON.
    Bitmap,
    /// All ranges with the number of the snapshot before which each last changed.
    Map,
}

/// Arguments of `changes`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  bdsnap changes /dev/vdb1 --since 3
  bdsnap --json changes /dev/bdsnap-image0 --since 3 --generation 0f5e…
  bdsnap changes /dev/vdb1 --since 3 --discards

Numbers and generations are shown by `bdsnap status`. Exit code 5: take a full backup.")]
pub struct Args {
    /// A tracked device, or the image of a snapshot.
    #[arg(value_name = "DEV|IMAGE")]
    device: PathBuf,
    /// Changes since the snapshot with this number.
    #[arg(long, value_name = "N")]
    since: u64,
    /// Only if the numbers are of this generation.
    #[arg(long, value_name = "UUID")]
    generation: Option<Uuid>,
    /// Changes up to the living snapshot with this number. Default: the newest, or the image's.
    #[arg(long, value_name = "M")]
    until: Option<u64>,
    /// Where the newest snapshot is deleted: changes up to now.
    #[arg(long, conflicts_with = "until")]
    live: bool,
    /// The form of the answer.
    #[arg(long, value_enum, default_value = "extents")]
    format: Format,
    /// List what changed last by a discard (fstrim) apart: marked `discard`, or as "discards" in
    /// JSON. What such blocks hold is of no use to anybody. Only with extents.
    #[arg(long)]
    discards: bool,
}

/// Prints the changes.
pub fn run(args: &Args, json: bool) -> Result<()> {
    if args.format == Format::Bitmap && !json && std::io::stdout().is_terminal() {
        return Err(
            Error::usage("a bitmap is not for terminals").hint("send it to a file, or use --json")
        );
    }
    if args.until.is_some_and(|until| until < args.since) {
        return Err(Error::usage("--until is below --since"));
    }
    if args.discards && args.format != Format::Extents {
        return Err(Error::usage("--discards goes only with --format extents"));
    }
    let control = Control::open()?;
    let snapshots = state::snapshots(&control)?;
    let origins = state::origins(&control, &snapshots)?;
    let (device, name) = state::find_origin(&Sysfs::default(), &origins, &args.device)?;
    if args.discards && !control.knows_discards().map_err(|e| e.on("bdsnap"))? {
        return Err(
            Error::unsupported("the loaded module knows nothing of discards")
                .hint("load the module that belongs to this tool"),
        );
    }
    let generation = args.generation;
    let (device, generation) = match args.until {
        _ if args.live => (device, generation),
        Some(until) => changes::as_of(&snapshots, device, &name, generation, until)?,
        None => changes::as_of_newest(&snapshots, &origins, device, generation, args.since),
    };
    let query = Query {
        device,
        generation,
        since: args.since,
        live: args.live,
    };
    match args.format {
        Format::Extents if args.discards => by_kind(&control, query, &name, args, json)?,
        Format::Extents => {
            let (head, extents) = changes::extents(&control, query, &name)?;
            if json {
                output::json(&answer(&name, args, &head, "extents", json!(extents)));
            } else {
                for extent in extents {
                    output::line(format!("{} {}", extent.offset, extent.length));
                }
            }
        }
        Format::Map => {
            let (head, runs) = changes::runs(&control, query, &name)?;
            if json {
                output::json(&answer(&name, args, &head, "map", json!(runs)));
            } else {
                for run in runs {
                    output::line(format!("{} {} {}", run.offset, run.length, run.number));
                }
            }
        }
        Format::Bitmap => {
            let (head, bits) = changes::bitmap(&control, query, &name)?;
            if json {
                output::json(&answer(&name, args, &head, "bitmap", json!(hex(&bits))));
            } else {
                output::raw(&bits);
            }
        }
    }
    Ok(())
}

/// Prints the extents with discards apart.
fn by_kind(control: &Control, query: Query, name: &str, args: &Args, json: bool) -> Result<()> {
    let (head, found) = changes::by_kind(control, query, name)?;
    if json {
        let mut answer = answer(name, args, &head, "extents", json!(found.written));
        answer["discards"] = json!(found.discarded);
        output::json(&answer);
        return Ok(());
    }
    let written = found.written.iter().map(|e| (e, ""));
    let discarded = found.discarded.iter().map(|e| (e, " discard"));
    let mut lines: Vec<_> = written.chain(discarded).collect();
    lines.sort_by_key(|(extent, _)| extent.offset);
    for (extent, kind) in lines {
        output::line(format!("{} {}{kind}", extent.offset, extent.length));
    }
    Ok(())
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The JSON of an answer.
fn answer(name: &str, args: &Args, head: &MapHead, key: &str, value: Value) -> Value {
    let mut answer = json!({
        "device": name,
        "generation": head.generation,
        "from": args.since,
        "to": head.number,
        "block_size": head.block_size,
        "size": head.device_size,
    });
    answer[key] = value;
    answer
}
