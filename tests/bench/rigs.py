"""The devices that are measured on: null_blk (bound by the CPU, by bandwidth, by latency) and virtio.

Each rig has a disk with two partitions, for an origin and a store on the same disk, and another disk for a store elsewhere
and for metadata. All blocks are written once before anything is measured: null_blk takes its memory then.
"""

import mmap
import os
import subprocess

MIB = 1 << 20
CONFIG = "/sys/kernel/config/nullb"


def run(*args, **more):
    """A command that must succeed; returns its output."""
    done = subprocess.run(args, capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(args)}: status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def put(path, text):
    """Writes a file of the kernel's."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


def sectors_of(dev):
    """The size of a device in sectors of 512 bytes."""
    return int(run("blockdev", "--getsz", dev))


def written(dev):
    """Bytes written to a device so far, by its statistics."""
    with open(f"/sys/class/block/{os.path.basename(os.path.realpath(dev))}/stat", encoding="ascii") as file:
        return int(file.read().split()[6]) * 512


def fill(dev, sectors=None, start=0):
    """Writes all of a device (or so many sectors from `start` on): random bytes, since zeros may be taken for nothing."""
    block = mmap.mmap(-1, MIB)
    block.write(os.urandom(MIB))
    rest = (sectors or sectors_of(dev)) * 512
    fd = os.open(dev, os.O_WRONLY | os.O_DIRECT)
    try:
        os.lseek(fd, start * 512, os.SEEK_SET)
        while rest:
            rest -= os.write(fd, memoryview(block)[: min(rest, MIB)])
    finally:
        os.close(fd)


class Rig:
    """One kind of disks: two null_blk disks with this `config`, or (None) the two virtio disks of the VM.

    They are there in a `with` block: then `origin`, `beside` (on the same disk), `other` and `meta` (on another one) are paths.
    """

    def __init__(self, name, text, mib, config):
        self.name, self.text, self.mib, self.config = name, text, mib, config
        self.origin = self.beside = self.other = self.meta = ""

    def __enter__(self):
        if self.config is not None:
            run("modprobe", "null_blk", "nr_devices=0")
            for name in self._names():
                os.mkdir(f"{CONFIG}/{name}")
                for key, value in {"memory_backed": 1, "size": self.mib * 2 + 128, "blocksize": 4096, "hw_queue_depth": 128}.items():
                    put(f"{CONFIG}/{name}/{key}", value)
        self._power(True)
        one, two = self._disks()
        self.origin, self.beside, self.meta, self.other = f"{one}1", f"{one}2", f"{two}1", f"{two}2"
        for disk in self._disks():
            run("sfdisk", "-q", disk, input=f"label: gpt\n,{self.mib}M\n,{self.mib + 64}M\n")
        run("udevadm", "settle")
        for dev in self.origin, self.beside, self.other, self.meta:
            fill(dev)
        # The limits only now, or the filling would take its time. What a disk holds stays when it is off.
        if self.config:
            self._power(False)
            for name in self._names():
                for key, value in self.config.items():
                    put(f"{CONFIG}/{name}/{key}", value)
            self._power(True)
        return self

    def __exit__(self, *_):
        self._power(False)
        if self.config is not None:
            for name in self._names():
                os.rmdir(f"{CONFIG}/{name}")

    def _names(self):
        return [f"{self.name}-a", f"{self.name}-b"]

    def _disks(self):
        if self.config is None:
            return ["/dev/vdb", "/dev/vdc"]
        return [f"/dev/{name}" for name in self._names()]

    def _power(self, on):
        run("udevadm", "settle")
        if self.config is not None:
            for name in self._names():
                put(f"{CONFIG}/{name}/power", int(on))
        run("udevadm", "settle")


RIGS = {
    "cpu": lambda: Rig("cpu", "null_blk in memory: bound by the CPU", 512, {}),
    "bandwidth": lambda: Rig("bandwidth", "null_blk with 100 MB/s", 128, {"mbps": 100}),
    "latency": lambda: Rig("latency", "null_blk that takes 5 ms for each command", 128, {"irqmode": 2, "completion_nsec": 5000000}),
    "virtio": lambda: Rig("virtio", "virtio-blk, a file of the machine", 512, None),
}
