//! Hooks: executables that bring applications to rest before the freeze and wake them after it.
//!
//! The executables in a directory are called in the order of their names with the argument
//! `pre-freeze`; after the thaw those that were called, in reverse order, with `post-thaw`,
//! whatever happened. Environment: `BDSNAP_STAGE` (the argument), `BDSNAP_DEVICES` (the origins'
//! paths, separated by spaces) and, for post-thaw, `BDSNAP_RESULT` (`ok` or `failed`). Each has a
//! time limit, after which its process group is killed. Their output goes to standard error. A
//! pre-freeze hook that fails ends the attempt.

use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::signals::Signals;
use rustix::process::kill_process_group;
use rustix::process::Pid;
use rustix::process::Signal;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

/// The time limit of each hook where none is given.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The hooks of one directory.
#[derive(Debug)]
pub struct Hooks {
    files: Vec<PathBuf>,
    devices: String,
    timeout: Duration,
    /// How many of `files` were called with `pre-freeze` and await their `post-thaw`.
    called: usize,
}

impl Hooks {
    /// No hooks at all.
    pub fn none() -> Self {
        Hooks {
            files: Vec::new(),
            devices: String::new(),
            timeout: DEFAULT_TIMEOUT,
            called: 0,
        }
    }

    /// The executables in `dir`, sorted by name; names that begin with a dot or end in `~` are
    /// left out. `timeout` is for each call.
    pub fn load(dir: &Path, devices: &[String], timeout: Duration) -> Result<Self> {
        let fail = |e| Error::io(format!("hooks: can't read {}", dir.display()), e);
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') || name.ends_with('~') {
                continue;
            }
            let runs = fs::metadata(&path)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
            if runs {
                files.push(path);
            }
        }
        files.sort();
        Ok(Hooks {
            files,
            devices: devices.join(" "),
            timeout,
            called: 0,
        })
    }

    /// Calls all with `pre-freeze`, up to the first that fails. [`Hooks::post_thaw`] must follow
    /// in any case.
    pub fn pre_freeze(&mut self, signals: &Signals) -> Result<()> {
        while let Some(file) = self.files.get(self.called) {
            self.called += 1;
            self.run(file, "pre-freeze", None, Some(signals))?;
        }
        Ok(())
    }

    /// Calls those that were called before with `post-thaw`, in reverse order, all of them
    /// whatever happens; returns what went wrong.
    pub fn post_thaw(&mut self, ok: bool) -> Vec<Error> {
        let result = if ok { "ok" } else { "failed" };
        let called = std::mem::take(&mut self.called);
        let files = self.files[..called].iter().rev();
        files
            .filter_map(|file| self.run(file, "post-thaw", Some(result), None).err())
            .collect()
    }

    /// Runs one hook to its end, its time limit or (with `signals`) a signal to stop.
    fn run(
        &self,
        file: &Path,
        stage: &str,
        result: Option<&str>,
        signals: Option<&Signals>,
    ) -> Result<()> {
        let failed = |what: String| {
            Error::new(
                Kind::Failed,
                format!("hook {} {stage}: {what}", file.display()),
            )
            .code("hook")
            .hint("see its output above")
        };
        let stderr = std::io::stderr();
        let output = stderr.as_fd().try_clone_to_owned();
        let output = output.map_err(|e| failed(format!("can't set up its output: {e}")))?;
        let mut command = Command::new(file);
        command
            .arg(stage)
            .env("BDSNAP_STAGE", stage)
            .env("BDSNAP_DEVICES", &self.devices)
            .env_remove("BDSNAP_RESULT")
            .stdin(Stdio::null())
            .stdout(Stdio::from(output))
            .process_group(0);
        if let Some(result) = result {
            command.env("BDSNAP_RESULT", result);
        }
        let mut child = spawn(&mut command).map_err(|e| failed(format!("can't be run: {e}")))?;
        match wait(&mut child, self.timeout, signals) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(failed(format!("failed ({status})"))),
            Ok(None) => {
                kill_group(&mut child);
                if signals.is_some_and(Signals::stop) {
                    return Err(Error::interrupted());
                }
                Err(failed(format!("killed after {} s", self.timeout.as_secs()))
                    .code("hook-timeout")
                    .hint("give it more time: --hook-timeout SECONDS"))
            }
            Err(e) => {
                kill_group(&mut child);
                Err(failed(format!("can't be waited for: {e}")))
            }
        }
    }
}

/// Starts a hook; one that is just being written is given a moment.
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    for _ in 0..10 {
        match command.spawn() {
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy => {
                sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
    command.spawn()
}

/// Waits for the end of `child`; `None` at the time limit or a signal to stop.
fn wait(
    child: &mut Child,
    timeout: Duration,
    signals: Option<&Signals>,
) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end || signals.is_some_and(Signals::stop) {
            return Ok(None);
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Kills the process group of a hook and collects it.
fn kill_group(child: &mut Child) {
    // `child` was not waited for yet, so its id is still its own; nothing to do if it is gone.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.wait();
}

impl Drop for Hooks {
    /// Whoever was put to rest is woken, also where the caller was left by an early way.
    fn drop(&mut self) {
        for error in self.post_thaw(false) {
            eprintln!("bdsnap: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(dir: &Path, name: &str, body: &str) {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn load(dir: &Path, timeout: Duration) -> Hooks {
        Hooks::load(dir, &["/dev/a".into(), "/dev/b".into()], timeout).unwrap()
    }

    /// What the hooks of the test wrote to their log.
    fn log(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join(".log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    const NOTE: &str =
        r#"echo "$(basename $0) $1 $BDSNAP_DEVICES $BDSNAP_RESULT" >> "$(dirname $0)/.log""#;

    #[test]
    fn in_order_and_back() {
        let dir = tempfile::tempdir().unwrap();
        hook(dir.path(), "20-b", NOTE);
        hook(dir.path(), "10-a", NOTE);
        fs::write(dir.path().join("30-not-executable"), "exit 1").unwrap();
        let mut hooks = load(dir.path(), DEFAULT_TIMEOUT);
        hooks.pre_freeze(&Signals::inert()).unwrap();
        assert!(hooks.post_thaw(true).is_empty());
        assert_eq!(
            log(dir.path()),
            [
                "10-a pre-freeze /dev/a /dev/b ",
                "20-b pre-freeze /dev/a /dev/b ",
                "20-b post-thaw /dev/a /dev/b ok",
                "10-a post-thaw /dev/a /dev/b ok",
            ]
        );
        assert!(hooks.post_thaw(true).is_empty(), "only once");
        assert_eq!(log(dir.path()).len(), 4);
    }

    #[test]
    fn a_failure_stops_the_rest_but_not_the_thaw() {
        let dir = tempfile::tempdir().unwrap();
        hook(dir.path(), "1", NOTE);
        hook(dir.path(), "2", &format!("{NOTE}; exit 3"));
        hook(dir.path(), "3", NOTE);
        let mut hooks = load(dir.path(), DEFAULT_TIMEOUT);
        assert_eq!(
            hooks.pre_freeze(&Signals::inert()).unwrap_err().code,
            "hook"
        );
        assert_eq!(hooks.post_thaw(false).len(), 1, "2 fails again");
        let log = log(dir.path());
        assert_eq!(log.len(), 4);
        assert_eq!(log[3], "1 post-thaw /dev/a /dev/b failed");
    }

    #[test]
    fn a_time_out_kills_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let body = "sleep 1000 & echo $! > \"$(dirname $0)/.pid\"; wait";
        hook(dir.path(), "1", body);
        let mut hooks = load(dir.path(), Duration::from_millis(500));
        let start = Instant::now();
        let error = hooks.pre_freeze(&Signals::inert()).unwrap_err();
        assert_eq!(error.code, "hook-timeout");
        assert!(start.elapsed() < Duration::from_secs(20));
        let pid = fs::read_to_string(dir.path().join(".pid")).unwrap();
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |s| s.contains(") Z") || s.contains(") X"))
        };
        // It has been killed; dying takes a moment.
        let end = Instant::now() + Duration::from_secs(10);
        while !gone() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone(), "the grandchild lives");
    }

    #[test]
    fn no_directory() {
        let error = Hooks::load(Path::new("/nonexistent"), &[], DEFAULT_TIMEOUT).unwrap_err();
        assert_eq!(error.kind.exit_code(), 8);
    }
}
