"""The report's charts, drawn by matplotlib: Frechet distance against latency, and training curves.

Each function returns a matplotlib figure; `eval.report.svg` writes it as a file or for the page. matplotlib is imported
when a chart is drawn.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.config.names import METHOD_TITLES
from eval.report.columns import words
from eval.report.series import DASHES, LIGHT, MARKERS, series_of
from eval.report.svg import LINE, PAPER, SOFT, style
from teachers.support.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = (9.2, 5.2), (4.4, 5.0)  # inches of 72 pixels, for desktops and phones
CURVES = (5.0, 3.2)
LOG_RATIO = 12  # a largest value more than this many times the smallest gets a logarithmic axis
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
LEGEND_LENGTH, LABEL_LENGTH = 40, 44  # characters of a name in a legend, and of a line of an axis label


def quality_latency(report: Mapping[str, Any], size: tuple[float, float] = WIDE) -> "Figure":
    """Frechet distance against latency, with error bars and the Pareto front.

    Points are numbered from 1 in the order of the rows. Vertical bars are 95% confidence intervals, horizontal bars the
    5th to 95th percentile of the latency. Everything on or above the Pareto line is dominated by, or is, a row on it.

    Args:
        report: The contents of report.json.
        size: Width and height in inches of 72 pixels.
    """
    with style():
        return _scatter(report, size)


def _scatter(report: Mapping[str, Any], size: tuple[float, float]) -> "Figure":
    rows, series = report["rows"], series_of(report["rows"])
    figure, axes = _axes(size)
    xs, ys = [row["latency_ms"] for row in rows], [row["frechet_distance"] for row in rows]
    spans = [row.get("frechet_interval") or (y, y) for row, y in zip(rows, ys, strict=True)]
    log_y = use_log(ys)
    axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
        spans = [(max(low, min(ys) / 3), high) for low, high in spans]
    for group in _groups(rows):
        axes.plot(
            *zip(*[(xs[i], ys[i]) for i in group], strict=True), "--", color=_colour(rows[group[0]], series), lw=1
        )
    for i, row in enumerate(rows):
        _point(axes, i + 1, row, spans[i], series, small=len(rows) > 10)
    _limits(axes, xs, ys, spans, rows, log_y)
    _front(axes, xs, ys)
    axes.set_xlabel(f"Latency per {words(dict(report))['noun']} in ms, log scale")
    heading = shorten(report["frechet_column"], 80) + (", log scale" if log_y else "")
    axes.set_ylabel("\n".join(textwrap.wrap(heading, LABEL_LENGTH)))
    methods = {row["method"] for row in rows}
    legend = [
        _marker(shorten(METHOD_TITLES.get(method, method), LEGEND_LENGTH), LIGHT[number], MARKERS[number])
        for method, number in series.items()
        if method in methods
    ]
    legend.append(_line("Pareto front", SOFT))
    axes.legend(handles=legend, loc="lower left", bbox_to_anchor=(0, 1), ncols=4 if size[0] > 6 else 2, frameon=False)
    return figure


def _point(
    axes: "Axes", number: int, row: Mapping[str, Any], span: Sequence[float], series: Mapping[str, int], small: bool
) -> None:
    """Draw a row as a numbered marker, with the interval `span` of its distance and the spread of its latency."""
    x, y, colour = row["latency_ms"], row["frechet_distance"], _colour(row, series)
    axes.errorbar(
        x,
        y,
        yerr=[[max(0.0, y - span[0])], [max(0.0, span[1] - y)]],
        xerr=[[max(0.0, x - row["latency_ms_p5"])], [max(0.0, row["latency_ms_p95"] - x)]],
        color=colour,
        elinewidth=1.4,
        capsize=3,
        fmt="none",
    )
    axes.plot(
        x,
        y,
        MARKERS[series[row["method"]]],
        color=colour,
        ms=13 if small else 17,
        mec=PAPER,
        mew=1.5,
        gid=f"point-{number}",
        zorder=4,
    )
    axes.annotate(
        str(number), (x, y), color=PAPER, size=8 if small else 10, weight="bold", ha="center",
        va="center_baseline", zorder=5,
    )  # fmt: skip


def training_curves(report: Mapping[str, Any]) -> list["Figure"]:
    """One chart over training time for each quantity that the runs logged; none without training logs."""
    curves, series = report.get("curves") or [], series_of(report["rows"])
    titles = dict.fromkeys(curve["figure"] for curve in curves)
    with style():
        return [_training_chart(title, [c for c in curves if c["figure"] == title], series) for title in titles]


def _training_chart(title: str, curves: Sequence[Mapping[str, Any]], series: Mapping[str, int]) -> "Figure":
    figure, axes = _axes(CURVES)
    longest = max(seconds for curve in curves for seconds in curve["seconds"])
    unit, length = next(((u, s) for u, s in UNITS if longest >= 2 * s), UNITS[-1])
    drawn: list[int] = []
    for curve in curves:
        number = series.get(curve["method"], 0)
        dash = DASHES[drawn.count(number) % len(DASHES)]
        drawn.append(number)
        seconds = [value / length for value in curve["seconds"]]
        axes.plot(
            seconds, curve["values"], color=LIGHT[number], ls=dash, lw=2, label=shorten(curve["run"], LEGEND_LENGTH)
        )
    values = [value for curve in curves for value in curve["values"]]
    if use_log(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(min(0.0, *values), None if max(values) > 0 else 1.0)
    axes.set_xlim(0, None)
    _round_ticks(axes)
    axes.set_xlabel(f"Training time ({unit})")
    axes.set_ylabel(title + (", log scale" if use_log(values) else ""))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def use_log(values: Sequence[float]) -> bool:
    """Whether `values` are positive and spread enough for a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def pareto(xs: Sequence[float], ys: Sequence[float]) -> list[int]:
    """Indices of the points on the Pareto front, from left to right; smaller is better in both coordinates."""
    front: list[int] = []
    for i in sorted(range(len(xs)), key=lambda i: (xs[i], ys[i])):
        if not front or ys[i] < ys[front[-1]]:
            front.append(i)
    return front


def tick_text(value: float, _: object = None) -> str:
    """A tick's value without exponents."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _axes(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=72, layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(color=LINE, lw=1)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, colors=SOFT)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    return figure, axes


def _limits(
    axes: "Axes",
    xs: Sequence[float],
    ys: Sequence[float],
    spans: Sequence[Sequence[float]],
    rows: Sequence[Mapping[str, Any]],
    log_y: bool,
) -> None:
    """Set limits that contain all points and bars with a margin, and ticks at round values."""
    low, high = min(*xs, *(r["latency_ms_p5"] for r in rows)), max(*xs, *(r["latency_ms_p95"] for r in rows))
    margin = max((high / low) ** 0.06, 1.12)
    axes.set_xlim(low / margin, high * margin)
    bottom, top = min(*ys, *(s[0] for s in spans)), max(*ys, *(s[1] for s in spans))
    if log_y:
        margin = (top / bottom) ** 0.07
        axes.set_ylim(bottom / margin, top * margin)
    else:
        extent = (top - min(0.0, bottom)) or 1.0
        axes.set_ylim(min(0.0, bottom) - 0.05 * extent, top + 0.08 * extent)
    _round_ticks(axes)


def _round_ticks(axes: "Axes") -> None:
    """Ticks at 1, 2 and 5 times powers of ten on both axes."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log":
            axis.set_major_locator(FixedLocator(log_ticks(low, high)))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(tick_text))


def log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round values from `low` to `high` for a logarithmic axis, at most about `most`.

    They are 1, 2 and 5 times powers of ten, only powers on a long axis, or multiples of one step on a short axis.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1,)):
        values = [float(f"{multiple}e{decade}") for decade in decades for multiple in multiples]
        values = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(values) <= most:
            break
    if len(values) >= 3:
        return values
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * 5 >= high - low)
    return [round(step * i, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _front(axes: "Axes", xs: Sequence[float], ys: Sequence[float]) -> None:
    """The Pareto front as steps from the upper to the right edge: also one row alone has a line."""
    found = pareto(xs, ys)
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    axes.plot(
        [*(xs[i] for i in found), right],
        [*(ys[i] for i in found), ys[found[-1]]],
        color=SOFT, lw=6, alpha=0.28, drawstyle="steps-post", zorder=1, gid="front", solid_capstyle="butt",
    )  # fmt: skip
    axes.plot([xs[found[0]]] * 2, [ys[found[0]], top], color=SOFT, lw=6, alpha=0.28, zorder=1, solid_capstyle="butt")


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of the rows that one line connects: one pipeline with one solver, different numbers of steps."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row["pipeline"], row["method"], row.get("solver")), []).append(i)
    return [sorted(group, key=lambda i: rows[i]["latency_ms"]) for group in groups.values() if len(group) > 1]


def _colour(row: Mapping[str, Any], series: Mapping[str, int]) -> str:
    return LIGHT[series[row["method"]]]


def _marker(label: str, colour: str, marker: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, ls="", ms=8, mec=PAPER, label=label)


def _line(label: str, colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, lw=6, alpha=0.28, label=label)
