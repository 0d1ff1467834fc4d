#!/usr/bin/env python3
"""storm.py run DIR SEED [FULL] | check DIR

run: allocates and frees as hard as it can, until SIGTERM, keeping about FULL percent (50) of the file
system in use: files that come and go, preallocated ones, holes, truncations. A file gets its last name
when its content is complete; the name tells it. Nothing is synced: a freeze does that.
check: every file that has such a name must have that content. Prints how many there are."""
import os
import random
import signal
import sys
import zlib

stop = False


def on_signal(*_):
    global stop
    stop = True


def content(seed, size):
    return random.Random(seed).randbytes(size)


def run(directory, seed, full=50):
    rng, names, n = random.Random(seed), [], 0
    os.makedirs(directory, exist_ok=True)
    while not stop:
        n += 1
        stat = os.statvfs(directory)
        used = 100 - 100 * stat.f_bavail // stat.f_blocks
        if names and used > full or len(names) > 400:
            for _ in range(rng.randrange(1, 12)):
                if names:
                    os.unlink(names.pop(rng.randrange(len(names))))
            continue
        size = rng.choice((4096, 20000, 65536, 300000, 1 << 20, 3 << 20))
        kind = rng.choice("dddpht")
        own = f"{seed}x{n}"
        temporary = f"{directory}/tmp{own}"
        with open(temporary, "wb") as file:
            if kind == "p":  # allocated, not written: zeros
                os.posix_fallocate(file.fileno(), 0, size)
                crc = zlib.crc32(bytes(size))
            elif kind == "h":  # only its end is written
                file.truncate(size)
                data = bytes(size - 4096) + content(own, 4096)
                file.seek(size - 4096)
                file.write(data[-4096:])
                crc = zlib.crc32(data)
            elif kind == "t":  # written, cut short, written further
                data = content(own, size)
                file.write(data)
                file.flush()
                file.truncate(size // 2)
                file.seek(size // 2)
                file.write(data[size // 2:])
                crc = zlib.crc32(data)
            else:
                data = content(own, size)
                file.write(data)
                crc = zlib.crc32(data)
        name = f"{directory}/f-{own}-{size}-{crc:08x}"
        os.rename(temporary, name)
        names.append(name)
    print(f"storm: {n} rounds, {len(names)} files at the end")


def check(directory):
    bad = count = 0
    for name in os.listdir(directory):
        if not name.startswith("f-"):
            continue
        _, _, size, crc = name.split("-")
        with open(f"{directory}/{name}", "rb") as file:
            data = file.read()
        count += 1
        if len(data) != int(size) or f"{zlib.crc32(data):08x}" != crc:
            bad += 1
            print(f"storm: {name} is wrong", file=sys.stderr)
    print(f"storm: checked {count} files, {bad} bad")
    sys.exit(bad > 0)


signal.signal(signal.SIGTERM, on_signal)
if sys.argv[1] == "run":
    run(sys.argv[2], int(sys.argv[3]), *map(int, sys.argv[4:]))
else:
    check(sys.argv[2])
