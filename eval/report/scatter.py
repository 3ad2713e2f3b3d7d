"""Quality against latency as an inline SVG, drawn by hand so that the page needs no library.

Colours are CSS variables (`--series-0`, ...) that the page sets for light and dark; each has a fallback, so the drawing
also stands alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from eval.report.columns import significant

COLOURS = ("#64748b", "#2563eb", "#d9480f", "#0d9488", "#9333ea", "#be123c")
LETTER = 6.6  # width of a letter in units of the drawing at the labels' size, taken generously
LINE = 14.0
RADIUS = 5.5


@dataclass(frozen=True)
class Box:
    """An upright rectangle in the drawing's units; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def series_of(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Which colour each method has: the teacher the first, the others in order of appearance."""
    methods = dict.fromkeys(["teacher", *(row["method"] for row in rows)])
    return {method: i if i < len(COLOURS) else 1 + (i - 1) % (len(COLOURS) - 1) for i, method in enumerate(methods)}


def label_of(row: dict[str, Any], most: int = 26) -> str:
    """A point's label; the solver goes without saying, since it is in the table."""
    text = row["name"].replace(f", {row['solver']}", "") if row.get("solver") else row["name"]
    return text if len(text) <= most else text[: most - 1] + "…"


def place_labels(points: Sequence[tuple[float, float]], labels: Sequence[str], within: Box) -> list[Box]:
    """Where each label goes: near its point, inside `within`, over no point and no other label wherever that can be."""
    taken = [Box(x - RADIUS - 1, y - RADIUS - 1, x + RADIUS + 1, y + RADIUS + 1) for x, y in points]
    placed: list[Box] = []
    for (x, y), label in zip(points, labels, strict=True):
        width = LETTER * len(label)
        best, least = None, math.inf
        for box in _candidates(x, y, width):
            spill = (box.right - box.left) * LINE - box.overlap(within)
            cost = 4 * spill + sum(box.overlap(other) for other in taken + placed)
            if cost < least - 1e-9:
                best, least = box, cost
            if cost <= 1e-9:
                break
        assert best is not None
        placed.append(best)
    return placed


def _candidates(x: float, y: float, width: float):
    """Places for a label round a point, the nearest and most usual first."""
    for distance in (10, 18, 28, 40, 54, 70, 88, 108):
        for across, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            middle_x = x + across * (distance + width / 2) if down == 0 else x + across * (width / 2 + distance / 2)
            middle_y = y + down * (distance + LINE / 2 - 4)
            yield Box(middle_x - width / 2, middle_y - LINE / 2, middle_x + width / 2, middle_y + LINE / 2)


def scatter(rows: Sequence[dict[str, Any]], y_title: str, width: int = 860, height: int = 430) -> str:
    """An SVG of every row's Frechet distance (y; logarithmic where it spans much) over its latency (x, logarithmic)."""
    plot = Box(58, 40, width - 18, height - 52)
    xs, ys = [row["latency_ms"] for row in rows], [row["frechet_distance"] for row in rows]
    steep = min(ys) > 0 and max(ys) / min(ys) > 12
    x_axis = Axis(xs, plot.left + 14, plot.right - 14, logarithmic=True)
    y_axis = Axis(ys, plot.bottom - 26, plot.top + 12, logarithmic=steep)
    colours, parts = series_of(rows), []
    for value in y_axis.ticks():
        at = y_axis(value)
        parts.append(f'<line class="grid" x1="{plot.left:.1f}" x2="{plot.right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{plot.left - 8:.1f}" y="{at + 4:.1f}" text-anchor="end">{tick(value)}</text>'
        )
    for value in x_axis.ticks():
        at = x_axis(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{plot.top:.1f}" y2="{plot.bottom:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{plot.bottom + 17:.1f}" text-anchor="middle">{tick(value)}</text>'
        )
    middle = (plot.left + plot.right) / 2
    parts.append(
        f'<text class="axis" x="{middle:.1f}" y="{height - 12}" text-anchor="middle">'
        "Latency of one image in ms, log scale</text>"
    )
    scale = ", log scale" if steep else ""
    parts.append(f'<text class="axis" x="{plot.left - 46:.1f}" y="20">{escape(y_title)}{scale}, lower is better</text>')

    points = [(x_axis(x), y_axis(y)) for x, y in zip(xs, ys, strict=True)]
    for line in _lines(rows):
        path = " ".join(f"{points[i][0]:.1f},{points[i][1]:.1f}" for i in line)
        parts.append(
            f'<polyline class="path" points="{path}" style="stroke:{_colour(colours[rows[line[0]]["method"]])}"/>'
        )
    front = " ".join(f"{points[i][0]:.1f},{points[i][1]:.1f}" for i in pareto(xs, ys))
    parts.append(f'<polyline class="front" points="{front}"/>')
    labels = [label_of(row) for row in rows]
    for row, point, label, box in zip(rows, points, labels, place_labels(points, labels, plot), strict=True):
        parts.append(_point(row, point, label, box, _colour(colours[row["method"]])))
    return (
        f'<svg class="scatter" viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'font-size="12" aria-label="{escape(y_title)} against latency">{"".join(parts)}</svg>'
    )


def _point(row: dict[str, Any], point: tuple[float, float], label: str, box: Box, colour: str) -> str:
    x, y = point
    near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    leader = ""
    if math.hypot(near_x - x, near_y - y) > RADIUS + 9:
        leader = f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>'
    told = f"{row['name']}: {significant(row['latency_ms'])} ms, {significant(row['frechet_distance'])}"
    # Centred, so that a guess too generous for the letters' width leaves the same room on both sides.
    return (
        f'{leader}<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" style="fill:{colour}">'
        f"<title>{escape(told)}</title></circle>"
        f'<text class="label" x="{(box.left + box.right) / 2:.1f}" y="{box.bottom - 3:.1f}" text-anchor="middle">'
        f"{escape(label)}</text>"
    )


def pareto(xs: Sequence[float], ys: Sequence[float]) -> list[int]:
    """The points that no other beats in both, from left to right; smaller is better."""
    front: list[int] = []
    for i in sorted(range(len(xs)), key=lambda i: (xs[i], ys[i])):
        if not front or ys[i] < ys[front[-1]]:
            front.append(i)
    return front


def _lines(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Which points one line joins: the calls of one pipeline, sampled by one solver."""
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row["pipeline"], row["method"], row.get("solver")), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _colour(series: int) -> str:
    return f"var(--series-{series},{COLOURS[series]})"


def tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


class Axis:
    """Values -> places between `start` and `stop`, with room around the outermost values."""

    def __init__(self, values: Sequence[float], start: float, stop: float, logarithmic: bool) -> None:
        self.logarithmic, self.start, self.stop = logarithmic, start, stop
        low, high = min(values), max(values)
        if logarithmic:
            self.low, self.high = math.log10(low), math.log10(high)
            room = max(0.04 * (self.high - self.low), 0.05)
        else:
            self.low, self.high = 0.0, high
            room = 0.03 * (high or 1.0)
        self.low, self.high = self.low - room * (logarithmic or low < 0), self.high + room

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
            return [step * i for i in range(int(self.high / step) + 1)]
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for multiples in ((1,), (1, 3), (1, 2, 5)):
            found = [10.0**d * m for d in decades for m in multiples]
            found = [v for v in found if self.low <= math.log10(v) <= self.high]
            if len(found) >= 4:
                break
        return found
