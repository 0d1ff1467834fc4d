//! VERSION, TRACK, UNTRACK, the lists, STORE_ADD.

use crate::calls::*;
use crate::runner::Checks;
use crate::Where;
use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Open;
use libc::{
    E2BIG, EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC, ENXIO, EOPNOTSUPP,
};
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

impl Checks {
    pub fn version(&mut self) {
        let good = abi::VERSION.arg();
        self.common(&good, 0);
        let v = self.expect("VERSION", &good, &[0]);
        self.ensure("abi is 1", v.get32(8) == 1);
        self.ensure(
            "hook is active while something is tracked",
            v.get32(12) == 1,
        );
        self.ensure(
            "features has no undefined bit",
            v.get64(16) & !abi::FEATURES == 0,
        );
        self.ensure(
            "release is a text that ends with NUL",
            v.bytes[24] != 0 && v.bytes[55] == 0,
        );
    }

    pub fn track(&mut self) {
        let good = abi::TRACK.arg().dev(self.dev);
        self.common(&good, 0);
        let out = self.expect("tracked already", &good, &[0]);
        let (block, dev, other) = (self.block as u32, self.dev, self.other);
        self.ensure(
            "TRACK tells the block size",
            out.get32(at::BLOCK_SIZE) == block,
        );
        self.ensure(
            "TRACK tells the generation",
            out.bytes[24..40].iter().any(|&b| b != 0),
        );
        self.expect(
            "the same block size",
            &good.clone().u32(at::BLOCK_SIZE, block),
            &[0],
        );
        self.expect(
            "another block size",
            &good.clone().u32(at::BLOCK_SIZE, block * 2),
            &[EEXIST],
        );
        for d in [dev, other] {
            for bad in [
                1,
                511,
                512,
                2048,
                4095,
                4097,
                12288,
                1 << 25,
                1 << 31,
                u32::MAX,
            ] {
                let a = abi::TRACK.arg().dev(d).u32(at::BLOCK_SIZE, bad);
                self.expect(&format!("block size {bad}"), &a, &[EINVAL]);
            }
        }
        for d in [
            (0, 0),
            // No driver has this major number.
            (240, 3),
            (4095, 1),
            (u32::MAX, u32::MAX),
            (dev.0, u32::MAX),
            (dev.0 | (1 << 20), dev.1),
        ] {
            self.expect(
                &format!("device {d:?}"),
                &abi::TRACK.arg().dev(d),
                &[ENODEV, ENXIO, EINVAL],
            );
        }
        // The result can't be delivered: then nothing may have been tracked.
        let a = abi::TRACK.arg().dev(other);
        let addr = self.cliff.put(&a.bytes);
        self.cliff.read_only(true);
        self.expect_at("argument in read-only memory", abi::TRACK, addr, &[EFAULT]);
        self.cliff.read_only(false);
    }

    pub fn untrack(&mut self) {
        self.common(&abi::UNTRACK.arg().dev(self.other), ENOENT);
        let (dev, other) = (self.dev, self.other);
        self.expect("it has a snapshot", &abi::UNTRACK.arg().dev(dev), &[EBUSY]);
        self.expect(
            "never tracked, FORCE",
            &abi::UNTRACK.arg().dev(other).u32(at::FLAGS, 1),
            &[ENOENT],
        );
        for d in [
            (0, 0),
            (u32::MAX, u32::MAX),
            (dev.0 | (1 << 20), dev.1),
            (dev.0, dev.1 | (1 << 24)),
        ] {
            self.expect(
                &format!("device {d:?}"),
                &abi::UNTRACK.arg().dev(d),
                &[ENOENT, EINVAL, ENODEV, ENXIO],
            );
        }
    }

    pub fn lists(&mut self, id: [u8; 16]) {
        let kinds = [
            (abi::LIST_ORIGINS, abi::ORIGIN_INFO, [0; 16]),
            (abi::LIST_SNAPSHOTS, abi::SNAPSHOT_INFO, [0; 16]),
            (abi::LIST_VERSIONS, abi::VERSION_INFO, id),
        ];
        for (io, item, id) in kinds {
            let good = io.arg().u32(at::LIST_ITEM, item).put(at::LIST_ID, &id);
            self.common(&good, 0);
            let n = self.expect("no room", &good, &[0]).get32(at::LIST_COUNT);
            self.ensure(
                &format!(
                    "{}: count without room is the number there are (1), got {n}",
                    io.name
                ),
                n == 1,
            );
            for bad in [0, 1, 4, 7, 12, 4097, 4104, u32::MAX, 1 << 31] {
                self.expect(
                    &format!("item size {bad}"),
                    &good.clone().u32(at::LIST_ITEM, bad),
                    &[EINVAL],
                );
            }
            for addr in [0, 8, 0xffff_8880_0000_0000, u64::MAX - 7, self.cliff.edge()] {
                let a = good
                    .clone()
                    .u32(at::LIST_COUNT, 1)
                    .u64(at::LIST_BUFFER, addr);
                self.expect(&format!("buffer {addr:#x}"), &a, &[EFAULT]);
            }
            for item in [8, 16, item, 4096] {
                for count in [1, 2, 3, 65536, u32::MAX] {
                    let mut room = vec![0xa5u8; 3 * 4096];
                    let a = good
                        .clone()
                        .u32(at::LIST_ITEM, item)
                        .u32(at::LIST_COUNT, count)
                        .u64(at::LIST_BUFFER, room.as_mut_ptr() as u64);
                    let what = format!("item size {item}, room for {count}");
                    let out = self.expect(&what, &a, &[0]);
                    let written = item as usize * n as usize;
                    self.ensure(
                        &format!("{} {what}: count {}", io.name, n),
                        out.get32(at::LIST_COUNT) == n,
                    );
                    self.ensure(
                        &format!("{} {what}: nothing written behind the items", io.name),
                        room[written..].iter().all(|&b| b == 0xa5),
                    );
                    let known = [abi::ORIGIN_INFO, abi::SNAPSHOT_INFO, abi::VERSION_INFO];
                    let known = known[kinds.iter().position(|k| k.0 == io).unwrap_or(0)] as usize;
                    self.ensure(
                        &format!("{} {what}: padded with zeros", io.name),
                        room[known.min(written)..written].iter().all(|&b| b == 0),
                    );
                }
            }
        }
        let any = abi::LIST_VERSIONS.arg().u32(at::LIST_ITEM, 8);
        self.expect(
            "unknown id",
            &any.clone().put(at::LIST_ID, &[7; 16]),
            &[ENOENT],
        );
        self.expect("id zero", &any, &[ENOENT, EINVAL]);
        for io in [abi::LIST_ORIGINS, abi::LIST_SNAPSHOTS] {
            self.expect(
                "an id where none belongs",
                &io.arg().u32(at::LIST_ITEM, 8).put(at::LIST_ID, &id),
                &[EINVAL],
            );
        }
    }

    /// Portions that are no files.
    fn other_stores(&mut self) {
        let memory = abi::STORE_ADD.arg().u32(at::STORE_KIND, abi::KIND_MEMORY);
        for (length, errors) in [
            (0, EINVAL),
            (1, EINVAL),
            (4095, EINVAL),
            (1 << 39, ENOMEM),
            ((1 << 39) + 4096, EINVAL),
            (u64::MAX, EINVAL),
        ] {
            let what = format!("memory of {length} bytes");
            let a = memory.clone().u64(at::STORE_LENGTH, length);
            self.expect(&what, &a, &[errors]);
        }
        let some = memory.u64(at::STORE_LENGTH, 4096);
        for (what, field) in [
            ("fd", at::STORE_FD),
            ("major", at::STORE_MAJOR),
            ("extents", at::STORE_EXTENTS),
        ] {
            let what = format!("memory with {what} 1");
            self.expect(&what, &some.clone().u32(field, 1), &[EINVAL]);
        }
        let device = abi::STORE_ADD
            .arg()
            .u32(at::STORE_KIND, abi::KIND_DEVICE)
            .u32(at::STORE_MAJOR, self.dev.0)
            .u32(at::STORE_MINOR, self.dev.1);
        let a = device.clone().u32(at::STORE_MAJOR, 4000);
        self.expect("a device that isn't there", &a, &[ENXIO, ENODEV]);
        let a = device.clone().u32(at::STORE_MAJOR, 1 << 12);
        self.expect("an impossible device", &a, &[EINVAL]);
        let a = device.clone().u64(at::STORE_BUFFER, 4096);
        self.expect("a device with a buffer", &a, &[EINVAL]);
        let out = self.expect("an origin", &device, &[EBUSY]);
        self.ensure(
            "its cause is STORE_BUSY (22)",
            out.get32(at::STORE_CAUSE) == 22,
        );
        let other = device
            .u32(at::STORE_MAJOR, self.other.0)
            .u32(at::STORE_MINOR, self.other.1);
        for (offset, length) in [
            (512, 4096),
            (0, 512),
            (0, 1 << 50),
            (1 << 50, 0),
            (1 << 50, 4096),
            (u64::MAX - 4095, 4096),
            (4096, u64::MAX - 4095),
        ] {
            let a = other.clone().u64(at::STORE_OFFSET, offset);
            let a = a.u64(at::STORE_LENGTH, length);
            let out = self.expect(&format!("{length} bytes at {offset}"), &a, &[EINVAL]);
            self.ensure(
                "its cause is STORE_RANGE or _SMALL",
                [26, 25].contains(&out.get32(at::STORE_CAUSE)),
            );
        }
    }

    pub fn store(&mut self, w: &Where, tmpfs: &str) -> Result<(), String> {
        let file = store_file(&w.store_dir, "abifuzz.store", w.store_size)?;
        let mut room = vec![0u8; 4096 * abi::FIEMAP_EXTENT as usize];
        let good = abi::STORE_ADD
            .arg()
            .u32(at::STORE_KIND, abi::KIND_FILE)
            .u32(at::STORE_FD, file.as_raw_fd() as u32)
            .u64(at::STORE_BUFFER, room.as_mut_ptr() as u64)
            .u32(at::STORE_EXTENTS, 4096);
        // A good argument would make a store; one on tmpfs is refused at the very end.
        let ram = store_file(tmpfs, "abifuzz.ram", 1 << 20)?;
        let on_tmpfs = good.clone().u32(at::STORE_FD, ram.as_raw_fd() as u32);
        self.common(&on_tmpfs, EOPNOTSUPP);
        let out = self.expect("a file on tmpfs", &on_tmpfs, &[EOPNOTSUPP]);
        self.ensure(
            "its cause is STORE_FS (20)",
            out.get32(at::STORE_CAUSE) == 20,
        );
        let _ = fs::remove_file(format!("{tmpfs}/abifuzz.ram"));
        for kind in [0, 4, u32::MAX] {
            let what = format!("kind {kind}");
            self.expect(&what, &good.clone().u32(at::STORE_KIND, kind), &[EINVAL]);
        }
        for (what, field) in [("major", at::STORE_MAJOR), ("minor", at::STORE_MINOR)] {
            let what = format!("a file with {what} 1");
            self.expect(&what, &good.clone().u32(field, 1), &[EINVAL]);
        }
        for (what, field) in [("offset", at::STORE_OFFSET), ("length", at::STORE_LENGTH)] {
            let what = format!("a file with {what} 4096");
            self.expect(&what, &good.clone().u64(field, 4096), &[EINVAL]);
        }
        for handle in [1 << 40, u64::MAX] {
            let what = format!("store {handle}");
            self.expect(
                &what,
                &good.clone().u64(at::STORE_HANDLE, handle),
                &[ENOENT],
            );
        }
        self.other_stores();
        let a = good.clone().put(at::STORE_SNAPSHOT, &[9; 16]);
        self.expect("a snapshot that isn't there", &a, &[ENOENT]);
        let a = a.u64(at::STORE_HANDLE, 1);
        self.expect("a store and a snapshot", &a, &[EINVAL]);
        let drop = abi::STORE_DROP.arg().u64(at::STORE_HANDLE, 1 << 40);
        self.common(&drop, ENOENT);
        for fd in [-1i32, -2, i32::MIN, i32::MAX, 999] {
            self.expect(
                &format!("fd {fd}"),
                &good.clone().u32(at::STORE_FD, fd as u32),
                &[EBADF, EINVAL],
            );
        }
        for bad in [1, 511, 512, 2048, 4095, 8192, 65536, u32::MAX] {
            self.expect(
                &format!("granule {bad}"),
                &good.clone().u32(at::STORE_GRANULE, bad),
                &[EINVAL],
            );
        }
        for bad in [1, 512, 2048, 12288, 524288, u32::MAX] {
            self.expect(
                &format!("run {bad}"),
                &good.clone().u32(at::STORE_RUN, bad),
                &[EINVAL],
            );
        }
        self.expect(
            "room for 0 extents",
            &good.clone().u32(at::STORE_EXTENTS, 0),
            &[EINVAL, ENOSPC],
        );
        for n in [abi::MAX_EXTENTS + 1, 1 << 31, u32::MAX] {
            self.expect(
                &format!("room for {n} extents"),
                &good.clone().u32(at::STORE_EXTENTS, n),
                &[EINVAL, E2BIG],
            );
        }
        for addr in [0, 8, 0xffff_8880_0000_0000, u64::MAX - 7, self.cliff.edge()] {
            self.expect(
                &format!("buffer {addr:#x}"),
                &good.clone().u64(at::STORE_BUFFER, addr),
                &[EFAULT],
            );
        }
        let open = |path: &str, write| {
            sys::open(
                path,
                Open {
                    write,
                    ..Open::default()
                },
            )
        };
        let path = format!("{}/abifuzz.store", w.store_dir);
        let null = open("/dev/null", true)?;
        let block = open(&w.other, true)?;
        let dir = File::open(&w.store_dir).map_err(|e| e.to_string())?;
        let read_only = open(&path, false)?;
        let o_path = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&path)
            .map_err(|e| e.to_string())?;
        let pipe = sys::pipe().map_err(|e| format!("pipe: {e}"))?;
        let own = control()?;
        for (what, fd) in [
            ("/dev/null", null.as_raw_fd()),
            ("a block device", block.as_raw_fd()),
            ("a directory", dir.as_raw_fd()),
            ("a file opened read-only", read_only.as_raw_fd()),
            ("an O_PATH fd", o_path.as_raw_fd()),
            ("a pipe", pipe.as_raw_fd()),
            ("the control device", own.as_raw_fd()),
        ] {
            self.expect(
                what,
                &good.clone().u32(at::STORE_FD, fd as u32),
                &[EINVAL, EBADF],
            );
        }
        let empty = store_file(&w.store_dir, "abifuzz.empty", 0)?;
        let out = self.expect(
            "an empty file",
            &good.clone().u32(at::STORE_FD, empty.as_raw_fd() as u32),
            &[EINVAL],
        );
        self.ensure(
            "its cause is STORE_SMALL or _EXTENTS",
            [25, 23].contains(&out.get32(at::STORE_CAUSE)),
        );
        empty.set_len(1 << 20).map_err(|e| e.to_string())?;
        let out = self.expect(
            "one big hole",
            &good.clone().u32(at::STORE_FD, empty.as_raw_fd() as u32),
            &[EINVAL],
        );
        self.ensure(
            "its cause is STORE_EXTENTS (23)",
            out.get32(at::STORE_CAUSE) == 23,
        );
        sys::erase(&file, sys::Erase::PunchHole, 1 << 20, 1 << 20).map_err(|e| e.to_string())?;
        file.sync_all().map_err(|e| e.to_string())?;
        let out = self.expect("a hole in the middle", &good, &[EINVAL]);
        self.ensure(
            "its cause is STORE_EXTENTS (23)",
            out.get32(at::STORE_CAUSE) == 23,
        );
        self.ensure("a refused file is not pinned", file.set_len(0).is_ok());
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(format!("{}/abifuzz.empty", w.store_dir));
        Ok(())
    }
}
