//! SNAPSHOT_KEEP and _DELETE with bad ids, MAP_READ, MARK, EVENTS.

use crate::calls::*;
use crate::runner::Checks;
use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Cliff;
use libc::{E2BIG, EAGAIN, EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENXIO, ESTALE};
use std::fs;
use std::io::Read;

/// Ranges as the ioctls take them.
fn ranges(list: &[(u64, u64)]) -> Vec<u8> {
    let pairs = list.iter().flat_map(|r| [r.0, r.1]);
    pairs.flat_map(u64::to_ne_bytes).collect()
}

impl Checks {
    pub fn refs(&mut self, id: [u8; 16]) {
        for io in [abi::SNAPSHOT_KEEP, abi::SNAPSHOT_DELETE] {
            let good = io.arg().put(at::ID, &[9; 16]);
            self.common(&good, ENOENT);
            self.expect("id zero", &io.arg(), &[ENOENT, EINVAL]);
            self.expect(
                "FORCE, and another flag",
                &io.arg().put(at::ID, &id).u32(at::FLAGS, 3),
                &[EINVAL],
            );
        }
        self.expect(
            "KEEP with FORCE",
            &abi::SNAPSHOT_KEEP.arg().put(at::ID, &id).u32(at::FLAGS, 1),
            &[EINVAL],
        );
    }

    pub fn maps(&mut self, image: Dev) {
        for dev in [self.dev, image] {
            let good = abi::MAP_READ.arg().dev(dev);
            self.common(&good, 0);
            let head = self.expect("only the header", &good, &[0]);
            let (size, block) = (self.size, self.block);
            let blocks = size.div_ceil(block);
            let number = head.get64(at::MAP_NUMBER);
            self.ensure("device_size", head.get64(at::MAP_SIZE) == size);
            self.ensure("block_size", u64::from(head.get32(at::MAP_BLOCK)) == block);
            for bit in 0..32 {
                self.expect(
                    "reserved bit",
                    &good.clone().u32(at::MAP_RESERVED, 1 << bit),
                    &[EINVAL],
                );
            }
            for (what, first, count) in [
                ("far past the end", blocks + 1, 1),
                ("u64::MAX", u64::MAX, 1),
                ("u64::MAX, count u64::MAX", u64::MAX, u64::MAX),
                ("2^52 blocks", 1 << 52, 1 << 52),
                ("2^63", 1 << 63, 2),
            ] {
                let mut room = [0u32; 16];
                let a = good
                    .clone()
                    .u64(at::MAP_FIRST, first)
                    .u64(at::MAP_COUNT, count)
                    .u64(at::MAP_BUFFER, room.as_mut_ptr() as u64);
                self.expect(&format!("first block {what}"), &a, &[EINVAL]);
                self.ensure("and nothing is written", room.iter().all(|&x| x == 0));
            }
            for (first, count) in [
                (0, blocks),
                (0, u64::MAX),
                (1, u64::MAX),
                (blocks - 1, 1),
                (blocks - 1, u64::MAX),
                (3, 1 << 62),
            ] {
                let mut room = vec![0x5a5a_5a5au32; blocks as usize + 64];
                let a = good
                    .clone()
                    .u64(at::MAP_FIRST, first)
                    .u64(at::MAP_COUNT, count)
                    .u64(at::MAP_BUFFER, room.as_mut_ptr() as u64);
                let out = self.expect(&format!("{count} blocks from {first}"), &a, &[0]);
                let fit = count.min(blocks - first);
                self.ensure(
                    "count is clamped to the end",
                    out.get64(at::MAP_COUNT) == fit,
                );
                self.ensure(
                    "nothing is written behind the last block",
                    room[fit as usize..].iter().all(|&x| x == 0x5a5a_5a5a),
                );
                self.ensure(
                    "all blocks are answered",
                    room[..fit as usize].iter().all(|&x| x != 0x5a5a_5a5a),
                );
            }
            let mut values = [abi::MAP_DISCARDS, 0].map(|flags| {
                let mut room = vec![0u32; blocks as usize];
                let a = good
                    .clone()
                    .u32(at::FLAGS, flags)
                    .u64(at::MAP_COUNT, blocks)
                    .u64(at::MAP_BUFFER, room.as_mut_ptr() as u64);
                self.expect(&format!("all blocks, flags {flags}"), &a, &[0]);
                room
            });
            self.ensure(
                "no value is marked without DISCARDS",
                values[1].iter().all(|&x| x & abi::MAP_DISCARDED == 0),
            );
            values[0].iter_mut().for_each(|x| *x &= !abi::MAP_DISCARDED);
            self.ensure("the numbers are the same with it", values[0] == values[1]);
            for addr in [0, 8, 0xffff_8880_0000_0000, u64::MAX - 7, self.cliff.edge()] {
                let a = good
                    .clone()
                    .u64(at::MAP_COUNT, blocks)
                    .u64(at::MAP_BUFFER, addr);
                self.expect(&format!("buffer {addr:#x}"), &a, &[EFAULT]);
            }
            for since in [number + 1, number + 256, 1 << 32, u64::MAX] {
                let out = self.expect(
                    &format!("since {since}"),
                    &good.clone().u64(at::MAP_SINCE, since),
                    &[ESTALE],
                );
                self.ensure(
                    "the fields are filled in all the same",
                    out.get64(at::MAP_SIZE) == size,
                );
            }
            let out = self.expect(
                "another generation",
                &good.clone().put(at::MAP_GENERATION, &[1; 16]),
                &[ESTALE],
            );
            self.ensure(
                "the map's own generation is told",
                out.bytes[at::MAP_GENERATION..at::MAP_GENERATION + 16]
                    == head.bytes[at::MAP_GENERATION..at::MAP_GENERATION + 16],
            );
        }
        for d in [
            self.other,
            (0, 0),
            (u32::MAX, u32::MAX),
            (image.0, image.1 | (1 << 19)),
        ] {
            self.expect(
                &format!("device {d:?}"),
                &abi::MAP_READ.arg().dev(d),
                &[ENOENT, EINVAL, ENODEV, ENXIO],
            );
        }
    }

    pub fn mark(&mut self) {
        let (size, block) = (self.size, self.block);
        let ranges = |list: &[(u64, u64)]| {
            list.iter()
                .flat_map(|r| [r.0.to_ne_bytes(), r.1.to_ne_bytes()].concat())
                .collect::<Vec<u8>>()
        };
        let mut nothing = ranges(&[(0, 0)]);
        let good = abi::MARK
            .arg()
            .dev(self.dev)
            .u32(at::MARK_COUNT, 1)
            .u64(at::MARK_RANGES, nothing.as_mut_ptr() as u64);
        // A good MARK changes the map; with count 0 it is refused.
        self.common(&good.clone().u32(at::MARK_COUNT, 0), EINVAL);
        for bit in 0..32 {
            self.expect(
                "reserved bit",
                &good.clone().u32(at::MARK_RESERVED, 1 << bit),
                &[EINVAL],
            );
        }
        let bad = [
            (0, 0),
            (size, 1),
            (size, 0),
            (size - 1, 2),
            (0, size + 1),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (4096, u64::MAX),
            (4096, u64::MAX - 4095),
            (u64::MAX - 4095, 8192),
            (1 << 63, 1 << 63),
            (0, u64::MAX),
        ];
        for r in bad {
            // Alone, and behind one that is fine: that must not be marked either.
            let mut alone = ranges(&[r]);
            let a = good.clone().u64(at::MARK_RANGES, alone.as_mut_ptr() as u64);
            self.expect(&format!("range {r:?}"), &a, &[EINVAL]);
            let mut second = ranges(&[(block * 3, block), r]);
            let a = good
                .clone()
                .u32(at::MARK_COUNT, 2)
                .u64(at::MARK_RANGES, second.as_mut_ptr() as u64);
            self.expect(&format!("a good range, then {r:?}"), &a, &[EINVAL]);
        }
        for n in [abi::MAX_RANGES + 1, 1 << 28, u32::MAX] {
            self.expect(
                &format!("{n} ranges"),
                &good.clone().u32(at::MARK_COUNT, n),
                &[EINVAL, E2BIG],
            );
        }
        let mut one = ranges(&[(block * 3, block)]);
        let edge = self.cliff.edge();
        for addr in [0, 8, 0xffff_8880_0000_0000, u64::MAX - 7, edge, edge - 8] {
            let a = good.clone().u64(at::MARK_RANGES, addr);
            self.expect(&format!("ranges at {addr:#x}"), &a, &[EFAULT]);
        }
        let mut cut = Cliff::new(4096).unwrap_or_else(|e| bdsnap_tests::die!("mmap: {e}"));
        let addr = cut.put(&one);
        self.expect(
            "the second range unmapped",
            &good
                .clone()
                .u32(at::MARK_COUNT, 2)
                .u64(at::MARK_RANGES, addr),
            &[EFAULT],
        );
        let a = good.clone().u64(at::MARK_RANGES, one.as_mut_ptr() as u64);
        self.expect("an untracked device", &a.clone().dev(self.other), &[ENOENT]);
        // And that a good one does something, or "nothing changed" proves nothing.
        let (r, _) = self.call(abi::MARK.code(), &a);
        self.judge("a good range", "MARK", r, &[0]);
        match state(&self.fd, self.dev) {
            Ok(now) => {
                self.ensure(
                    "a good MARK shows in the live map",
                    Some(&now) != self.before.as_ref() && now.map[3] > 0,
                );
                self.before = Some(now);
            }
            Err(e) => self.fail(e),
        }
    }

    /// What is wrong with an ioctl that takes ranges of a device of this size, and takes none `beside`.
    fn bad_ranges(&mut self, good: &abi::Arg, beside: &[(u64, u64)]) {
        let size = self.size;
        let a = good.clone().u32(at::MARK_RESERVED, 1);
        self.expect("reserved 1", &a, &[EINVAL]);
        let past = [
            (0, 0),
            (size, 512),
            (0, size + 512),
            (u64::MAX - 511, 512),
            (512, u64::MAX - 511),
        ];
        for r in past.iter().chain(beside) {
            let mut bad = ranges(&[(0, 65536), *r]);
            let a = good.clone().u32(at::MARK_COUNT, 2);
            let a = a.u64(at::MARK_RANGES, bad.as_mut_ptr() as u64);
            self.expect(&format!("a good range, then {r:?}"), &a, &[EINVAL]);
        }
        for n in [0, abi::MAX_RANGES + 1, u32::MAX] {
            let a = good.clone().u32(at::MARK_COUNT, n);
            self.expect(&format!("{n} ranges"), &a, &[EINVAL]);
        }
        for addr in [0, u64::MAX - 7, self.cliff.edge()] {
            let a = good.clone().u64(at::MARK_RANGES, addr);
            self.expect(&format!("ranges at {addr:#x}"), &a, &[EFAULT]);
        }
    }

    /// SNAPSHOT_RELEASE of an image of the device.
    pub fn release(&mut self, image: Dev) {
        let mut one = ranges(&[(0, 4095)]);
        let good = abi::SNAPSHOT_RELEASE
            .arg()
            .dev(self.dev)
            .u32(at::MARK_COUNT, 1)
            .u64(at::MARK_RANGES, one.as_mut_ptr() as u64);
        self.expect("SNAPSHOT_RELEASE of an origin", &good, &[ENOENT]);
        let good = good.dev(image);
        self.common(&good, 0);
        self.bad_ranges(&good, &[]);
    }

    /// SINCE, where RECORD has been called or not.
    fn since(&mut self, recorded: bool) {
        let good = abi::SINCE.arg().dev(self.dev);
        let other = good.clone().dev(self.other);
        self.expect("SINCE of an untracked device", &other, &[ENOENT]);
        self.common(&good, if recorded { 0 } else { ENOENT });
        for number in [1 << 32, u64::MAX] {
            let a = good.clone().u64(at::SINCE_NUMBER, number);
            self.expect(&format!("since {number}"), &a, &[ESTALE]);
        }
        let a = good.put(at::SINCE_GENERATION, &[7; 16]);
        self.expect("another generation", &a, &[ESTALE]);
    }

    /// RECORD, FREE and SINCE.
    pub fn free(&mut self) {
        let size = self.size;
        self.since(false);
        let mut one = ranges(&[(0, size)]);
        let good = abi::FREE
            .arg()
            .dev(self.dev)
            .u32(at::MARK_COUNT, 1)
            .u64(at::MARK_RANGES, one.as_mut_ptr() as u64);
        self.expect("FREE without RECORD", &good, &[ENOENT]);
        let record = abi::RECORD.arg().dev(self.dev);
        let a = record.clone().dev(self.other);
        self.expect("RECORD of an untracked device", &a, &[ENOENT]);
        self.common(&record, 0);
        if let Ok(other) = control() {
            let r = record.clone().call(&other);
            self.judge("RECORD by another one", "RECORD", r, &[EBUSY]);
            let r = good.clone().call(&other);
            self.judge("FREE by another one", "FREE", r, &[ENOENT]);
        }
        self.common(&good.clone().u32(at::MARK_COUNT, 0), EINVAL);
        self.bad_ranges(&good, &[(512, 1), (1, 512)]);
        self.expect("a good range", &good, &[0]);
        self.since(true);
        let end = record.u32(at::FLAGS, 1);
        self.expect("RECORD with END", &end, &[0]);
        self.expect("the same again", &end, &[ENOENT]);
        self.expect("FREE after that", &good, &[ENOENT]);
    }

    /// SNAPSHOT_NOTE and SERVE.
    pub fn service(&mut self, id: [u8; 16]) -> Result<(), String> {
        let good = abi::SNAPSHOT_NOTE.arg().put(at::ID, &[9; 16]);
        self.common(&good, ENOENT);
        let good = good.put(at::ID, &id);
        let out = self.expect("an empty note", &good, &[0]);
        self.ensure("it has no bytes", out.get32(at::NOTE_LENGTH) == 0);
        let a = good.u32(at::NOTE_RESERVED, 1);
        self.expect("reserved 1", &a, &[EINVAL]);
        let query = abi::SERVE.arg().u32(at::FLAGS, 1);
        let out = self.expect("whether anybody serves", &query, &[0]);
        self.ensure("nobody does", out.get32(at::SERVED) == 0);
        let a = abi::SERVE.arg().u32(at::SERVE_RESERVED, 1);
        self.expect("reserved 1", &a, &[EINVAL]);
        let server = control()?;
        let mut a = abi::SERVE.arg();
        let r = a.call(&server);
        self.judge("serving", "SERVE", r, &[0]);
        self.ensure("it is told", a.get32(at::SERVED) == 1);
        let out = self.expect("whether anybody serves", &query, &[0]);
        self.ensure("somebody does", out.get32(at::SERVED) == 1);
        self.expect("a second one", &abi::SERVE.arg(), &[EBUSY]);
        drop(server);
        self.common(&abi::SERVE.arg(), 0);
        Ok(())
    }

    pub fn events(&mut self) -> Result<(), String> {
        let good = abi::EVENTS.arg();
        self.common(&good, 0);
        for bit in 0..32 {
            self.expect(
                "reserved bit",
                &good.clone().u32(at::EVENTS_RESERVED, 1 << bit),
                &[EINVAL],
            );
        }
        let mut a = good.clone();
        a.call(&self.fd)
            .map_err(|e| format!("EVENTS: {}", sys::errno_name(e)))?;
        let mut file = sys::own(a.get32(at::EVENTS_FD) as i32).map_err(|e| e.to_string())?;
        let mut read = |len: usize| {
            let mut buf = vec![0u8; len];
            file.read(&mut buf)
                .map_err(|e| e.raw_os_error().unwrap_or(0))
        };
        let (small, none) = (read(abi::EVENT - 1), read(abi::EVENT));
        self.ensure("no room for an event: EINVAL", small == Err(EINVAL));
        self.ensure("no event, O_NONBLOCK: EAGAIN", none == Err(EAGAIN));
        // Results that can't be delivered: no descriptor may remain.
        let open = || fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let before = open();
        let addr = self.cliff.put(&good.bytes);
        self.cliff.read_only(true);
        self.expect_at("argument in read-only memory", abi::EVENTS, addr, &[EFAULT]);
        self.cliff.read_only(false);
        self.ensure("no descriptor is left", open() == before);
        Ok(())
    }
}
