//! How a wrong call is made and judged, and the order of all of them.

use crate::calls::*;
use crate::Where;
use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::abi::Arg;
use bdsnap_tests::abi::Ioctl;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Cliff;
use bdsnap_tests::sys::Open;
use libc::{E2BIG, EFAULT, EINVAL, ENOTTY};
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

pub struct Checks {
    pub fd: File,
    pub dev: Dev,
    pub other: Dev,
    pub size: u64,
    pub block: u64,
    pub cliff: Cliff,
    pub before: Option<State>,
    pub done: u32,
    pub failures: Vec<String>,
}

impl Checks {
    pub fn fail(&mut self, why: String) {
        eprintln!("abifuzz: FAIL: {why}");
        self.failures.push(why);
    }

    pub fn ensure(&mut self, what: &str, ok: bool) {
        self.done += 1;
        if !ok {
            self.fail(what.to_owned());
        }
    }

    /// Calls and returns the result and the argument as the kernel left it, but for the file that EVENTS gave.
    /// The struct ends where memory ends: one byte too many is a fault.
    pub fn call(&mut self, code: u64, arg: &Arg) -> (Result<i32, i32>, Arg) {
        sys::watchdog(90);
        let addr = self.cliff.put(&arg.bytes);
        let r = sys::ioctl_at(self.fd.as_raw_fd(), code, addr);
        let mut after = arg.clone();
        let mem = self.cliff.mem();
        let start = mem.len() - after.bytes.len();
        after.bytes.copy_from_slice(&mem[start..]);
        if arg.ioctl == abi::EVENTS && r.is_ok() {
            drop(sys::own(after.get32(at::EVENTS_FD) as i32));
        }
        (r, after)
    }

    pub fn judge(&mut self, what: &str, name: &str, r: Result<i32, i32>, want: &[i32]) {
        self.done += 1;
        let good = match r {
            Ok(_) => want.contains(&0),
            Err(e) => want.contains(&e),
        };
        println!("  {name}: {what}: {}", shown(&r));
        if !good {
            self.fail(format!(
                "{name}: {what}: {} instead of {}",
                shown(&r),
                named(want)
            ));
        }
    }

    pub fn unchanged(&mut self, what: &str, name: &str) {
        match state(&self.fd, self.dev) {
            Ok(now) if Some(&now) == self.before.as_ref() => {}
            Ok(now) => {
                self.fail(format!(
                    "{name}: {what}: changed something: {:?} is now {now:?}",
                    self.before
                ));
                self.before = Some(now);
            }
            Err(e) => self.fail(format!("{name}: {what}: lists fail after it: {e}")),
        }
    }

    /// Calls; the errno must be one of these (0: success), nothing may change.
    pub fn expect(&mut self, what: &str, arg: &Arg, want: &[i32]) -> Arg {
        let (r, after) = self.call(arg.ioctl.code(), arg);
        self.judge(what, arg.ioctl.name, r, want);
        self.unchanged(what, arg.ioctl.name);
        after
    }

    /// As `expect`, with the address of the argument given.
    pub fn expect_at(&mut self, what: &str, ioctl: Ioctl, addr: u64, want: &[i32]) {
        sys::watchdog(90);
        let r = sys::ioctl_at(self.fd.as_raw_fd(), ioctl.code(), addr);
        self.judge(what, ioctl.name, r, want);
        self.unchanged(what, ioctl.name);
    }

    /// The sizes, addresses and codes that go wrong with any ioctl. `good` is
    /// an argument that gets `result` (0 or an errno) and changes nothing.
    pub fn common(&mut self, good: &Arg, result: i32) {
        let io = good.ioctl;
        let first = io.size;
        self.expect("the argument itself", good, &[result]);
        for size in [0, 1, 4, 8, first - 8, first - 1] {
            let a = good.clone().u32(0, size);
            self.expect(&format!("size {size}"), &a, &[EINVAL]);
        }
        for more in [1, 8, 64, 1000] {
            let zero = good.clone().sized(first + more, 0);
            let after = self.expect(&format!("{more} zero bytes more"), &zero, &[result]);
            if after.bytes[first as usize..].iter().any(|&b| b != 0) {
                self.fail(format!("{}: wrote behind the struct it knows", io.name));
            }
            let mut last = zero.clone();
            if let Some(b) = last.bytes.last_mut() {
                *b = 1;
            }
            self.expect(
                &format!("{more} bytes more, the last not zero"),
                &last,
                &[E2BIG],
            );
        }
        for huge in [1 << 20, 1 << 31, u32::MAX] {
            let a = good.clone().u32(0, huge);
            self.expect(
                &format!("size {huge} where memory ends"),
                &a,
                &[E2BIG, EINVAL, EFAULT],
            );
        }
        for bit in 0..32 {
            // The defined flags are tried elsewhere.
            let defined = match io {
                abi::UNTRACK | abi::SNAPSHOT_DELETE => bit == 0,
                abi::MAP_READ => bit <= 1,
                abi::SERVE | abi::RECORD => bit == 0,
                _ => false,
            };
            if !defined {
                let a = good.clone().u32(at::FLAGS, 1 << bit);
                self.expect(&format!("flag bit {bit}"), &a, &[EINVAL]);
            }
        }
        for (what, addr) in [
            ("NULL", 0),
            ("address 1", 1),
            ("kernel address", 0xffff_8880_0000_0000),
            ("non-canonical address", 0x8000_0000_0000_0000),
            ("last address", u64::MAX - 7),
        ] {
            self.expect_at(what, io, addr, &[EFAULT]);
        }
        self.expect_at("unmapped page", io, self.cliff.edge(), &[EFAULT]);
        self.cliff.put(&good.bytes[..first as usize - 8]);
        let edge = self.cliff.edge();
        self.expect_at(
            "the last field unmapped",
            io,
            edge - u64::from(first) + 8,
            &[EFAULT],
        );
        for size in [0, first - 4, first + 8, 0x3fff] {
            let (r, _) = self.call(io.code_with(size), good);
            self.judge(&format!("size {size} in the code"), io.name, r, &[result]);
        }
        self.unchanged("other sizes in the code", io.name);
    }

    pub fn unknown_numbers(&mut self) {
        for nr in 0..=255u8 {
            if abi::ALL.iter().any(|i| i.nr == nr) {
                continue;
            }
            let a = Ioctl {
                name: "unknown number",
                nr,
                size: 96,
            }
            .arg();
            let (r, _) = self.call(a.ioctl.code(), &a);
            if r != Err(ENOTTY) {
                self.judge(&format!("number {nr:#x}"), a.ioctl.name, r, &[ENOTTY]);
            }
            self.done += 1;
        }
        for i in abi::ALL {
            let a = i.arg();
            let (r, _) = self.call(a.ioctl.code() ^ 0x100, &a);
            self.judge("another type of ioctl", i.name, r, &[ENOTTY]);
        }
        let a = abi::VERSION.arg();
        for code in [0, u64::from(u32::MAX), 0x5401, 0x1268] {
            let (r, _) = self.call(code, &a);
            // FIBMAP and friends are the VFS's, these are nobody's.
            self.judge(&format!("code {code:#x}"), "foreign", r, &[ENOTTY, EINVAL]);
        }
        self.unchanged("unknown numbers", "all");
    }

    pub fn not_ioctls(&mut self) {
        use std::io::Read;
        use std::io::Write;
        let mut b = [0u8; 64];
        let r = (&self.fd).read(&mut b);
        self.ensure("read() of the control device fails", r.is_err());
        let r = (&self.fd).write(&b);
        self.ensure("write() to the control device fails", r.is_err());
        let r = self.fd.set_len(1);
        self.ensure("ftruncate() of the control device fails", r.is_err());
        self.unchanged("read, write, truncate", "not ioctls");
    }
}

pub fn checks(w: &Where, tmpfs: &str) -> Result<(), String> {
    let (dev, other) = (dev_of(&w.dev)?, dev_of(&w.other)?);
    let size = sys::size_of(&sys::open(&w.dev, Open::default())?).map_err(|e| e.to_string())?;
    let fd = control()?;
    let track = &mut abi::TRACK.arg().dev(dev);
    track
        .call(&fd)
        .map_err(|e| format!("TRACK {}: {}", w.dev, sys::errno_name(e)))?;
    let block = u64::from(track.get32(at::BLOCK_SIZE));
    let file = store_file(&w.store_dir, "abifuzz.first", w.store_size)?;
    let handle = make_store(&fd, &file)?;
    let (id, answer) = make_snapshot(&fd, handle, dev)?;
    let word = |at: usize| {
        let mut b = [0; 4];
        b.copy_from_slice(&answer[at..at + 4]);
        u32::from_ne_bytes(b)
    };
    let image = (word(8), word(12));
    let name: String = answer[16..48]
        .iter()
        .take_while(|&&b| b != 0)
        .map(|&b| b as char)
        .collect();
    let path = format!("/dev/{name}");
    if !settle(|| Path::new(&path).exists()) || dev_of(&path)? != image {
        return Err(format!("{path} is not there, or not device {image:?}"));
    }
    println!(
        "abifuzz: tracking {} {dev:?}, image {path} {image:?}",
        w.dev
    );
    let cliff = Cliff::new(8192).map_err(|e| format!("mmap: {e}"))?;
    let mut c = Checks {
        fd,
        dev,
        other,
        size,
        block,
        cliff,
        before: None,
        done: 0,
        failures: vec![],
    };
    c.before = Some(state(&c.fd, dev)?);
    c.version();
    c.unknown_numbers();
    c.not_ioctls();
    c.track();
    c.untrack();
    c.lists(id);
    c.store(w, tmpfs)?;
    c.refs(id);
    c.maps(image);
    c.mark();
    c.free();
    c.release(image);
    c.service(id)?;
    c.events()?;
    c.unprivileged(id)?;
    c.create(w)?;
    c.ownership(w)?;
    c.open_image(id, &path)?;
    drop(file);
    let r = abi::UNTRACK.arg().dev(dev).call(&c.fd);
    c.judge("at the end", "UNTRACK", r, &[0]);
    let _ = fs::remove_file(format!("{}/abifuzz.first", w.store_dir));
    println!("abifuzz: {} checks, {} failed", c.done, c.failures.len());
    if c.failures.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "{} of {} checks:\n  {}",
            c.failures.len(),
            c.done,
            c.failures.join("\n  ")
        ))
    }
}
