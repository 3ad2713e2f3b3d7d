"""Frechet distance against latency: the values of a scatter chart with numbered points.

`templates/scatter.svg` draws it. The numbers are explained in a list next to the chart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.axes import Axis, Tick, use_log
from eval.report.formats import significant

SERIES_COLOURS = 6  # report.css defines --series-0 to --series-5
RADIUS, SMALL_RADIUS = 9, 7  # of a point, with room for a number of two digits
MANY_ROWS = 10  # more rows than this have small points, which overlap less
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 12, 52  # margins around the plot, in units of the drawing


@dataclass(frozen=True)
class Point:
    """A numbered point of the chart; `values` is its latency and distance as text."""

    number: int
    x: float
    y: float
    series: int
    name: str
    values: str


@dataclass(frozen=True)
class Line:
    """A polyline: `points` as SVG writes them, and its colour series."""

    points: str
    series: int


@dataclass(frozen=True)
class Scatter:
    """The values of one drawing, in its own units; y points down.

    Attributes:
        width, height: Size of the drawing.
        left, right, top, bottom: Edges of the plot inside it.
        radius: Radius of the points.
        log_y: Whether the y axis is logarithmic; the x axis always is.
        points: One for each row, numbered from 1.
        paths: Lines between the rows of one pipeline.
        front: The Pareto front, as the points of a polyline.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    radius: int
    log_y: bool
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    paths: list[Line]
    front: str


def series_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The colour series of each method: 0 for the teacher, the others in order of appearance."""
    methods = dict.fromkeys(["teacher", *(row["method"] for row in rows)])
    students = SERIES_COLOURS - 1
    return {method: i if i <= students else 1 + (i - 1) % students for i, method in enumerate(methods)}


def scatter(rows: Sequence[dict[str, Any]], width: int = 760, height: int = 430) -> Scatter:
    """The chart of `rows`: latency in ms (x, logarithmic) and Frechet distance (y).

    Args:
        rows: The rows of report.json.
        width: Width of the drawing in its own units; text is 12 units high.
        height: Height of the drawing.
    """
    left, right, top, bottom = LEFT, width - RIGHT, TOP, height - BOTTOM
    latencies, distances = [row["latency_ms"] for row in rows], [row["frechet_distance"] for row in rows]
    log_y = use_log(distances)
    radius = RADIUS if len(rows) <= MANY_ROWS else SMALL_RADIUS
    x_axis = Axis(latencies, left + radius + 2, right - radius - 2, log=True)
    y_axis = Axis(distances, bottom - radius - 2, top + radius + 2, log=log_y)
    series = series_of(rows)
    points = [
        Point(
            number,
            round(x_axis(row["latency_ms"]), 1),
            round(y_axis(row["frechet_distance"]), 1),
            series[row["method"]],
            row["name"],
            f"{significant(row['latency_ms'])} ms, {significant(row['frechet_distance'])}",
        )
        for number, row in enumerate(rows, start=1)
    ]
    return Scatter(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        radius=radius,
        log_y=log_y,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        points=points,
        paths=[Line(_polyline(points, group), points[group[0]].series) for group in _groups(rows)],
        front=_polyline(points, pareto(latencies, distances)),
    )


def pareto(xs: Sequence[float], ys: Sequence[float]) -> list[int]:
    """Indices of the points on the Pareto front, from left to right; smaller is better in both coordinates."""
    front: list[int] = []
    for i in sorted(range(len(xs)), key=lambda i: (xs[i], ys[i])):
        if not front or ys[i] < ys[front[-1]]:
            front.append(i)
    return front


def _groups(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices of the rows that one line connects: one pipeline with one solver, different numbers of steps."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row["pipeline"], row["method"], row.get("solver")), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _polyline(points: Sequence[Point], indices: Sequence[int]) -> str:
    return " ".join(f"{points[i].x},{points[i].y}" for i in indices)
