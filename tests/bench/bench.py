#!/usr/bin/env python3
"""The benchmark, in the VM: measures, and writes its part of the report into a directory: Markdown, and plots as SVG.

bench.py DIRECTORY counted|timed EXPERIMENT...; ROUNDS= rounds of each.
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from experiments import COUNTED, TIMED
from report import Report


def main():
    """Runs the experiments that are named."""
    directory, kind, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    experiments = COUNTED if kind == "counted" else TIMED
    report = Report(f"{directory}/{kind}.md", int(os.environ["ROUNDS"]), passes=1 if kind == "counted" else 3)
    for name in names:
        began = time.monotonic()
        report.say(name)
        experiments[name](report)
        report.say(f"{name}: {time.monotonic() - began:.0f} s")
        report.write()


if __name__ == "__main__":
    main()
