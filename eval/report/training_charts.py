"""Training curves against seconds of training, one small chart a figure, as inline SVG."""

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.report.formats import duration, significant
from eval.report.scatter import COLOURS, Axis, tick

WIDTH, HEIGHT = 420, 250
DASHES = ("", "6 4", "2 4")  # for several curves of one method


def charts(curves: list[dict[str, Any]], colours: Mapping[str, int]) -> str:
    """The section of the page; nothing where no run left curves."""
    if not curves:
        return ""
    figures = dict.fromkeys(curve["figure"] for curve in curves)
    panels = [_panel(figure, [c for c in curves if c["figure"] == figure], colours) for figure in figures]
    return (
        "<section><h2>Training against cost</h2><p>What the runs logged over seconds of training. "
        "The held-out distance is to the teacher's samples, from noise and prompts kept aside.</p>"
        f'<div class="charts">{"".join(panels)}</div></section>'
    )


def _panel(figure: str, curves: list[dict[str, Any]], colours: Mapping[str, int]) -> str:
    values = [v for c in curves for v in c["values"]]
    seconds = [s for c in curves for s in c["seconds"]]
    steep = min(values) > 0 and max(values) / min(values) > 12
    x_axis = Axis([0.0, max(seconds)], 46, WIDTH - 12, logarithmic=False)
    y_axis = Axis(values, HEIGHT - 34, 12, logarithmic=steep)
    parts = []
    for value in y_axis.ticks():
        at = y_axis(value)
        parts.append(f'<line class="grid" x1="46" x2="{WIDTH - 12}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="40" y="{at + 4:.1f}" text-anchor="end">{tick(value)}</text>')
    for value in x_axis.ticks():
        at, told = x_axis(value), duration(value) if value else "0"
        parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{told}</text>')
    drawn: dict[str, int] = {}
    legend = []
    for curve in curves:
        series = colours.get(curve["method"], 0)
        dash = DASHES[drawn.get(curve["method"], 0) % len(DASHES)]
        drawn[curve["method"]] = drawn.get(curve["method"], 0) + 1
        points = " ".join(
            f"{x_axis(s):.1f},{y_axis(v):.1f}" for s, v in zip(curve["seconds"], curve["values"], strict=True)
        )
        style = f"stroke:var(--series-{series},{COLOURS[series]});stroke-dasharray:{dash or 'none'}"
        parts.append(f'<polyline fill="none" stroke-width="2" points="{points}" style="{style}"/>')
        line = f'<line x1="0" x2="22" y1="4" y2="4" stroke-width="2" style="{style}"/>'
        sample = f'<svg width="22" height="8" aria-hidden="true">{line}</svg>'
        told = f"{escape(curve['run'])}, ends at {significant(curve['values'][-1])}"
        legend.append(f'<span class="curve">{sample} {told}</span>')
    scale = ", log scale" if steep else ""
    return (
        f'<div class="panel"><h3>{escape(figure)}{scale}</h3><svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-size="12" role="img" aria-label="{escape(figure)} over seconds of training">{"".join(parts)}</svg>'
        f'<div class="legend">{"".join(legend)}</div></div>'
    )
