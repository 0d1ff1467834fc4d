"""A part of the report: Markdown tables, and bars as SVG."""

import os
import statistics
import time
from html import escape

FIRST, LATER, TEXT = "#c8553d", "#588b8b", "#333"


class Spread:
    """Values of the same thing, one of each round."""

    def __init__(self, values):
        self.values = list(values)

    @property
    def median(self):
        """The one in the middle."""
        return statistics.median(self.values)

    def tell(self, form="{:.2f}"):
        """Median and spread, for a cell of a table."""
        return f"{form.format(self.median)} ({form.format(min(self.values))}–{form.format(max(self.values))})"


def bars(title, unit, rows):
    """An SVG of pairs of bars: rows of (name, first, later)."""
    height, left, width, line = 14, 230, 760, 40
    most = max([value for _, *values in rows for value in values] + [1.0])
    scale = (width - left - 60) / most
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{line * len(rows) + 60}" font-family="sans-serif" font-size="12" fill="{TEXT}">']
    out.append('<rect width="100%" height="100%" fill="white"/>')
    out.append(f'<text x="8" y="20" font-size="14">{escape(title)}</text>')
    out.append(f'<text x="8" y="38" fill="{FIRST}">first write</text><text x="90" y="38" fill="{LATER}">later write</text><text x="180" y="38">{escape(unit)}</text>')
    for i, (name, *values) in enumerate(rows):
        top = 52 + i * line
        out.append(f'<text x="{left - 8}" y="{top + 18}" text-anchor="end">{escape(name)}</text>')
        for value, colour in zip(values, (FIRST, LATER)):
            out.append(f'<rect x="{left}" y="{top}" width="{max(value * scale, 1):.1f}" height="{height}" fill="{colour}"/>')
            out.append(f'<text x="{left + value * scale + 5:.1f}" y="{top + 11}">{value:.2f}</text>')
            top += height + 2
    out.append("</svg>\n")
    return "\n".join(out)


class Report:
    """Collects the sections of a part of the report, and writes them to `path`, and plots beside it."""

    def __init__(self, path, rounds, passes):
        self.path, self.rounds = path, rounds
        # How often later writes are measured after each first one.
        self.passes = passes
        self.parts = []
        self.began = time.monotonic()

    def say(self, text):
        """A line of progress."""
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)

    def section(self, title, text=""):
        """Begins a section."""
        self.parts.append(f"## {title}\n\n{text}\n" if text else f"## {title}\n")

    def table(self, head, rows):
        """A table: lists of cells."""
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
        self.parts.append("\n".join(lines) + "\n")
        for row in rows:
            self.say("  " + " | ".join(str(cell) for cell in row))

    def plot(self, name, title, unit, rows):
        """A plot, of rows as `bars` takes them."""
        with open(f"{os.path.dirname(self.path)}/{name}.svg", "w", encoding="utf-8") as file:
            file.write(bars(title, unit, rows))
        self.parts.append(f"![{title}]({name}.svg)\n")

    def write(self):
        """Writes all there is so far."""
        with open(self.path, "w", encoding="utf-8") as file:
            file.write("\n".join(self.parts))
