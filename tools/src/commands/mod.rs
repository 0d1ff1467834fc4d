//! One verb a file: each has its arguments and a `run`.

pub mod backup;
pub mod changes;
pub mod free_map;
pub mod generate;
pub mod mark;
mod progress;
pub mod restore;
pub mod service;
pub mod snapshot;
mod snapshot_create;
mod snapshot_release;
pub mod status;
pub mod track;
pub mod udev_import;
pub mod untrack;
pub mod watch;

use crate::cli::Cli;
use crate::cli::Command;
use bdsnap::error::Result;

/// Does what the command line says.
pub fn run(cli: &Cli) -> Result<()> {
    let json = cli.json;
    match &cli.command {
        Command::Track(args) => track::run(args, json),
        Command::Untrack(args) => untrack::run(args, json),
        Command::Status(args) => status::run(args, json),
        Command::Snapshot(command) => snapshot::run(command, json),
        Command::Changes(args) => changes::run(args, json),
        Command::Mark(args) => mark::run(args, json),
        Command::Watch(args) => watch::run(args, json),
        Command::Backup(args) => backup::run(args, json),
        Command::Restore(args) => restore::run(args, json),
        Command::Service(args) => service::run(args, json),
        Command::FreeMap(args) => free_map::run(args),
        Command::UdevImport(args) => udev_import::run(args),
        Command::Completions(args) => {
            generate::completions(args);
            Ok(())
        }
        Command::Man(args) => generate::man(args),
    }
}
