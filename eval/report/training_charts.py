"""Training curves over training time: the values of one small chart for each logged quantity.

`templates/training_chart.svg` draws a chart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.report.axes import Axis, Tick, use_log
from eval.report.formats import significant

WIDTH, HEIGHT = 420, 250  # of a drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 408, 12, 206  # edges of the plot
DASHES = ("none", "6 4", "2 4")  # for several curves of one method
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class Curve:
    """One curve: its points as SVG writes them, its style, and its text in the legend."""

    points: str
    series: int
    dash: str
    legend: str


@dataclass(frozen=True)
class TrainingChart:
    """The values of one drawing, in its own units; y points down."""

    title: str
    log_y: bool
    unit: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM


def training_charts(curves: list[dict[str, Any]], series: Mapping[str, int]) -> list[TrainingChart]:
    """One chart for each quantity in `curves`; empty if the runs have no training logs.

    Args:
        curves: The `curves` of report.json.
        series: The colour series of each method.
    """
    titles = dict.fromkeys(curve["figure"] for curve in curves)
    return [_chart(title, [c for c in curves if c["figure"] == title], series) for title in titles]


def _chart(title: str, curves: list[dict[str, Any]], series: Mapping[str, int]) -> TrainingChart:
    values = [value for curve in curves for value in curve["values"]]
    longest = max(seconds for curve in curves for seconds in curve["seconds"])
    unit, unit_seconds = next(((u, s) for u, s in UNITS if longest >= 2 * s), UNITS[-1])
    x_axis = Axis([longest / unit_seconds], LEFT, RIGHT)
    y_axis = Axis(values, BOTTOM, TOP, log=use_log(values))
    drawn: list[Curve] = []
    for curve in curves:
        points = " ".join(
            f"{x_axis(seconds / unit_seconds):.1f},{y_axis(value):.1f}"
            for seconds, value in zip(curve["seconds"], curve["values"], strict=True)
        )
        colour = series.get(curve["method"], 0)
        dash = DASHES[sum(other.series == colour for other in drawn) % len(DASHES)]
        drawn.append(Curve(points, colour, dash, f"{curve['run']}, final value {significant(curve['values'][-1])}"))
    return TrainingChart(title, y_axis.log, unit, x_axis.ticks(), y_axis.ticks(), drawn)
