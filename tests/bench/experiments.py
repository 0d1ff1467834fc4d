"""The experiments: what is compared with what, and how it is told."""

import fcntl
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import time

from loads import RANDOM, SEQUENTIAL, SINGLE, Load, answer, fio, fio_command, pattern
from report import Spread
from rigs import MIB, RIGS, Rig, fill, run, written
from subjects import BDSNAP, OTHER, PEERS, SAME, TRACKED, UNTRACKED, Bdsnap, DmSnapshot, Increment, Raw

RAW = Raw()


def freeze(path):
    """FIFREEZE and FITHAW, at once: what any snapshot of a file system costs at least."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0xC0045877, 0)
        fcntl.ioctl(fd, 0xC0045878, 0)
    finally:
        os.close(fd)


def database(path, seconds):
    """Transactions a second of SQLite."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("create table if not exists t (k integer primary key, v blob)")
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        db.execute("begin")
        for i in range(20):
            db.execute("insert or replace into t values (?, ?)", ((done * 7919 + i * 104729) % 50000, os.urandom(400)))
        db.execute("commit")
        done += 1
    rate = done / (time.monotonic() - began)
    db.close()
    return rate


def slab_bytes():
    """Memory in slabs that can't be reclaimed, and in vmalloc."""
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        # (what goes with an inode or a dentry)
        drop.write("3")
    with open("/proc/meminfo", encoding="ascii") as file:
        of = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return of["SUnreclaim"] + of["VmallocUsed"]


def one(report, rig, subject, load, seed):
    """One measurement: the first pass, and the median of some more of the same."""
    subject.begin(rig)
    try:
        before = sum(written(dev) for dev in subject.stores)
        first = load.measure(subject.target, seed)
        copied = sum(written(dev) for dev in subject.stores) - before
        passes = [load.measure(subject.target, seed) for _ in range(report.passes)]
        later = {key: statistics.median(each[key] for each in passes) for key in passes[0]}
    finally:
        subject.end(rig)
    return {"first": first, "later": later, "copied": copied / first["bytes"]}


def in_turns(report, rig, subjects, load):
    """All subjects in turns, every second round the other way round: for each a list of measurements."""
    found = {subject.name: [] for subject in subjects}
    for turn in range(report.rounds):
        order = subjects if turn % 2 == 0 else subjects[::-1]
        for subject in order:
            found[subject.name].append(one(report, rig, subject, load, seed=100 + turn))
    return found


def ratios(found, name, which, key, base="raw"):
    """What of a subject's passes is to the raw disk's, round by round."""
    return Spread(mine[which][key] / raw[which][key] for mine, raw in zip(found[name], found[base]))


def tell(report, rig, subjects, load, found):
    """The table and plot of one load on one rig."""
    report.parts.append(f"### {rig.text}: {load.text}\n")
    copied = {s.name: Spread(m["copied"] for m in found[s.name]).tell() if s.has_copies else "" for s in subjects}
    keys = ("p50", "p99") if load.by_latency else ("rate",)
    head = ["", "first write"] + [f"first / raw{f' ({k})' if len(keys) > 1 else ''}" for k in keys]
    head += [f"later / raw{f' ({k})' if len(keys) > 1 else ''}" for k in keys] + ["bytes copied a byte"]
    rows = []
    for subject in subjects:
        if load.by_latency:
            value = Spread(m["first"]["p50"] / 1000 for m in found[subject.name]).tell("{:.0f}") + " µs"
        elif load.block == "4k":
            value = Spread(m["first"]["iops"] for m in found[subject.name]).tell("{:.0f}") + " IOPS"
        else:
            value = Spread(m["first"]["rate"] / 1e6 for m in found[subject.name]).tell("{:.0f}") + " MB/s"
        cells = [ratios(found, subject.name, which, key).tell() for which in ("first", "later") for key in keys]
        rows.append([subject.name, value, *cells, copied[subject.name]])
    report.table(head, rows)
    drawn = [(s.name, ratios(found, s.name, "first", keys[0]).median, ratios(found, s.name, "later", keys[0]).median) for s in subjects]
    unit = "latency (p50), a multiple of the raw disk's: less is better" if load.by_latency else "share of the raw disk: more is better"
    report.plot(f"{rig.name}-{load.name}", f"{rig.text}: {load.text}", unit, drawn)


def mounted(rig, subject, prepare=lambda: None):
    """Mounts the origin's file system at /mnt/fs, with the subject ready once `prepare` has run in it.

    The device of dm-snapshot must be there before the mount.
    """
    early = isinstance(subject, DmSnapshot)
    if early:
        subject.begin(rig)
    run("mount", subject.target if early else rig.origin, "/mnt/fs")
    prepare()
    if not early:
        subject.begin(rig)


def side_by_side(name, subjects, loads):
    """An experiment: these subjects under these loads on this rig."""

    def experiment(report):
        report.section(f"First and later writes: {RIGS[name]().text}")
        with RIGS[name]() as rig:
            for load in loads:
                report.say(f"{rig.name}: {load.text}")
                tell(report, rig, subjects, load, in_turns(report, rig, subjects, load))

    return experiment


def several_jobs(report):
    """Whether writers hinder each other: as many times the writes with four as with one."""
    report.section("Several writers at a time", "Random 4K, depth 32 each, on different parts of one device (null_blk, bound by the CPU); the module must scale as the raw disk does.")
    with RIGS["cpu"]() as rig:
        subjects, counts = [RAW, TRACKED, OTHER], (1, 4)
        found = {}
        for jobs in counts:
            load = Load("jobs", "", "randwrite", "4k", 32, 16, jobs)
            found[jobs] = in_turns(report, rig, subjects, load)
    rows = []
    for subject in subjects:
        scale = Spread(b["later"]["iops"] / a["later"]["iops"] for a, b in zip(found[1][subject.name], found[4][subject.name]))
        four = found[4]
        rows.append([subject.name, ratios(found[1], subject.name, "later", "iops").tell(), ratios(four, subject.name, "later", "iops").tell(), scale.tell()])
    report.table(["", "later / raw, 1 job", "later / raw, 4 jobs", "4 jobs / 1 job"], rows)


def chains(report):
    """First writes with more and more snapshots."""
    report.section("First writes with several snapshots", "Random 4K, depth 32 (null_blk, bound by the CPU); ratio to the same with one snapshot.")
    with RIGS["cpu"]() as rig:
        ours = [Bdsnap(f"bdsnap x{n}", count=n) for n in (1, 2, 4, 8)]
        theirs = [DmSnapshot(4, count=n) for n in (1, 2, 4)]
        load = Load("chain", "", "randwrite", "4k", 32, 16)
        found = in_turns(report, rig, [RAW, *ours, *theirs], load)
    rows = []
    for family in ours, theirs:
        for subject in family:
            rows.append([subject.name, ratios(found, subject.name, "first", "rate").tell(), ratios(found, subject.name, "first", "rate", family[0].name).tell(), Spread(m["copied"] for m in found[subject.name]).tell()])
    report.table(["", "first / raw", "first / one snapshot", "bytes copied a byte"], rows)


def image_reads(*rigs):
    """An experiment: reads of an image on these rigs, idle and while its origin is overwritten."""

    def experiment(report):
        report.section(
            "Reading an image",
            "Sequential, 256K, depth 8, from the image of a fresh snapshot, and the raw disk read the same way; idle, and while the "
            "origin gets 2000 random 4K writes a second, all of them first writes. p99: of those writes.",
        )
        for name in rigs:
            with RIGS[name]() as rig:
                image_reads_on(report, rig)

    return experiment


def image_reads_on(report, rig):
    """The table of one rig."""
    rows = {"raw": [], "bdsnap": [], "dm-snapshot 4K": [], "dm-snapshot 64K": []}
    images = {"raw": None, "bdsnap": "/dev/bdsnap-image0", "dm-snapshot 4K": "/dev/mapper/snap0", "dm-snapshot 64K": "/dev/mapper/snap0"}
    subjects = {"raw": RAW, "bdsnap": OTHER, "dm-snapshot 4K": DmSnapshot(4), "dm-snapshot 64K": DmSnapshot(64)}
    read = {"rw": "read", "bs": "256k", "iodepth": 8}
    for turn in range(report.rounds):
        for name, subject in subjects.items():
            subject.begin(rig)
            try:
                image = images[name] or subject.target
                idle = fio("idle", image, **read)[0]["read"]["bw_bytes"]
                jobs = [
                    {"filename": image, **read, "time_based": 1, "runtime": 6},
                    {"filename": subject.target, **pattern(6, 2000), "randseed": 500 + turn},
                ]
                reads, writes = fio("busy", subject.target, jobs=jobs)
                rows[name].append((idle, reads["read"]["bw_bytes"], writes["write"]["iops"], writes["write"]["lat_ns"]["percentile"]["99.000000"]))
            finally:
                subject.end(rig)
    report.parts.append(f"### {rig.text}\n")
    report.table(
        ["", "read idle / raw", "read under writes / raw", "writes a second", "p99 of writes, ms"],
        [
            [
                name, *(Spread(mine[i] / raw[i] for mine, raw in zip(rows[name], rows["raw"])).tell() for i in (0, 1)),
                Spread(mine[2] for mine in rows[name]).tell("{:.0f}"), Spread(mine[3] / 1e6 for mine in rows[name]).tell("{:.1f}"),
            ]
            for name in rows
        ],
    )


def creation(report):
    """How long a writer waits when a snapshot is made, beside a plain freeze."""
    report.section(
        "Making a snapshot",
        "ext4 on virtio-blk, two writers with random 4K direct writes to a file, depth 4: the longest of their writes, with nothing done, with a "
        "plain FIFREEZE and FITHAW, and with `bdsnap snapshot create`; ms. Frozen, held: what bdsnap says of it.",
    )
    with RIGS["virtio"]() as rig:
        run("mkfs.ext4", "-q", rig.origin)
        os.makedirs("/mnt/fs", exist_ok=True)
        found = {"nothing": [], "freeze": [], "bdsnap": []}
        told = []
        run("modprobe", "bdsnap")
        try:
            run("mount", rig.origin, "/mnt/fs")
            run("bdsnap", "track", rig.origin)
            for turn in range(report.rounds):
                for what, longest in found.items():
                    options = {**pattern(5), "iodepth": 4, "size": 64 * MIB, "numjobs": 2, "filename": "/mnt/fs/file", "fallocate": "none", "randseed": 900 + turn, "ramp_time": 1}
                    with subprocess.Popen(fio_command("create", **options), stdout=subprocess.PIPE, text=True) as writer:
                        time.sleep(4)
                        if what == "freeze":
                            freeze("/mnt/fs")
                        elif what == "bdsnap":
                            told.append(json.loads(run("bdsnap", "--json", "snapshot", "create", rig.origin, "--store", f"dev:{rig.other}")))
                        longest.append(answer(writer.communicate()[0])[0]["write"]["lat_ns"]["max"] / 1e6)
                    if what == "bdsnap":
                        run("bdsnap", "snapshot", "delete", "--all")
        finally:
            run("umount", "/mnt/fs")
            run("bdsnap", "untrack", "--all")
    rows = [[name, Spread(values).tell("{:.0f}"), "", ""] for name, values in found.items()]
    rows[2][2:] = [Spread(t[key] for t in told).tell("{:.1f}") for key in ("freeze_ms", "gate_ms")]
    report.table(["", "longest write", "frozen", "held"], rows)


def sizes(report):
    """Whether a large device takes longer."""
    report.section("Small and large origins", "A snapshot of a blank virtio disk, `--no-freeze`, store in memory; ms.")
    run("modprobe", "bdsnap")
    rows = []
    for dev, name in ("/dev/vdd", "1 GiB"), ("/dev/vde", "8 TiB"):
        run("bdsnap", "track", dev)
        times, told = [], []
        for _ in range(report.rounds):
            began = time.monotonic()
            told.append(json.loads(run("bdsnap", "--json", "snapshot", "create", dev, "--no-freeze", "--store", "mem:16M")))
            times.append((time.monotonic() - began) * 1000)
            run("bdsnap", "snapshot", "delete", "--all")
        run("bdsnap", "untrack", "--all")
        rows.append([name, Spread(times).tell("{:.0f}"), Spread(t["gate_ms"] for t in told).tell("{:.2f}")])
    report.table(["origin", "the whole command", "gate closed"], rows)


def free_space(report):
    """Files unpacked into free space with a snapshot open."""
    report.section(
        "Unpacking into free space",
        "An archive of the VM's /usr/share and /usr/lib/python3 unpacked with tar into a new ext4 that had been full before, and synced; bytes copied "
        "for the snapshot, and how much longer than without one.",
    )
    with RIGS["virtio"]() as rig:
        os.makedirs("/mnt/fs", exist_ok=True)
        run("tar", "-C", "/usr", "-cf", "/tmp/archive.tar", "share", "lib/python3")
        ways = {
            "no snapshot": TRACKED,
            "bdsnap": Bdsnap("", count=1, more=()),
            "bdsnap --skip-free off": Bdsnap("", count=1, more=("--skip-free", "off")),
            "dm-snapshot 4K": DmSnapshot(4),
        }
        found = {name: [] for name in ways}
        for _ in range(report.rounds):
            for name, subject in ways.items():
                fill(rig.origin)
                run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", rig.origin)
                mounted(rig, subject)
                before = sum(written(dev) for dev in subject.stores)
                began = time.monotonic()
                run("tar", "-C", "/mnt/fs", "-xf", "/tmp/archive.tar")
                run("sync", "-f", "/mnt/fs")
                took = time.monotonic() - began
                found[name].append((took, sum(written(dev) for dev in subject.stores) - before))
                run("umount", "/mnt/fs")
                subject.end(rig)
    base = found["no snapshot"]
    report.table(
        ["", "time / without a snapshot", "MB copied"],
        [[name, Spread(a[0] / b[0] for a, b in zip(values, base)).tell(), Spread(a[1] / 1e6 for a in values).tell("{:.1f}")] for name, values in found.items()],
    )


def backups(report):
    """Backups under random writes: with release, and without."""
    report.section(
        "A backup while its origin is overwritten",
        "128 MiB of a virtio disk, random 4K writes at 500 a second meanwhile; with release (the default), and without "
        "(`--keep-snapshot`).",
    )
    with Rig("virtio", RIGS["virtio"]().text, 128, None) as rig:
        store = f"dev:{rig.meta}"
        run("modprobe", "bdsnap")
        run("mkfs.ext4", "-q", "-F", rig.other)
        os.makedirs("/mnt/to", exist_ok=True)
        run("mount", rig.other, "/mnt/to")
        found = {"without release": [], "with release": []}

        def backup(*more):
            run("bdsnap", "backup", rig.origin, "--to", "/mnt/to", "--no-freeze", "--store", store, *more)

        try:
            for turn in range(report.rounds):
                for name, values in found.items():
                    keep = name == "without release"
                    run("bdsnap", "track", rig.origin)
                    options = {"filename": rig.origin, **pattern(600, 500), "randseed": 700 + turn}
                    with subprocess.Popen(fio_command("load", **options), stdout=subprocess.PIPE, text=True) as writer:
                        try:
                            time.sleep(2)
                            before, began = written(rig.meta), time.monotonic()
                            backup(*(["--keep-snapshot"] if keep else []))
                            took, copied = time.monotonic() - began, written(rig.meta) - before
                        finally:
                            writer.send_signal(signal.SIGINT)
                        latency = answer(writer.communicate()[0])[0]["write"]["lat_ns"]["percentile"]["99.000000"]
                    values.append((took, copied / 1e6, latency / 1e6))
                    if keep:
                        run("bdsnap", "snapshot", "delete", "--all")
                    run("bdsnap", "untrack", "--all")
                    run("sh", "-c", "rm -rf /mnt/to/*")
        finally:
            run("umount", "/mnt/to")
    report.table(
        ["", "seconds", "MB copied", "p99 of the writes, ms"],
        [[name, *(Spread(v[i] for v in values).tell("{:.1f}") for i in range(3))] for name, values in found.items()],
    )


def mixed(report):
    """A load of a real kind: SQLite."""
    report.section("SQLite", "Transactions of 20 rows (WAL, synchronous=normal) in a database on ext4 on virtio-blk: transactions a second, ratio to the raw disk.")
    with RIGS["virtio"]() as rig:
        os.makedirs("/mnt/fs", exist_ok=True)
        subjects = [RAW, TRACKED, Bdsnap("bdsnap", count=1, more=()), DmSnapshot(4), DmSnapshot(64)]
        found = {s.name: [] for s in subjects}
        for _ in range(report.rounds):
            for subject in subjects:
                run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", rig.origin)
                mounted(rig, subject, lambda: database("/mnt/fs/db", 2))
                found[subject.name].append(database("/mnt/fs/db", 6))
                run("umount", "/mnt/fs")
                subject.end(rig)
    report.table(["", "transactions a second", "/ raw"], [[n, Spread(v).tell("{:.0f}"), Spread(a / b for a, b in zip(v, found["raw"])).tell()] for n, v in found.items()])


def memory(report):
    """What the module takes."""
    report.section(
        "Memory",
        "For each granule of 4 KiB that is copied: slab (SUnreclaim) and vmalloc in use after 640 MiB of first writes, less the same after 64 MiB before them. Null_blk.",
    )
    with RIGS["cpu"]() as rig:
        rows = []
        cases = [("random 4K", "randwrite", "4k", 8), ("sequential 256K", "write", "256k", 8), ("sequential 4K", "write", "4k", 32)]
        for name, mode, block, depth in cases:
            values = []
            for turn in range(report.rounds):
                OTHER.begin(rig)
                try:
                    now = []
                    for seed, mib in (turn, 64), (100 + turn, 640):
                        # (sequential ones begin at the beginning both times)
                        Load("memory", "", mode, block, depth, mib).measure(OTHER.target, seed)
                        now.append((slab_bytes(), written(rig.other)))
                    (before, copied), (after, all_copied) = now
                    values.append((after - before) / ((all_copied - copied) / 4096))
                finally:
                    OTHER.end(rig)
            rows.append([name, Spread(values).tell("{:.1f}")])
    report.table(["first writes", "bytes a granule"], rows)


def increments(report):
    """First writes with a snapshot for an increment, beside one that keeps all."""
    report.section(
        "A snapshot for an increment",
        "`snapshot create --since N` when 1 % of the blocks of 64 KiB have changed since N, and a snapshot that keeps everything: random 4K first "
        "writes, depth 32 (null_blk, bound by the CPU).",
    )
    with RIGS["cpu"]() as rig:
        subjects = [RAW, OTHER, Increment()]
        found = in_turns(report, rig, subjects, Load("since", "", "randwrite", "4k", 32, 16))
    rows = [[s.name, ratios(found, s.name, "first", "rate").tell(), Spread(m["copied"] for m in found[s.name]).tell()] for s in subjects]
    report.table(["", "first / raw", "bytes copied a byte"], rows)


FEW = [DmSnapshot(4), DmSnapshot(64), DmSnapshot(64, same=True)]
# On a clock that counts instructions (scripts/vm --count): the disks are in the VM, and so is all that is measured.
COUNTED = {
    "cpu": side_by_side("cpu", [RAW, *BDSNAP, *PEERS], [SEQUENTIAL, RANDOM, SINGLE]),
    "bandwidth": side_by_side("bandwidth", [RAW, OTHER, SAME, *FEW], [SEQUENTIAL, Load("rand", RANDOM.text, "randwrite", "4k", 32, 8)]),
    "latency": side_by_side("latency", [RAW, UNTRACKED, TRACKED, OTHER, SAME, *FEW], [Load("single", SINGLE.text, "randwrite", "4k", 1, 1)]),
    "reads": image_reads("cpu", "bandwidth"),
    "snapshots": chains,
    "since": increments,
    "memory": memory,
}
# By the machine's clock, on two CPUs.
TIMED = {
    "virtio": side_by_side("virtio", [RAW, UNTRACKED, TRACKED, OTHER, SAME, *FEW], [SEQUENTIAL, Load("rand", RANDOM.text, "randwrite", "4k", 32, 16)]),
    "jobs": several_jobs,
    "image": image_reads("virtio"),
    "create": creation,
    "sizes": sizes,
    "free": free_space,
    "backup": backups,
    "sqlite": mixed,
}
