"""Quality against latency as an inline SVG, drawn by hand so that the page needs no library.

Colours are CSS variables (`--series-0`, ...) that the page sets for light and dark; each has a fallback, so the drawing
also stands alone.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from eval.report.formats import significant
from eval.report.labels import LETTER, RADIUS, Box, labelled

COLOURS = ("#64748b", "#2563eb", "#d9480f", "#0d9488", "#9333ea", "#be123c")
NAMED = {"wide": 12, "narrow": 6}  # up to how many points carry their names; beyond, numbers and a key below


def series_of(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Which colour each method has: the teacher the first, the others in order of appearance."""
    methods = dict.fromkeys(["teacher", *(row["method"] for row in rows)])
    return {method: i if i < len(COLOURS) else 1 + (i - 1) % (len(COLOURS) - 1) for i, method in enumerate(methods)}


def charts(rows: Sequence[dict[str, Any]], y_title: str) -> str:
    """The drawing for a screen and for a phone, each with its key where its points are numbered."""
    short = y_title if len(y_title) < 42 else "Frechet distance"
    drawings = {
        "wide": _drawn(rows, y_title, 940, 430, NAMED["wide"]),
        "narrow": _drawn(rows, short, 360, 400, NAMED["narrow"]),
    }
    return "".join(
        f'<div class="{shape}">{drawing}{_key(rows) if numbered else ""}</div>'
        for shape, (drawing, numbered) in drawings.items()
    )


def _key(rows: Sequence[dict[str, Any]]) -> str:
    colours = series_of(rows)
    entries = (
        f'<li><b style="color:{_colour(colours[row["method"]])}">{number}</b><span>{escape(row["name"])}</span></li>'
        for number, row in enumerate(rows, start=1)
    )
    return f'<ol class="key">{"".join(entries)}</ol>'


def scatter(rows: Sequence[dict[str, Any]], y_title: str, width: int = 860, height: int = 430, named: int = 12) -> str:
    """An SVG of every row's Frechet distance (y; logarithmic where it spans much) over its latency (x, logarithmic).

    More than `named` points, or points too close together for names, are numbered in the rows' order, from 1.
    """
    return _drawn(rows, y_title, width, height, named)[0]


def _drawn(rows: Sequence[dict[str, Any]], y_title: str, width: int, height: int, named: int) -> tuple[str, bool]:
    """The drawing, and whether its points are numbered."""
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
    told = ("log scale, " if steep else "") + "lower is better"
    one_line = LETTER * len(f"{y_title}, {told}") < width - 24
    for y, text in [(20, f"{y_title}, {told}")] if one_line else [(14, y_title), (30, told)]:
        parts.append(f'<text class="axis" x="12" y="{y}">{escape(text)}</text>')

    points = [(x_axis(x), y_axis(y)) for x, y in zip(xs, ys, strict=True)]
    for line in _lines(rows):
        path = " ".join(f"{points[i][0]:.1f},{points[i][1]:.1f}" for i in line)
        parts.append(
            f'<polyline class="path" points="{path}" style="stroke:{_colour(colours[rows[line[0]]["method"]])}"/>'
        )
    front = " ".join(f"{points[i][0]:.1f},{points[i][1]:.1f}" for i in pareto(xs, ys))
    parts.append(f'<polyline class="front" points="{front}"/>')
    labels, boxes = labelled(rows, points, plot, named)
    for row, point, label, box in zip(rows, points, labels, boxes, strict=True):
        parts.append(_point(row, point, label, box, _colour(colours[row["method"]])))
    drawing = (
        f'<svg class="scatter" viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'font-size="12" aria-label="{escape(y_title)} against latency">{"".join(parts)}</svg>'
    )
    return drawing, labels[0] == "1"


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
    """A round value as an axis shows it."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


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
