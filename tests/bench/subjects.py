"""What is measured side by side: the raw disk, bdsnap, and what the kernel has besides.

A subject gets a rig's devices ready (`begin`), says what is to be written to (`target`), where its copies go (`stores`),
and takes everything down again (`end`), so that the next one finds the same disks.
"""

from rigs import MIB, fill, run, sectors_of


def zero(dev, mib=1):
    """Makes the beginning of a device zeros: no metadata of the one before."""
    run("dd", "if=/dev/zero", f"of={dev}", "bs=1M", f"count={mib}", "oflag=direct", "conv=notrunc")


class Raw:
    """The disk itself."""

    name = "raw"
    has_copies = False

    def begin(self, rig):
        """Gets ready; `target` and `stores` are set then."""
        self.target, self.stores = rig.origin, []

    def end(self, rig):
        """Takes everything down."""


class Bdsnap(Raw):
    """bdsnap: with `count` snapshots, the store `same` as the origin's disk or not; `more` options for `snapshot create`."""

    def __init__(self, name, tracked=True, count=0, same=False, more=("--no-freeze",)):
        self.name, self.tracked, self.count, self.same, self.more = name, tracked, count, same, more
        self.has_copies = count > 0

    def begin(self, rig):
        super().begin(rig)
        run("modprobe", "bdsnap")
        run("bdsnap", "track", rig.origin if self.tracked else rig.meta)
        store = rig.beside if self.same else rig.other
        self.stores = [store] if self.count else []
        small = 4 * MIB
        if self.count:
            # What looks like somebody's data is not taken.
            zero(store)
        for i in range(self.count):
            # In the same partition one after the other: first writes are copied to the newest alone.
            spec = f"dev:{store},offset={i * small}"
            if i < self.count - 1:
                spec += f",size={small}"
            run("bdsnap", "snapshot", "create", rig.origin, *self.more, "--store", spec)

    def end(self, rig):
        if self.count:
            run("bdsnap", "snapshot", "delete", "--all")
        run("bdsnap", "untrack", "--all")


class Increment(Bdsnap):
    """A snapshot that keeps what changed since another one: 1 % of the blocks of 64 KiB."""

    def __init__(self):
        super().__init__("bdsnap --since", count=1, more=("--no-freeze", "--since", "1"))

    def begin(self, rig):
        run("modprobe", "bdsnap")
        run("bdsnap", "snapshot", "create", rig.origin, "--no-freeze", "--store", "mem:16M")
        run("bdsnap", "snapshot", "delete", "--all")
        for block in range(0, sectors_of(rig.origin) // 128, 100):
            fill(rig.origin, 8, block * 128)
        super().begin(rig)


class DmSnapshot(Raw):
    """LVM's snapshots: dm-snapshot, persistent (P) or not (N), with chunks of `kib` KiB."""

    has_copies = True

    def __init__(self, kib, kind="P", count=1, same=False):
        self.kib, self.kind, self.count, self.same = kib, kind, count, same
        where = " on the same disk" if same else ""
        self.name = f"dm-snapshot {kib}K{'' if kind == 'P' else ' transient'}{f' x{count}' if count > 1 else ''}{where}"

    def begin(self, rig):
        run("modprobe", "dm-snapshot")
        size, store = sectors_of(rig.origin), rig.beside if self.same else rig.other
        part = sectors_of(store) // self.count // 2048 * 2048
        for i in range(self.count):
            run("dmsetup", "create", f"cow{i}", "--table", f"0 {part} linear {store} {i * part}")
            zero(f"/dev/mapper/cow{i}")
        run("dmsetup", "create", "base", "--table", f"0 {size} linear {rig.origin} 0")
        run("dmsetup", "create", "origin", "--table", f"0 {size} snapshot-origin /dev/mapper/base")
        for i in range(self.count):
            run("dmsetup", "suspend", "origin")
            run("dmsetup", "create", f"snap{i}", "--table", f"0 {size} snapshot /dev/mapper/base /dev/mapper/cow{i} {self.kind} {self.kib * 2}")
            run("dmsetup", "resume", "origin")
        self.target, self.stores = "/dev/mapper/origin", [store]

    def end(self, rig):
        for name in [f"snap{i}" for i in range(self.count)] + ["origin", "base"] + [f"cow{i}" for i in range(self.count)]:
            run("dmsetup", "remove", "--retry", name)


class DmThin(Raw):
    """dm-thin: a volume in a pool, all of it written, and a snapshot of it. Pool blocks of 64 KiB."""

    name = "dm-thin 64K"
    has_copies = True

    def begin(self, rig):
        run("modprobe", "dm-thin-pool")
        size = sectors_of(rig.origin)
        # Data of origin and snapshot are in the same pool, always: on the other disk, that there is room.
        zero(rig.meta)
        data = f"0 {size} linear {rig.origin} 0\n{size} {sectors_of(rig.other)} linear {rig.other} 0\n"
        run("dmsetup", "create", "data", input=data)
        run("dmsetup", "create", "pool", "--table", f"0 {size + sectors_of(rig.other)} thin-pool {rig.meta} /dev/mapper/data 128 0 1 skip_block_zeroing")
        run("dmsetup", "message", "/dev/mapper/pool", "0", "create_thin 0")
        run("dmsetup", "create", "thin", "--table", f"0 {size} thin /dev/mapper/pool 0")
        fill("/dev/mapper/thin")
        run("dmsetup", "suspend", "thin")
        run("dmsetup", "message", "/dev/mapper/pool", "0", "create_snap 1 0")
        run("dmsetup", "resume", "thin")
        self.target, self.stores = "/dev/mapper/thin", [rig.other]

    def end(self, rig):
        for name in "thin", "pool", "data":
            run("dmsetup", "remove", "--retry", name)


class DmEra(Raw):
    """dm-era: changed-block tracking alone, blocks of 64 KiB."""

    name = "dm-era 64K"

    def begin(self, rig):
        run("modprobe", "dm-era")
        size = sectors_of(rig.origin)
        zero(rig.meta)
        run("dmsetup", "create", "era", "--table", f"0 {size} era {rig.meta} {rig.origin} 128")
        self.target, self.stores = "/dev/mapper/era", []

    def end(self, rig):
        run("dmsetup", "remove", "--retry", "era")


UNTRACKED = Bdsnap("bdsnap untracked", tracked=False)
TRACKED = Bdsnap("bdsnap tracked")
OTHER = Bdsnap("bdsnap", count=1)
SAME = Bdsnap("bdsnap on the same disk", count=1, same=True)
EIGHT = Bdsnap("bdsnap x8", count=8)
BDSNAP = [UNTRACKED, TRACKED, OTHER, SAME, EIGHT]
PEERS = [DmSnapshot(4), DmSnapshot(4, "N"), DmSnapshot(16), DmSnapshot(64), DmSnapshot(256), DmThin(), DmEra()]
