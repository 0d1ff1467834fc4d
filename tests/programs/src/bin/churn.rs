//! Makes file trees, changes them all the time, and fragments free space.

use bdsnap_tests::rng::Rng;
use bdsnap_tests::size;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Buf;
use bdsnap_tests::sys::Open;
use clap::Parser;
use clap::Subcommand;
use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

/// Work on a file system: a tree of random files, random changes to it, and
/// fragmentation of the free space.
#[derive(Parser)]
#[command(after_help = "Example:
  churn tree /mnt/a --bytes 32M --seed 1
  churn fragment /mnt/a/frag --files 400 --size 32K
  churn run /mnt/a --seconds 20 --threads 3

Exit status: 0 done, 1 an operation failed, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a tree of files with random contents.
    Tree {
        /// Where
        dir: PathBuf,
        /// Bytes in all
        #[arg(long, default_value = "32M", value_parser = size::parse)]
        bytes: u64,
        /// Largest file
        #[arg(long, default_value = "1M", value_parser = size::parse)]
        max_file: u64,
        /// Repeat with this seed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Overwrite, append, truncate, rename, delete and make files at random.
    Run {
        /// A directory that `churn tree` made
        dir: PathBuf,
        /// Stop after so many seconds
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Threads; each has its own part of the files
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Keep the sum of what is added below this
        #[arg(long, default_value = "32M", value_parser = size::parse)]
        grow: u64,
        /// Pause between the operations of a thread, in microseconds
        #[arg(long, default_value_t = 0)]
        pace_us: u64,
        /// Repeat with this seed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Write many files and delete every other one: the free space is then
    /// in pieces between data.
    Fragment {
        /// Where; made if missing
        dir: PathBuf,
        /// Files to write
        #[arg(long, default_value_t = 400)]
        files: u64,
        /// Bytes in each
        #[arg(long, default_value = "32K", value_parser = size::parse)]
        size: u64,
    },
}

fn at<T>(what: &str, path: &Path, r: io::Result<T>) -> Result<T, String> {
    r.map_err(|e| format!("{what} {}: {e}", path.display()))
}

fn write_file(path: &Path, len: u64, rng: &mut Rng) -> Result<(), String> {
    let mut data = vec![0u8; len as usize];
    rng.fill(&mut data);
    at("write", path, fs::write(path, data))
}

fn tree(dir: &Path, bytes: u64, max_file: u64, seed: Option<u64>) -> Result<(), String> {
    let mut rng = Rng::new(Rng::seed(seed));
    let (mut sum, mut n) = (0, 0u64);
    while sum < bytes {
        let sub = dir.join(format!("d{}/e{}", rng.below(8), rng.below(4)));
        at("mkdir", &sub, fs::create_dir_all(&sub))?;
        let len = rng.log_between(100, max_file).min(bytes - sum);
        write_file(&sub.join(format!("f{n}")), len, &mut rng)?;
        sum += len;
        n += 1;
    }
    println!("churn: tree {} files={n} bytes={sum}", dir.display());
    Ok(())
}

fn files_under(dir: &Path, out: &mut Vec<PathBuf>) -> Result<(), String> {
    for e in at("list", dir, fs::read_dir(dir))? {
        let path = at("list", dir, e)?.path();
        let kind = at("stat", &path, path.symlink_metadata())?;
        if kind.is_dir() {
            files_under(&path, out)?;
        } else if kind.is_file() {
            out.push(path);
        }
    }
    Ok(())
}

/// One thread's files. No other thread touches them.
struct Worker {
    files: Vec<PathBuf>,
    rng: Rng,
    buf: Buf,
    made: u64,
    id: usize,
    /// Differs from run to run: no name is ever used twice in a tree.
    tag: u64,
}

impl Worker {
    fn overwrite(&mut self, path: &Path, direct: bool, dsync: bool) -> Result<u64, String> {
        let name = path.to_str().ok_or("a path is not UTF-8")?;
        let f = sys::open(
            name,
            Open {
                write: true,
                direct,
                dsync,
            },
        )?;
        let size = at("stat", path, f.metadata())?.len();
        let unit = if direct { 4096 } else { 1 };
        let len = self.rng.log_between(unit, 128 << 10) / unit * unit;
        if size < len {
            return Ok(0);
        }
        let offset = self.rng.below((size - len) / unit + 1) * unit;
        let part = &mut self.buf[..len as usize];
        self.rng.fill(part);
        at("overwrite", path, f.write_all_at(part, offset))?;
        if self.rng.chance(10) {
            at("fsync", path, f.sync_all())?;
        }
        Ok(0)
    }

    /// Does something to one of the files; the answer is how many bytes were added.
    fn step(&mut self, room: u64) -> Result<u64, String> {
        if self.files.is_empty() {
            return Err("no files: run `churn tree` first".into());
        }
        let i = self.rng.below(self.files.len() as u64) as usize;
        let path = self.files[i].clone();
        match self.rng.below(100) {
            0..40 => self.overwrite(&path, false, false),
            40..50 => self.overwrite(&path, true, false),
            50..55 => self.overwrite(&path, false, true),
            55..65 => {
                let len = self.rng.log_between(1, 64 << 10).min(room);
                let f = at(
                    "open",
                    &path,
                    fs::OpenOptions::new().write(true).open(&path),
                )?;
                let size = at("stat", &path, f.metadata())?.len();
                let part = &mut self.buf[..len as usize];
                self.rng.fill(part);
                at("append to", &path, f.write_all_at(part, size))?;
                Ok(len)
            }
            65..75 => {
                let f = at(
                    "open",
                    &path,
                    fs::OpenOptions::new().write(true).open(&path),
                )?;
                let size = at("stat", &path, f.metadata())?.len();
                at("truncate", &path, f.set_len(self.rng.below(size + 1)))?;
                Ok(0)
            }
            75..85 => {
                self.made += 1;
                let to = path.with_file_name(format!("r{}-{}-{}", self.tag, self.id, self.made));
                at("rename", &path, fs::rename(&path, &to))?;
                self.files[i] = to;
                Ok(0)
            }
            85..92 if self.files.len() > 4 => {
                at("delete", &path, fs::remove_file(&path))?;
                self.files.swap_remove(i);
                Ok(0)
            }
            _ => {
                let len = self.rng.log_between(1, 256 << 10).min(room);
                self.made += 1;
                let new = path.with_file_name(format!("n{}-{}-{}", self.tag, self.id, self.made));
                write_file(&new, len, &mut self.rng)?;
                self.files.push(new);
                Ok(len)
            }
        }
    }
}

fn run(
    dir: &Path,
    seconds: u64,
    threads: usize,
    grow: u64,
    pace_us: u64,
    seed: Option<u64>,
) -> Result<(), String> {
    let seed = Rng::seed(seed);
    let mut all = Vec::new();
    files_under(dir, &mut all)?;
    all.sort();
    let until = Instant::now() + Duration::from_secs(seconds);
    let (grown, ops) = (AtomicU64::new(0), AtomicU64::new(0));
    sys::stop_on_signals();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|id| {
                let files = all
                    .iter()
                    .skip(id)
                    .step_by(threads.max(1))
                    .cloned()
                    .collect();
                let mut w = Worker {
                    files,
                    rng: Rng::new(seed + id as u64),
                    buf: Buf::new(256 << 10),
                    made: 0,
                    id,
                    tag: sys::realtime_ns(),
                };
                let (grown, ops) = (&grown, &ops);
                scope.spawn(move || {
                    while !sys::stopped() && Instant::now() < until {
                        let room = grow.saturating_sub(grown.load(Ordering::Relaxed));
                        let added = w.step(room).inspect_err(|_| sys::stop_now())?;
                        grown.fetch_add(added, Ordering::Relaxed);
                        ops.fetch_add(1, Ordering::Relaxed);
                        if pace_us > 0 {
                            std::thread::sleep(Duration::from_micros(pace_us));
                        }
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        for h in handles {
            h.join()
                .unwrap_or_else(|_| Err("a thread panicked".into()))?;
        }
        Ok::<(), String>(())
    })?;
    let (ops, grown) = (ops.into_inner(), grown.into_inner());
    println!("churn: ran {} ops={ops} bytes_added={grown}", dir.display());
    Ok(())
}

fn fragment(dir: &Path, files: u64, size: u64) -> Result<(), String> {
    at("mkdir", dir, fs::create_dir_all(dir))?;
    let mut rng = Rng::new(files ^ size);
    let name = |i: u64| dir.join(format!("frag{i}"));
    for i in 0..files {
        write_file(&name(i), size, &mut rng)?;
    }
    // Delayed allocation would undo all this: blocks first, then the holes.
    let d = at("open", dir, File::open(dir))?;
    at("sync", dir, sys::sync_fs(&d))?;
    for i in (0..files).step_by(2) {
        let path = name(i);
        at("delete", &path, fs::remove_file(&path))?;
    }
    at("sync", dir, sys::sync_fs(&d))?;
    println!(
        "churn: fragmented {}: {} files of {size} bytes left",
        dir.display(),
        files / 2
    );
    Ok(())
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| match &cli.command {
        Command::Tree {
            dir,
            bytes,
            max_file,
            seed,
        } => tree(dir, *bytes, *max_file, *seed),
        Command::Run {
            dir,
            seconds,
            threads,
            grow,
            pace_us,
            seed,
        } => run(dir, *seconds, *threads, *grow, *pace_us, *seed),
        Command::Fragment { dir, files, size } => fragment(dir, *files, *size),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_and_run() {
        let dir = std::env::temp_dir().join(format!("churn-{}", std::process::id()));
        tree(&dir, 1 << 20, 64 << 10, Some(3)).expect("tree");
        let mut w = Worker {
            files: vec![],
            rng: Rng::new(5),
            buf: Buf::new(256 << 10),
            made: 0,
            id: 0,
            tag: 0,
        };
        files_under(&dir, &mut w.files).expect("list");
        let before = w.files.len();
        assert!(before > 10);
        for _ in 0..500 {
            match w.step(4096) {
                // tmpfs of older kernels has no O_DIRECT.
                Err(e) if e.contains("Invalid argument") => {}
                r => {
                    r.expect("step");
                }
            }
        }
        let mut now = Vec::new();
        files_under(&dir, &mut now).expect("list");
        now.sort();
        w.files.sort();
        assert_eq!(now, w.files, "the worker knows its files");
        fragment(&dir.join("x"), 10, 4096).expect("fragment");
        assert_eq!(fs::read_dir(dir.join("x")).expect("list").count(), 5);
        fs::remove_dir_all(dir).expect("rm");
    }
}
