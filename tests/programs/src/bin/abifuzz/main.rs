//! Calls every ioctl of bdsnap in every wrong way, and then at random.

mod calls;
mod create;
mod life;
mod maps;
mod random;
mod refusals;
mod runner;

use bdsnap_tests::size;
use clap::Args;
use clap::Parser;
use clap::Subcommand;

/// Calls every ioctl of bdsnap with bad arguments and demands the documented
/// errno, and that nothing changed; or calls them at random.
#[derive(Parser)]
#[command(after_help = "Example:
  abifuzz checks --dev /dev/vdb --other /dev/vdc --store-dir /mnt/ext4 --tmpfs-dir /run
  abifuzz random --dev /dev/vdb --other /dev/vdc --store-dir /mnt/ext4 --iterations 5000 --seed 3

/dev/vdb and /dev/vdc must be devices that nobody uses; nothing of bdsnap may
be in use. Exit status: 0 all as documented, 1 not, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every wrong argument once, with the errno it must get.
    Checks {
        #[command(flatten)]
        w: Where,
        /// A directory on tmpfs
        #[arg(long, default_value = "/run")]
        tmpfs_dir: String,
    },
    /// Random calls: only crashes, hangs, undocumented errnos and writes
    /// outside the caller's buffers count.
    Random {
        #[command(flatten)]
        w: Where,
        /// Calls for each thread
        #[arg(long, default_value_t = 5000)]
        iterations: u64,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: u64,
        /// Stop after so many seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Repeat with this seed (of one thread, the calls are the same)
        #[arg(long)]
        seed: Option<u64>,
    },
}

#[derive(Args, Clone)]
struct Where {
    /// A block device to be tracked
    #[arg(long)]
    dev: String,
    /// Another one, which stays untracked
    #[arg(long)]
    other: String,
    /// A directory on ext4 or XFS, on a third device
    #[arg(long)]
    store_dir: String,
    /// Size of the store
    #[arg(long, default_value = "4M", value_parser = size::parse)]
    store_size: u64,
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| match &cli.command {
        Command::Checks { w, tmpfs_dir } => runner::checks(w, tmpfs_dir),
        Command::Random {
            w,
            iterations,
            threads,
            seconds,
            seed,
        } => random::random(w, *iterations, *threads, *seconds, *seed),
    });
}

#[cfg(test)]
mod tests {
    use bdsnap_tests::abi;

    /// The codes as the C header makes them.
    #[test]
    fn codes() {
        assert_eq!(abi::VERSION.code(), 0xc038_bd00);
        assert_eq!(abi::TRACK.code(), 0xc030_bd01);
        assert_eq!(abi::MARK.code(), 0xc020_bd31);
        assert_eq!(abi::MAP_READ.code(), 0xc060_bd30);
    }
}
