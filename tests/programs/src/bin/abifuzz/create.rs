//! SNAPSHOT_CREATE.

use crate::calls::*;
use crate::runner::Checks;
use crate::Where;
use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::sys::Cliff;
use libc::{E2BIG, EBADF, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENXIO};
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;

impl Checks {
    /// What a store may grow to, and the note.
    fn growth(&mut self, good: &abi::Arg) {
        let big = 1u64 << 40;
        for (limit, portion) in [
            (big, 0),
            (0, big),
            (1, 1),
            (4096, 4096),
            (1 << 63, 1 << 20),
            (u64::MAX, 1 << 20),
        ] {
            let a = good.clone().u64(at::SNAP_LIMIT, limit);
            let a = a.u64(at::SNAP_PORTION, portion);
            self.expect(&format!("limit {limit}, portion {portion}"), &a, &[EINVAL]);
        }
        for ms in [abi::HOLD_MAX_MS + 1, u32::MAX] {
            let a = good.clone().u32(at::SNAP_HOLD_MS, ms);
            self.expect(&format!("hold {ms} ms"), &a, &[EINVAL]);
        }
        for length in [abi::MAX_NOTE + 1, u32::MAX] {
            let a = good.clone().u32(at::SNAP_NOTE_LEN, length);
            self.expect(&format!("a note of {length} bytes"), &a, &[EINVAL]);
        }
        for addr in [0, 8, u64::MAX - 7, self.cliff.edge()] {
            let a = good.clone().u64(at::SNAP_NOTE, addr);
            let a = a.u32(at::SNAP_NOTE_LEN, 64);
            self.expect(&format!("a note at {addr:#x}"), &a, &[EFAULT]);
        }
    }

    pub fn create(&mut self, w: &Where) -> Result<(), String> {
        let (dev, other) = (self.dev, self.other);
        let device = |d: Dev| {
            let mut b = vec![0u8; abi::SNAPSHOT_DEVICE as usize];
            b[..4].copy_from_slice(&d.0.to_ne_bytes());
            b[4..8].copy_from_slice(&d.1.to_ne_bytes());
            b
        };
        let mut one = device(dev);
        let mut twice = [device(dev), device(dev)].concat();
        let mut untracked = device(other);
        let mut nowhere = device((u32::MAX, u32::MAX));
        let good = abi::SNAPSHOT_CREATE
            .arg()
            .u64(at::SNAP_STORE, 0xdead_beef)
            .u64(at::SNAP_DEVICES, one.as_mut_ptr() as u64)
            .u32(at::SNAP_DEVICE_COUNT, 1);
        self.common(&good, ENOENT);
        for store in [0, 1, u64::MAX] {
            self.expect(
                &format!("store {store}"),
                &good.clone().u64(at::SNAP_STORE, store),
                &[ENOENT, EINVAL],
            );
        }
        // From here on with a real store: it must be usable after each failure.
        let file = store_file(&w.store_dir, "abifuzz.create", w.store_size)?;
        let handle = make_store(&self.fd, &file)?;
        let good = good.u64(at::SNAP_STORE, handle);
        self.expect(
            "no devices",
            &good.clone().u32(at::SNAP_DEVICE_COUNT, 0),
            &[EINVAL],
        );
        for n in [abi::MAX_DEVICES + 1, 1 << 31, u32::MAX] {
            self.expect(
                &format!("{n} devices"),
                &good.clone().u32(at::SNAP_DEVICE_COUNT, n),
                &[EINVAL, E2BIG],
            );
        }
        for addr in [
            0,
            8,
            0xffff_8880_0000_0000,
            u64::MAX - 7,
            self.cliff.edge(),
            self.cliff.edge() - 40,
        ] {
            self.expect(
                &format!("devices at {addr:#x}"),
                &good.clone().u64(at::SNAP_DEVICES, addr),
                &[EFAULT],
            );
            let a = good
                .clone()
                .u32(at::SNAP_FREEZE_COUNT, 16)
                .u64(at::SNAP_FREEZE, addr);
            self.expect(&format!("freeze_fds at {addr:#x}"), &a, &[EFAULT]);
        }
        let mut fds = vec![-1i32; 200];
        let with_fds = good.clone().u64(at::SNAP_FREEZE, fds.as_mut_ptr() as u64);
        self.expect(
            "freeze fd -1",
            &with_fds.clone().u32(at::SNAP_FREEZE_COUNT, 1),
            &[EBADF, EINVAL],
        );
        for n in [abi::MAX_FREEZE + 1, 1 << 30, u32::MAX] {
            self.expect(
                &format!("{n} freeze fds"),
                &with_fds.clone().u32(at::SNAP_FREEZE_COUNT, n),
                &[EINVAL, E2BIG],
            );
        }
        // A good one first, a bad one second: the good one must not stay frozen.
        let dir = File::open(&w.store_dir).map_err(|e| e.to_string())?;
        fds[0] = dir.as_raw_fd();
        self.expect(
            "second freeze fd -1",
            &with_fds.clone().u32(at::SNAP_FREEZE_COUNT, 2),
            &[EBADF, EINVAL],
        );
        self.ensure(
            "its file system takes writes",
            fs::write(format!("{}/abifuzz.alive", w.store_dir), b"x").is_ok(),
        );
        let _ = fs::remove_file(format!("{}/abifuzz.alive", w.store_dir));
        for field in [at::SNAP_FREEZE_MS, at::SNAP_DRAIN_MS] {
            for ms in [abi::TIMEOUT_MAX_MS + 1, 1 << 31, u32::MAX] {
                self.expect(
                    &format!("time-out of {ms} ms"),
                    &good.clone().u32(field, ms),
                    &[EINVAL],
                );
            }
        }
        self.growth(&good);
        let a = good
            .clone()
            .u64(at::SNAP_DEVICES, twice.as_mut_ptr() as u64)
            .u32(at::SNAP_DEVICE_COUNT, 2);
        self.expect("one origin twice", &a, &[EEXIST]);
        let a = good
            .clone()
            .u64(at::SNAP_DEVICES, untracked.as_mut_ptr() as u64);
        self.expect("an origin that is not tracked", &a, &[ENOENT]);
        let a = good
            .clone()
            .u64(at::SNAP_DEVICES, nowhere.as_mut_ptr() as u64);
        self.expect(
            "an origin that can't be",
            &a,
            &[ENOENT, EINVAL, ENODEV, ENXIO],
        );
        let mut second_bad = [device(dev), device(other)].concat();
        let a = good
            .clone()
            .u64(at::SNAP_DEVICES, second_bad.as_mut_ptr() as u64)
            .u32(at::SNAP_DEVICE_COUNT, 2);
        self.expect("the second origin is not tracked", &a, &[ENOENT]);
        let stranger = control()?;
        let r = good.clone().call(&stranger);
        self.judge(
            "a store of another open file",
            "SNAPSHOT_CREATE",
            r,
            &[ENOENT],
        );
        self.unchanged("a store of another open file", "SNAPSHOT_CREATE");
        // Results that can't be delivered: no snapshot may remain.
        let addr = self.cliff.put(&good.bytes);
        self.cliff.read_only(true);
        self.expect_at(
            "argument in read-only memory",
            abi::SNAPSHOT_CREATE,
            addr,
            &[EFAULT],
        );
        self.cliff.read_only(false);
        let mut read_only = Cliff::new(4096).map_err(|e| e.to_string())?;
        let addr = read_only.put(&one);
        read_only.read_only(true);
        self.expect(
            "devices in read-only memory",
            &good.clone().u64(at::SNAP_DEVICES, addr),
            &[EFAULT],
        );
        // "On any failure ... the store remains usable."
        let mut a = good.clone();
        let r = a.call(&self.fd);
        self.judge("the good one, after all these", "SNAPSHOT_CREATE", r, &[0]);
        if r.is_ok() {
            let r = delete(&self.fd, &a.bytes[at::ID..at::ID + 16]);
            self.judge("and away with it", "SNAPSHOT_DELETE", r, &[0]);
        }
        let now = state(&self.fd, dev)?;
        self.ensure("only the first snapshot is left", now.snapshots.len() == 1);
        self.before = Some(now);
        let _ = fs::remove_file(format!("{}/abifuzz.create", w.store_dir));
        Ok(())
    }
}
