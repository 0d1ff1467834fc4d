//! `bdsnap snapshot list`, `show` and `delete`; `create` and `release` have their own files.

use super::snapshot_create;
use super::snapshot_release;
use super::status::print_snapshots;
use crate::output;
use crate::output::row;
use bdsnap::device::Control;
use bdsnap::error::Error;
use bdsnap::error::Kind;
use bdsnap::error::Result;
use bdsnap::size::human;
use bdsnap::state;
use bdsnap::state::Snapshot;
use bdsnap::state::Store;
use rustix::io::Errno;
use serde_json::json;
use uuid::Uuid;

/// The `snapshot` commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Take one consistent snapshot of all the devices.
    Create(snapshot_create::Args),
    /// List the snapshots.
    #[command(after_help = "Example:\n  bdsnap snapshot list")]
    List,
    /// Show one snapshot.
    #[command(after_help = "Example:\n  bdsnap snapshot show 6f1c")]
    Show {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Say that parts of an image have been read and are not needed any more.
    Release(snapshot_release::Args),
    /// Delete snapshots; one that is gone already is no error.
    Delete(DeleteArgs),
}

/// Arguments of `snapshot delete`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  bdsnap snapshot delete 6f1c\n  bdsnap snapshot delete --all")]
pub struct DeleteArgs {
    /// Ids, or their beginnings.
    #[arg(
        value_name = "ID",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    ids: Vec<String>,
    /// All snapshots.
    #[arg(long)]
    all: bool,
    /// Also where an image is open: its readers get I/O errors.
    #[arg(long)]
    force: bool,
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Create(args) => snapshot_create::run(args, json),
        Command::List => list(json),
        Command::Show { id } => show(id, json),
        Command::Release(args) => snapshot_release::run(args, json),
        Command::Delete(args) => delete(args, json),
    }
}

fn list(json: bool) -> Result<()> {
    let snapshots = state::snapshots(&Control::open()?)?;
    if json {
        output::json(&json!({"snapshots": snapshots}));
    } else if snapshots.is_empty() {
        output::line("no snapshots");
    } else {
        print_snapshots(&snapshots);
    }
    Ok(())
}

fn show(id: &str, json: bool) -> Result<()> {
    let snapshots = state::snapshots(&Control::open()?)?;
    let ids: Vec<Uuid> = snapshots.iter().map(|s| s.id).collect();
    let id = state::find_id(&ids, id)?;
    for snapshot in snapshots.iter().filter(|s| s.id == id) {
        if json {
            output::json(snapshot);
        } else {
            print(snapshot);
        }
    }
    Ok(())
}

/// One snapshot for people.
fn print(snapshot: &Snapshot) {
    let kept = if snapshot.kept {
        "until it is deleted"
    } else {
        "as long as the process that took it"
    };
    let store = snapshot.store;
    output::table(&[
        row(["snapshot", &snapshot.id.to_string()]),
        row(["created", &snapshot.created]),
        row(["state", snapshot.state]),
        row(["error", snapshot.error.unwrap_or("none")]),
        row(["lives", kept]),
        row(["granule", &human(u64::from(snapshot.granule))]),
        row(["run", &human(u64::from(snapshot.run))]),
        row(["store", &bar(&store)]),
        row(["", &outlook(&store)]),
    ]);
    let head = [
        "DEVICE", "IMAGE", "SIZE", "NUMBER", "SINCE", "STATE", "FREE", "UNNEEDED", "RELEASED",
        "COPIED", "LOST", "OPEN",
    ];
    let mut rows = vec![row(head)];
    for version in &snapshot.devices {
        rows.push(row([
            &version.device,
            &version.image,
            &human(version.size),
            &version.number.to_string(),
            &version.since.map_or("-".to_owned(), |n| n.to_string()),
            version.error.unwrap_or(version.state),
            &human(version.bytes_free),
            &human(version.bytes_unneeded),
            &human(version.bytes_released),
            &human(version.bytes_copied),
            &human(version.bytes_lost),
            &version.openers.to_string(),
        ]));
    }
    output::line("");
    output::table(&rows);
    for version in snapshot.devices.iter().filter(|v| v.state != "ok") {
        output::line(format!("\n{}", bdsnap::snapshot::damaged(version)));
    }
}

/// How full a store is.
fn bar(store: &Store) -> String {
    const WIDTH: u64 = 30;
    let part = |bytes: u64| (bytes.saturating_mul(WIDTH) / store.limit.max(1)).min(WIDTH) as usize;
    let (used, there) = (part(store.used), part(store.capacity));
    let signs = "#".repeat(used) + &"-".repeat(there - used) + &" ".repeat(WIDTH as usize - there);
    let percent = store.used.saturating_mul(100) / store.limit.max(1);
    format!(
        "[{signs}] {percent} %: {} used of {}, at most {}",
        human(store.used),
        human(store.capacity),
        human(store.limit)
    )
}

/// What is to be expected of a store.
pub fn outlook(store: &Store) -> String {
    let mut text = match store.full_in {
        Some(seconds) => format!("{}/s: full in {seconds} s at this rate", human(store.rate)),
        None => "not being used".to_owned(),
    };
    if store.waiting {
        text += "; WRITES WAIT FOR ROOM";
    }
    if store.wanted > 0 {
        text += &format!("; asks for {}", human(store.wanted));
    }
    text
}

fn delete(args: &DeleteArgs, json: bool) -> Result<()> {
    let control = Control::open()?;
    let known = control.snapshots().map_err(|e| e.on(bdsnap::abi::DEVICE))?;
    let known: Vec<Uuid> = known.iter().map(|s| Uuid::from_bytes(s.id)).collect();
    let mut wanted = Vec::new();
    let mut unknown = Vec::new();
    if args.all {
        wanted.clone_from(&known);
    }
    for text in &args.ids {
        match (state::find_id(&known, text), text.parse::<Uuid>()) {
            (Ok(id), _) => wanted.push(id),
            // A whole id that is not there: deleted already.
            (Err(error), Ok(id)) if error.kind == Kind::NotFound => unknown.push(id),
            (Err(error), _) => return Err(error),
        }
    }
    let mut deleted = Vec::new();
    let mut failure = None;
    for id in wanted {
        match bdsnap::snapshot::delete(&control, id, args.force) {
            Ok(()) => deleted.push(id),
            Err(error) => match error.errno {
                Errno::NOENT => unknown.push(id),
                Errno::BUSY => {
                    failure.get_or_insert(busy(id));
                }
                _ => {
                    failure.get_or_insert(error.on(id));
                }
            },
        }
    }
    for id in &unknown {
        eprintln!("bdsnap: no snapshot {id} (any more)");
    }
    if let Some(error) = failure {
        return Err(error);
    }
    if json {
        output::json(&json!({"deleted": deleted, "unknown": unknown}));
    } else {
        for id in deleted {
            output::line(format!("{id}: deleted"));
        }
    }
    Ok(())
}

fn busy(id: Uuid) -> Error {
    Error::busy(format!("snapshot {id}: an image of it is in use"))
        .hint("unmount and close it, or use --force (its readers get I/O errors)")
}
