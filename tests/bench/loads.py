"""What is done to the subjects: runs of fio, and what they say.

Latencies are total ones (lat, not clat): a copy that is made while a write is submitted counts.
"""

import json

from rigs import MIB, run, sectors_of


def fio_command(name, **options):
    """The command line of fio with one or more jobs; `options` are fio's, `jobs` a list of more of them, each for a job."""
    jobs = options.pop("jobs", [{}])
    common = {
        "ioengine": "libaio", "direct": 1, "allow_mounted_write": 1, "lat_percentiles": 1, "clat_percentiles": 0,
        "percentile_list": "50:99:99.9", "group_reporting": 1, "norandommap": 0,
    }
    common.update(options)
    args = ["fio", "--output-format=json", "--eta=never"] + [f"--{key}={value}" for key, value in common.items()]
    for i, job in enumerate(jobs):
        args += [f"--name={name}{i}", "--new_group"] + [f"--{key}={value}" for key, value in job.items()]
    return args


def answer(text):
    """The jobs of fio's answer (before it is a line where it was ended by a signal)."""
    jobs = json.loads(text[text.index("{") :])["jobs"]
    for job in jobs:
        if job["error"] or job["read"]["total_ios"] + job["write"]["total_ios"] == 0:
            raise RuntimeError(f"fio did nothing: error {job['error']}: {text}")
    return jobs


def fio(name, target, **options):
    """Runs fio on a device, as `fio_command`; returns its answer's jobs, one for each of `jobs`."""
    return answer(run(*fio_command(name, filename=target, **options)))


class Load:
    """Writes of one shape, twice the same: the first are first writes where there is a snapshot."""

    def __init__(self, name, text, mode, block, depth, mib=None, jobs=1):
        self.name, self.text, self.mode, self.block, self.depth, self.mib, self.jobs = name, text, mode, block, depth, mib, jobs
        # What of a pass is told: its rate, or how long one write takes.
        self.by_latency = depth == 1

    def measure(self, target, seed):
        """One pass: bytes a second, bytes, and the percentiles of the latency in ns."""
        size = sectors_of(target) * 512
        todo = min(size, (self.mib or size // MIB) * MIB)
        options = {"rw": self.mode, "bs": self.block, "iodepth": self.depth, "randseed": seed, "numjobs": self.jobs}
        if self.jobs == 1:
            options.update(size=size, io_size=todo)
        else:
            # Each job has its own part.
            part = size // self.jobs // MIB * MIB
            options.update(size=part, offset_increment=part, io_size=todo // self.jobs // 4096 * 4096)
        job = fio(self.name, target, **options)[0]["write"]
        latency = job["lat_ns"]
        return {
            "rate": job["io_bytes"] / (job["runtime"] / 1000), "bytes": job["io_bytes"], "iops": job["iops"],
            "p50": latency["percentile"]["50.000000"], "p99": latency["percentile"]["99.000000"],
        }


SEQUENTIAL = Load("seq", "sequential, 256K, depth 8", "write", "256k", 8, 256)
RANDOM = Load("rand", "random, 4K, depth 32", "randwrite", "4k", 32, 64)
SINGLE = Load("single", "random, 4K, one at a time", "randwrite", "4k", 1, 8)


def pattern(seconds, rate=None):
    """fio's options for random 4K writes for so long, at most `rate` a second."""
    options = {"rw": "randwrite", "bs": "4k", "iodepth": 8, "time_based": 1, "runtime": seconds}
    if rate:
        options["rate_iops"] = rate
    return options
