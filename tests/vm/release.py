#!/usr/bin/env python3
"""release.py storm IMAGE REFERENCE SEED | watch IMAGE REFERENCE SEED | patch IMAGE CHANGES COPY

storm: releases random parts of an image, and reads random parts of it, until SIGTERM: what has been released
is zeros, the rest is as in the file REFERENCE. Ranges that are not made of granules count inwards.
watch: reads random parts of an image while others release some: each granule is as in REFERENCE, or from some
read on zeros for ever.
patch: writes to the file COPY what `bdsnap --json changes` listed in the file CHANGES, as it is in the image, outwards to
whole 64 KiB: so much is there."""
import ctypes
import fcntl
import json
import mmap
import os
import random
import signal
import struct
import sys

GRANULE = 4096
RELEASE = (3 << 30) | (32 << 16) | (0xBD << 8) | 0x26
stop = False


def on_signal(*_):
    global stop
    stop = True


class Image:
    def __init__(self, path):
        self.size = os.path.getsize(path) or os.lseek(os.open(path, os.O_RDONLY), 0, os.SEEK_END)
        self.cached = os.open(path, os.O_RDONLY)
        self.direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        device = os.stat(path).st_rdev
        self.number = (os.major(device), os.minor(device))
        self.control = os.open("/dev/bdsnap", os.O_RDWR)
        self.buffer = mmap.mmap(-1, 1 << 20)

    def release(self, ranges):
        array = b"".join(struct.pack("<QQ", *r) for r in ranges)
        keep = ctypes.create_string_buffer(array, len(array))
        fcntl.ioctl(self.control, RELEASE,
                    struct.pack("<IIIIQII", 32, 0, *self.number, ctypes.addressof(keep), len(ranges), 0))

    def read(self, offset, length, direct):
        if not direct:
            return os.pread(self.cached, length, offset)
        view = memoryview(self.buffer)[:length]
        count = os.preadv(self.direct, [view], offset)
        assert count == length, (offset, length, count)
        return bytes(view)


def pick(rng, size):
    """A range of whole granules (the last of a device may be short), up to 1 MiB."""
    granules = (size + GRANULE - 1) // GRANULE
    first = rng.randrange(granules)
    count = min(rng.choice((1, 1, 2, 3, 16, 64, 256)), granules - first)
    return first * GRANULE, min(size, (first + count) * GRANULE)


def storm(path, reference, seed):
    rng, image = random.Random(seed), Image(path)
    with open(reference, "rb") as file:
        truth = bytearray(file.read())
    assert len(truth) == image.size, (len(truth), image.size)
    reads = releases = released = 0
    while not stop:
        ranges = []
        for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
            start, end = pick(rng, image.size)
            if rng.random() < 0.2:  # all of the device's end, or a part of a granule on both sides
                start += rng.randrange(0, GRANULE)
                end = min(image.size, end + rng.randrange(0, GRANULE))
            if start >= end:
                continue
            ranges.append((start, end - start))
        if ranges:
            image.release(ranges)
            releases += len(ranges)
        for start, length in ranges:
            end = start + length
            first = -(-start // GRANULE) * GRANULE
            last = end if end == image.size else end // GRANULE * GRANULE
            if last > first:
                released += last - first
                truth[first:last] = bytes(last - first)
        for _ in range(4):
            start, end = pick(rng, image.size)
            direct = rng.random() < 0.5
            data = image.read(start, end - start, direct)
            reads += 1
            if data != truth[start:end]:
                at = next(i for i in range(len(data)) if data[i] != truth[start + i])
                sys.exit(f"storm: {path} is wrong at {start + at} (read from {start}, direct {direct}, "
                         f"after {releases} releases): {data[at:at + 16]!r} for {bytes(truth[start + at:start + at + 16])!r}")
    data = b"".join(image.read(o, min(1 << 20, image.size - o), True) for o in range(0, image.size, 1 << 20))
    if data != truth:
        sys.exit(f"storm: {path} is wrong in the end")
    zeros = sum(not any(truth[o:o + GRANULE]) for o in range(0, image.size, GRANULE))
    print(f"storm: {reads} reads, {releases} releases; {zeros} granules are zeros now")


def watch(path, reference, seed):
    rng, image = random.Random(seed), Image(path)
    with open(reference, "rb") as file:
        truth = file.read()
    gone, reads = set(), 0
    while not stop:
        start, end = pick(rng, image.size)
        data = image.read(start, end - start, rng.random() < 0.7)
        reads += 1
        for offset in range(start, end, GRANULE):
            part = data[offset - start:offset - start + GRANULE]
            if not any(part):
                gone.add(offset)
            elif offset in gone and any(truth[offset:offset + GRANULE]):
                sys.exit(f"watch: {path}: granule at {offset} was zeros, and is not")
            elif part != truth[offset:offset + GRANULE]:
                sys.exit(f"watch: {path}: granule at {offset} is neither old nor zeros: {part[:16]!r}")
    print(f"watch: {reads} reads, {len(gone)} granules seen as zeros")


def patch(path, changes, copy):
    with open(changes) as file, open(path, "rb") as image, open(copy, "r+b") as out:
        extents = json.load(file)["extents"]
        for extent in extents:
            start = extent["offset"] & -65536
            end = (extent["offset"] + extent["length"] + 65535) & -65536
            image.seek(start)
            out.seek(start)
            out.write(image.read(end - start))
    print(f"patch: {len(extents)} extents, {sum(e['length'] for e in extents)} bytes")


signal.signal(signal.SIGTERM, on_signal)
if sys.argv[1] == "patch":
    patch(*sys.argv[2:5])
else:
    {"storm": storm, "watch": watch}[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4]))
