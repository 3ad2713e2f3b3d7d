"""Scatter and training charts: round ticks, numbered points inside the plot, valid XML."""

import math
import re
from xml.etree import ElementTree

import pytest
import torch

from eval.report.axes import Axis, round_step, tick_text
from eval.report.formats import significant
from eval.report.html import NARROW, page
from eval.report.scatter import pareto, scatter, series_of
from eval.report.templating import render
from eval.report.training_charts import training_charts
from teachers.media import ANY_IMAGE
from tests.eval.report.example import UNSAFE, crowded_rows

LETTER = 6.6  # width of a character at the charts' font size, a generous estimate


def draw(chart, template: str = "scatter.svg") -> ElementTree.Element:
    return ElementTree.fromstring(render(template, chart=chart, medium=ANY_IMAGE))


def elements(drawing: ElementTree.Element, **attributes: str) -> list[ElementTree.Element]:
    return [e for e in drawing.iter() if all(e.get(key.strip("_")) == value for key, value in attributes.items())]


def circles(drawing: ElementTree.Element) -> list[ElementTree.Element]:
    return [e for e in drawing.iter() if e.tag.endswith("circle")]


@pytest.mark.parametrize(("width", "height"), [(760, 430), NARROW])
def test_scatter_has_a_point_for_every_row(report, width, height):
    points = circles(draw(scatter(report["rows"], width, height)))
    assert len(points) == len(report["rows"])
    for point in points:
        assert 0 < float(point.get("cx")) < width
        assert 0 < float(point.get("cy")) < height
    # A larger distance is higher up, a longer latency further right.
    assert float(points[1].get("cy")) < float(points[2].get("cy"))
    assert float(points[0].get("cx")) > float(points[1].get("cx"))


@pytest.mark.parametrize("distances", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 300.0]])
def test_scatter_of_equal_or_zero_values(report, distances):
    for entry, distance in zip(report["rows"], distances, strict=True):
        entry["frechet_distance"], entry["latency_ms"] = distance, 5.0
    svg = render("scatter.svg", chart=scatter(report["rows"]), medium=ANY_IMAGE)
    assert "nan" not in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("count", [6, 12, 20])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("width", "height"), [(760, 430), NARROW])
def test_points_are_numbered_in_the_order_of_the_rows_and_inside_the_plot(count, seed, width, height):
    chart = scatter(crowded_rows(count, seed), width, height)
    drawing = draw(chart)
    assert [e.text for e in elements(drawing, class_="number")] == [str(i + 1) for i in range(count)]
    for point in circles(drawing):
        x, y, radius = (float(point.get(key)) for key in ("cx", "cy", "r"))
        assert chart.left <= x - radius
        assert x + radius <= chart.right
        assert chart.top <= y - radius
        assert y + radius <= chart.bottom


def test_list_next_to_the_chart_has_name_and_values_of_every_number(report):
    report["rows"] = crowded_rows(14, 0)
    html = page(report, [torch.rand(1, 3, 8, 8)] * 14)
    (key,) = re.findall(r'<ol class="key">.*?</ol>', html, re.DOTALL)
    entries = re.findall(r"<li><b[^>]*>(\d+)</b><span>([^<]*)</span><small>([^<]*) ms, ([^<]*)</small>", key)
    assert entries == [
        (str(i), row["name"], significant(row["latency_ms"]), significant(row["frechet_distance"]))
        for i, row in enumerate(report["rows"], start=1)
    ]


@pytest.mark.parametrize(("width", "height"), [(760, 430), NARROW])
@pytest.mark.parametrize("seed", range(3))
def test_texts_of_the_chart_are_not_cut(width, height, seed):
    drawing = draw(scatter(crowded_rows(12, seed), width, height))
    for text in (e for e in drawing.iter() if e.tag.endswith("text")):
        x, y, extent = float(text.get("x")), float(text.get("y")), LETTER * len(text.text)
        left = x - extent * {"end": 1, "middle": 0.5}[text.get("text-anchor")]
        assert left >= 0
        assert left + extent <= width
        assert 12 <= y <= height - 3


@pytest.mark.parametrize("values", [[0.3, 0.31], [7.1, 9.3], [15.0, 903.0], [1e-4, 2e5], [5.0, 5.0], [10.0, 100.0]])
def test_log_axis_begins_and_ends_at_round_values(values):
    axis = Axis(values, 0, 100, log=True)
    ticks = axis.ticks()
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert 3 <= len(ticks) <= 11
    positions = [tick.position for tick in ticks]
    assert positions == sorted(positions)
    assert all(len(tick.text.replace(",", "").replace(".", "").strip("0")) <= 2 for tick in ticks), "round values"
    assert axis(math.sqrt(axis.low * axis.high)) == pytest.approx(50)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.7, 2.1], ["0", "0.5", "1", "1.5", "2", "2.5"]),
        ([0.0, 0.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([-3.0, 4.0], ["-4", "-2", "0", "2", "4"]),
        ([12_000.0], ["0", "5,000", "10,000", "15,000"]),
        ([0.3], ["0", "0.1", "0.2", "0.3"]),
    ],
)
def test_linear_axis_includes_zero_and_ends_at_a_tick(values, texts):
    ticks = Axis(values, 10, 20).ticks()
    assert [tick.text for tick in ticks] == texts
    assert (ticks[0].position, ticks[-1].position) == pytest.approx((10, 20))


def test_round_steps_and_tick_texts():
    assert [round_step(extent) for extent in (1.0, 4.9, 5.0, 5.1, 26.0, 0.003)] == [0.2, 1.0, 1.0, 2.0, 10.0, 0.001]
    assert [tick_text(v) for v in (0.3, 1.0, 1.5, 20.0, 12_000.0)] == ["0.3", "1", "1.5", "20", "12,000"]


def test_teacher_has_the_first_colour_series_and_students_share_the_others():
    rows = [{"method": m} for m in ("teacher", "dmd", "scm", *"abcdefg")]
    series = series_of(rows)
    assert (series["teacher"], series["dmd"], series["scm"]) == (0, 1, 2)
    assert max(series.values()) == 5
    assert list(series.values()).count(0) == 1


def test_pareto_front():
    assert pareto([1, 2, 3, 2], [5, 3, 4, 6]) == [0, 1]
    assert pareto([2, 1, 3], [1, 1, 0.5]) == [1, 2], "of two with equal quality, the faster"
    assert pareto([1.0], [1.0]) == [0]


def test_training_charts_have_one_curve_per_run_and_a_time_axis(report):
    held_out, tangent = training_charts(report["curves"], {"dmd": 1, "scm": 2})
    assert (held_out.title, held_out.unit, held_out.log_y) == ("Held-out Frechet distance", "min", True)
    assert [tick.text for tick in held_out.x_ticks] == ["0", "0.5", "1", "1.5", "2", "2.5"]
    assert [curve.legend for curve in held_out.curves] == [f"{UNSAFE}, final value 0.778"]
    assert (tangent.unit, tangent.log_y) == ("s", False)
    for chart in (held_out, tangent):
        drawing = draw(chart, "training_chart.svg")
        assert len([e for e in drawing.iter() if e.tag.endswith("polyline")]) == 1
    assert training_charts([], {}) == []


def test_curves_of_one_method_have_different_dashes():
    curves = [
        {"figure": "loss", "run": run, "method": "dmd", "seconds": [0.0, 5.0], "values": [2.0, 1.0]} for run in "ab"
    ]
    (chart,) = training_charts(curves, {"dmd": 1})
    assert [curve.dash for curve in chart.curves] == ["none", "6 4"]
