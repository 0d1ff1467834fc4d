//! Who may call, and how long what they made lives.

use crate::calls::*;
use crate::runner::Checks;
use crate::Where;
use bdsnap_tests::abi;
use bdsnap_tests::abi::at;
use bdsnap_tests::sys;
use bdsnap_tests::sys::Open;
use libc::{EBUSY, ENOENT, EPERM, ETXTBSY};
use std::fs;
use std::fs::File;
use std::time::Duration;

impl Checks {
    /// All ioctls without the capability, through a file opened with it.
    pub fn unprivileged(&mut self, id: [u8; 16]) -> Result<(), String> {
        let (dev, other) = (self.dev, self.other);
        let fd = &self.fd;
        let bad = sys::in_child(|| {
            if sys::become_nobody().is_err() {
                return 100;
            }
            let mut bad = 0;
            for io in abi::ALL {
                let d = if io == abi::TRACK { other } else { dev };
                let mut args = vec![io.arg()];
                if [abi::TRACK, abi::UNTRACK, abi::MAP_READ, abi::MARK].contains(&io) {
                    args.push(io.arg().dev(d));
                }
                if [abi::SNAPSHOT_KEEP, abi::SNAPSHOT_DELETE].contains(&io) {
                    args.push(io.arg().put(at::ID, &id));
                }
                if [abi::LIST_ORIGINS, abi::LIST_SNAPSHOTS].contains(&io) {
                    args.push(io.arg().u32(at::LIST_ITEM, 8));
                }
                for mut a in args {
                    let r = a.call(fd);
                    let good = if io == abi::VERSION {
                        r.is_ok()
                    } else {
                        r == Err(EPERM)
                    };
                    println!("  {} without CAP_SYS_ADMIN: {}", io.name, shown(&r));
                    if !good {
                        eprintln!(
                            "abifuzz: FAIL: {} without CAP_SYS_ADMIN: {}",
                            io.name,
                            shown(&r)
                        );
                        bad += 1;
                    }
                }
            }
            if control().is_ok() {
                eprintln!("abifuzz: FAIL: nobody may open {}", abi::DEVICE);
                bad += 1;
            }
            bad
        })
        .map_err(|e| format!("fork: {e}"))?;
        self.ensure("without CAP_SYS_ADMIN only VERSION works", bad == 0);
        self.unchanged("calls without the capability", "all");
        Ok(())
    }

    /// Stores and snapshots end with the open file, kept ones do not.
    pub fn ownership(&mut self, w: &Where) -> Result<(), String> {
        let dev = self.dev;
        let count = |fd: &File| {
            Ok::<_, String>(list(fd, abi::LIST_SNAPSHOTS, &[0; 16], abi::SNAPSHOT_INFO)?.len())
        };
        let base = count(&self.fd)?;

        let file = store_file(&w.store_dir, "abifuzz.own", w.store_size)?;
        let owner = control()?;
        make_store(&owner, &file)?;
        let e = file.set_len(0).err().and_then(|e| e.raw_os_error());
        self.ensure(
            &format!("a store can't be truncated ({e:?})"),
            e == Some(ETXTBSY),
        );
        let r = make_store(&owner, &file);
        self.ensure(
            &format!("one file is no store twice ({r:?})"),
            matches!(&r, Err(e) if e.contains("EBUSY")),
        );
        drop(owner);
        let r = settle(|| file.set_len(0).is_ok());
        self.ensure("the store of a closed file is unpinned", r);
        drop(file);

        for keep in [false, true] {
            let file = store_file(&w.store_dir, "abifuzz.own", w.store_size)?;
            let owner = control()?;
            let handle = make_store(&owner, &file)?;
            let (id, _) = make_snapshot(&owner, handle, dev)?;
            let twin = owner.try_clone().map_err(|e| e.to_string())?;
            drop(owner);
            let n = count(&self.fd)?;
            self.ensure(
                "a snapshot lives on with a dup of its open file",
                n == base + 1,
            );
            let r = make_snapshot(&twin, handle, dev);
            self.ensure(
                "a store that belongs to a snapshot can't serve another",
                r.is_err(),
            );
            if keep {
                let r = abi::SNAPSHOT_KEEP.arg().put(at::ID, &id).call(&twin);
                self.judge("keep", "SNAPSHOT_KEEP", r, &[0]);
            }
            drop(twin);
            if keep {
                std::thread::sleep(Duration::from_millis(500));
                let n = count(&self.fd)?;
                self.ensure("a kept snapshot outlives its open file", n == base + 1);
                self.ensure("and so does its store", file.set_len(0).is_err());
                let r = delete(&self.fd, &id);
                self.judge("delete from another open file", "SNAPSHOT_DELETE", r, &[0]);
                let r = abi::SNAPSHOT_DELETE.arg().put(at::ID, &id).call(&self.fd);
                self.judge("delete again", "SNAPSHOT_DELETE", r, &[ENOENT]);
            }
            let gone = settle(|| count(&self.fd) == Ok(base));
            self.ensure("the snapshot is gone", gone);
            let free = settle(|| file.set_len(0).is_ok());
            self.ensure("its store is unpinned", free);
        }
        let _ = fs::remove_file(format!("{}/abifuzz.own", w.store_dir));
        // Numbers went on.
        self.before = Some(state(&self.fd, dev)?);
        Ok(())
    }

    /// An open image: not deleted without FORCE, and then its readers get EIO.
    pub fn open_image(&mut self, id: [u8; 16], image: &str) -> Result<(), String> {
        use std::os::unix::fs::FileExt;
        let f = sys::open(
            image,
            Open {
                direct: true,
                ..Open::default()
            },
        )?;
        let mut buf = sys::Buf::new(4096);
        let r = f.read_exact_at(&mut buf, 0);
        self.ensure("an image can be read", r.is_ok());
        self.ensure(
            "an image can't be opened for writing",
            open_rw(image).is_err() || write_fails(image),
        );
        self.expect(
            "the image is open",
            &abi::SNAPSHOT_DELETE.arg().put(at::ID, &id),
            &[EBUSY],
        );
        self.expect(
            "the image is open",
            &abi::UNTRACK.arg().dev(self.dev).u32(at::FLAGS, 1),
            &[EBUSY],
        );
        let r = abi::SNAPSHOT_DELETE
            .arg()
            .put(at::ID, &id)
            .u32(at::FLAGS, 1)
            .call(&self.fd);
        self.judge("FORCE", "SNAPSHOT_DELETE", r, &[0]);
        let r = f.read_exact_at(&mut buf, 65536);
        self.ensure(&format!("its readers get errors ({r:?})"), r.is_err());
        Ok(())
    }
}

fn open_rw(path: &str) -> Result<File, String> {
    sys::open(
        path,
        Open {
            write: true,
            direct: true,
            dsync: false,
        },
    )
}

fn write_fails(path: &str) -> bool {
    use std::os::unix::fs::FileExt;
    open_rw(path).is_ok_and(|f| f.write_at(&sys::Buf::new(4096), 0).is_err())
}
