//! The command line: commands and their common arguments.

use crate::commands;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::size::parse_size;
use bdsnap::snapshot;
use bdsnap::snapshot::Request;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use std::path::PathBuf;
use std::time::Duration;

/// Live backup of block devices: change tracking and copy-on-write snapshots.
#[derive(Debug, Parser)]
#[command(
    name = "bdsnap",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = EXIT_CODES)]
pub struct Cli {
    /// Print JSON (sizes in bytes); errors too.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Shown below the help.
const EXIT_CODES: &str = "\
Exit codes:
  0 done                            5 change tracking can't answer: take a full backup
  1 failed, see the message         6 not supported on this device, file system or kernel
  2 wrong usage                     7 permission denied
  3 busy                            8 no such device, snapshot or store
  4 the snapshot is damaged

Sizes take K, M, G or T (powers of 1024).";

/// The commands; each has its file in `commands`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start change tracking of devices.
    Track(commands::track::Args),
    /// Stop change tracking of devices.
    Untrack(commands::untrack::Args),
    /// Show tracked devices, snapshots and stores.
    Status(commands::status::Args),
    /// Take, show and delete snapshots.
    #[command(subcommand)]
    Snapshot(commands::snapshot::Command),
    /// Show what changed between two snapshots.
    Changes(commands::changes::Args),
    /// Record ranges of a device as changed.
    Mark(commands::mark::Args),
    /// Print what happens to devices and snapshots, as it happens.
    Watch(commands::watch::Args),
    /// Back up devices into a directory: fully, then what changed.
    Backup(commands::backup::Args),
    /// Write a backup back to a device or a file.
    Restore(commands::restore::Args),
    /// Make the portions that stores ask for which may grow.
    Service(commands::service::Args),
    /// For udev: the snapshot and the origin of an image.
    #[command(hide = true)]
    UdevImport(commands::udev_import::Args),
    /// For the tool itself: what is free in the file system of standard input.
    #[command(hide = true)]
    FreeMap(commands::free_map::Args),
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions(commands::generate::CompletionArgs),
    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man(commands::generate::ManArgs),
}

/// Whether blocks free in the file system are left out of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SkipFree {
    /// Of ext4 and XFS that lie directly on an origin, or a partition of it, and are frozen.
    Auto,
    /// The same, and it is an error where there is none.
    On,
    /// Never: every byte of the image is the origin's, but for the store's own.
    Off,
}

/// How a snapshot is taken; for `snapshot create` and `backup`.
#[derive(Args, Debug)]
pub struct SnapshotArgs {
    /// Where old data goes: file:PATH[,size=1G], PATH a directory or a new file on ext4, XFS,
    /// FAT or exFAT; dev:PATH[,offset=..,size=..], a block device that nobody uses; mem:SIZE. Several are used side
    /// by side. Default: a file on the origin's own file system or in /var/lib/bdsnap, 10 % of the
    /// origins.
    ///
    /// A file with a limit (limit=10G[,size=64M][,portion=256M]) grows up to it while `bdsnap service`
    /// runs, as it fills up. When it is full the image fails (on-full=fail, the default), or writers wait
    /// first for room (on-full=hold=SECONDS).
    #[arg(long, value_name = "SPEC")]
    store: Vec<String>,
    /// Freeze the file systems on these devices, too.
    #[arg(long, value_name = "DEV", num_args = 1.., conflicts_with = "no_freeze")]
    freeze: Vec<PathBuf>,
    /// Freeze no file system: the image is what a power failure would leave.
    #[arg(long)]
    no_freeze: bool,
    /// Call the executables in DIR with `pre-freeze` before and `post-thaw` afterwards.
    #[arg(long, value_name = "DIR")]
    hooks: Option<PathBuf>,
    /// Time limit of each hook.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    hook_timeout: u64,
    /// Leave blocks out that are free in the file system: they read as zeros in the image, and cost
    /// nothing.
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    skip_free: SkipFree,
    /// The unit that is copied; 4K is the only one for now.
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    granule: String,
    /// Copy so much around a write at once: 4K to 256K, or auto.
    ///
    /// More means fewer and larger reads where writes lie close together, and more to copy where they
    /// don't. Auto: 64K on spinning disks, else 4K, or what is the least that a device reads at a time.
    #[arg(long, value_name = "SIZE", default_value = "auto")]
    run: String,
}

impl SnapshotArgs {
    /// The request for `devices`. What is not there yet is
    /// [`bdsnap::error::Kind::Unsupported`].
    pub fn request(&self, devices: &[PathBuf]) -> Result<Request> {
        let granule = parse_size(&self.granule)?;
        let smallest = u64::from(bdsnap::abi::GRANULE_MIN);
        if !granule.is_power_of_two() || granule < smallest {
            return Err(Error::usage(format!("{} is no granule", self.granule))
                .code("granule")
                .hint("a power of two from 4K on"));
        }
        if granule > u64::from(bdsnap::abi::GRANULE_MAX) {
            return Err(Error::unsupported(format!(
                "a granule of {} is not supported yet",
                self.granule
            ))
            .code("granule")
            .hint("4K is the only one for now"));
        }
        let run = match self.run.as_str() {
            "auto" => None,
            text => {
                let run = parse_size(text)?;
                let sizes = smallest..=u64::from(bdsnap::abi::RUN_MAX);
                if !run.is_power_of_two() || !sizes.contains(&run) {
                    return Err(Error::usage(format!("{text} is no size of a run"))
                        .code("run")
                        .hint("a power of two from 4K to 256K, or auto"));
                }
                u32::try_from(run).ok()
            }
        };
        let store = self.store.iter().map(|s| s.parse());
        Ok(Request {
            devices: devices.to_vec(),
            store: store.collect::<Result<_>>()?,
            freeze: self.freeze.clone(),
            no_freeze: self.no_freeze,
            skip_free: match self.skip_free {
                SkipFree::Auto => snapshot::SkipFree::Auto,
                SkipFree::On => snapshot::SkipFree::On,
                SkipFree::Off => snapshot::SkipFree::Off,
            },
            run,
            since: Vec::new(),
            hooks: self.hooks.clone(),
            hook_timeout: Some(Duration::from_secs(self.hook_timeout)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn is_consistent() {
        Cli::command().debug_assert();
    }

    /// The help of every command shows an example.
    #[test]
    fn help_has_examples() {
        fn walk(command: &mut clap::Command) {
            let name = command.get_name().to_owned();
            if command.has_subcommands() {
                command
                    .get_subcommands_mut()
                    .filter(|c| !c.is_hide_set())
                    .for_each(walk);
            } else if name != "help" {
                let help = command.render_long_help().to_string();
                assert!(help.contains("Example"), "{name}");
            }
        }
        walk(&mut Cli::command());
    }

    fn request(args: &[&str]) -> Result<Request> {
        let words = ["bdsnap", "snapshot", "create", "/dev/x"];
        let cli = Cli::try_parse_from(words.iter().chain(args)).unwrap();
        match cli.command {
            Command::Snapshot(commands::snapshot::Command::Create(args)) => args.request(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn snapshot_arguments() {
        let request_of = |args: &[&str]| request(args).map_err(|e| e.kind.exit_code());
        let plain = request_of(&["--skip-free", "off", "--granule", "4096"]).unwrap();
        assert_eq!(plain.devices, [PathBuf::from("/dev/x")]);
        assert!(plain.store.is_empty());
        assert_eq!(plain.skip_free, snapshot::SkipFree::Off);
        assert_eq!(request_of(&["--granule", "64K"]).unwrap_err(), 6);
        assert_eq!(request_of(&["--granule", "3"]).unwrap_err(), 2);
        assert_eq!(plain.run, None);
        let run_of = |run: &str| request_of(&["--run", run]).map(|r| r.run);
        assert_eq!(run_of("auto"), Ok(None));
        assert_eq!(run_of("4K"), Ok(Some(4096)));
        assert_eq!(run_of("256K"), Ok(Some(262_144)));
        for bad in ["2K", "12K", "512K", "x", ""] {
            assert_eq!(run_of(bad), Err(2), "{bad}");
        }
        assert_eq!(request_of(&["--store", "tape:1G"]).unwrap_err(), 2);
        assert_eq!(request_of(&["--store", "file:/x,size=1"]).unwrap_err(), 2);
        let two = ["--store", "file:/x", "--store", "mem:1G"];
        assert_eq!(request_of(&two).unwrap().store.len(), 2);
    }
}
