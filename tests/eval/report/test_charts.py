"""Charts: points, bars and lines inside the axes, round ticks, the Pareto front, valid and themed SVG."""

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from eval.report.charts import NARROW, WIDE, log_ticks, pareto, quality_latency, tick_text, training_curves
from eval.report.formats import significant
from eval.report.html import page
from eval.report.series import BACKGROUNDS, DARK, LIGHT, series_of
from eval.report.svg import as_file, as_inline
from tests.eval.report.accessibility import contrast, luminance
from tests.eval.report.example import UNSAFE, crowded_rows

SIZES = pytest.mark.parametrize("size", [WIDE, NARROW])


def artists(figure, prefix: str) -> list:
    return [artist for artist in figure.axes[0].lines if str(artist.get_gid()).startswith(prefix)]


def inside(axes, values) -> bool:
    left, bottom, right, top = axes.viewLim.extents
    return all(left <= x <= right and bottom <= y <= top for x, y in values)


@pytest.mark.slow
@SIZES
@pytest.mark.parametrize("count", [4, 12, 20])
def test_scatter_has_a_numbered_point_inside_the_plot_for_every_row(report, size, count):
    report["rows"] = crowded_rows(count, 0)
    figure = quality_latency(report, size)
    points = artists(figure, "point-")
    assert [point.get_gid() for point in points] == [f"point-{i}" for i in range(1, count + 1)]
    assert [text.get_text() for text in figure.axes[0].texts] == [str(i) for i in range(1, count + 1)]
    for point, row in zip(points, report["rows"], strict=True):
        assert point.get_xydata().tolist() == [[row["latency_ms"], row["frechet_distance"]]]
        assert inside(figure.axes[0], point.get_xydata())


@pytest.mark.slow
def test_error_bars_are_the_intervals_of_the_rows_and_inside_the_plot(report):
    figure = quality_latency(report)
    bars = [np.array(segment) for lines in figure.axes[0].collections for segment in lines.get_segments()]
    assert len(bars) == 2 * len(report["rows"])
    for row, (across, up) in zip(report["rows"], zip(bars[::2], bars[1::2], strict=True), strict=True):
        assert across[:, 0] == pytest.approx([row["latency_ms_p5"], row["latency_ms_p95"]])
        assert up[:, 1] == pytest.approx(row["frechet_interval"])
        assert inside(figure.axes[0], [*across, *up])


@pytest.mark.parametrize("distances", [[1.0] * 4, [0.0] * 4, [0.0, 1.0, 2.0, 300.0]])
@pytest.mark.slow
def test_scatter_of_equal_or_zero_values_and_without_intervals(report, distances):
    for entry, distance in zip(report["rows"], distances, strict=True):
        entry |= {"frechet_distance": distance, "frechet_interval": None, "latency_ms": 5.0}
        entry |= {"latency_ms_p5": 5.0, "latency_ms_p95": 5.0}
    svg = as_file(quality_latency(report))
    assert "nan" not in svg
    ElementTree.fromstring(svg)


@SIZES
@pytest.mark.slow
def test_pareto_line_is_drawn_even_if_one_row_is_best_in_both(report, size):
    for row in report["rows"][1:]:
        row |= {"frechet_distance": 9.0, "latency_ms": 900.0}
    figure = quality_latency(report, size)
    (front,) = artists(figure, "front")
    right = figure.axes[0].get_xlim()[1]
    assert front.get_xydata().tolist() == [[412.3, 2.93], [right, 2.93]]


@pytest.mark.slow
def test_list_next_to_the_chart_has_name_and_values_of_every_number(report):
    report["rows"] = crowded_rows(14, 0)
    html = page(report, [torch.rand(1, 3, 8, 8)] * 14)
    (key,) = re.findall(r'<ol class="key">.*?</ol>', html, re.DOTALL)
    entries = re.findall(r"<li><b[^>]*>(\d+)</b><span>([^<]*)</span><small>([^<]*) ms, ([^<]*)</small>", key)
    assert entries == [
        (str(i), row["name"], significant(row["latency_ms"]), significant(row["frechet_distance"]))
        for i, row in enumerate(report["rows"], start=1)
    ]


@pytest.mark.slow
@SIZES
@pytest.mark.parametrize("seed", range(2))
def test_texts_of_the_chart_are_not_cut(report, size, seed):
    report["rows"] = crowded_rows(12, seed)
    figure = quality_latency(report, size)
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    axes = figure.axes[0]
    texts = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    for text in [*texts, *axes.get_legend().get_texts()]:
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


@pytest.mark.parametrize("values", [[0.3, 0.35], [7.1, 9.3], [15.0, 903.0], [1e-4, 2e5], [4.9, 5.2], [9.0, 100.0]])
def test_ticks_of_a_log_axis_are_round(values):
    ticks = log_ticks(*values)
    assert 2 <= len(ticks) <= 11 and ticks == sorted(ticks)
    assert min(values) <= ticks[0] and ticks[-1] <= max(values)
    assert all(len(tick_text(tick).replace(",", "").replace(".", "").strip("0")) <= 2 for tick in ticks)


def test_ticks_of_time_are_round(report):
    report["curves"][0]["seconds"] = [0.0, 60.0, 400.0]
    axes = training_curves(report)[0].axes[0]
    ticks = [tick for tick in axes.xaxis.get_major_locator()() if tick <= axes.get_xlim()[1]]
    assert [tick_text(tick) for tick in ticks] == ["0", "2", "4", "6"]
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


@pytest.mark.slow
def test_training_charts_have_one_curve_per_run_and_a_time_axis(report):
    held_out, tangent = (figure.axes[0] for figure in training_curves(report))
    assert (held_out.get_xlabel(), held_out.get_ylabel()) == (
        "Training time (min)",
        "Held-out Frechet distance, log scale",
    )
    assert (tangent.get_xlabel(), tangent.get_ylabel()) == ("Training time (s)", "Tangent's norm")
    (curve,) = held_out.lines
    assert curve.get_xydata().tolist() == pytest.approx(np.array([[0, 50], [1, 3], [120.5 / 60, 0.77777]]))
    assert held_out.get_legend().get_texts()[0].get_text() == UNSAFE
    assert training_curves(report | {"curves": []}) == []


@pytest.mark.slow
def test_curves_of_one_method_have_different_dashes(report):
    curves = [
        {"figure": "loss", "run": run, "method": "dmd", "seconds": [0.0, 5.0], "values": [2.0, 1.0]} for run in "ab"
    ]
    (figure,) = training_curves(report | {"curves": curves})
    dashed = re.findall(r'stroke-dasharray: ([^;"]+)', as_file(figure))
    assert len(dashed) == 2, "the second curve, and its line in the legend"


@pytest.mark.slow
def test_svg_of_a_page_follows_its_theme_and_has_tooltips_and_unique_identifiers(report):
    titles = {"point-1": f"{UNSAFE}: 1 ms", "point-2": "two"}
    drawn = [as_inline(quality_latency(report, size), "a label", titles) for size in (WIDE, NARROW)]
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label") == "a label"
        assert [e.text for e in root.iter() if e.tag.endswith("title")] == list(titles.values())
        assert not re.search(r"(fill|stroke): #(?!var)[0-9a-f]{6}", svg), "every colour is a variable of the page"
        assert "<style" not in svg and "<script" not in svg and "font-family" not in svg
    identifiers = re.findall(r'\bid="([^"]*)"', "".join(drawn))
    assert len(identifiers) == len(set(identifiers)) > 10
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', "".join(drawn))) <= set(identifiers)


@pytest.mark.slow
def test_svg_files_are_the_same_for_the_same_report_and_keep_names_as_text(report):
    report["rows"][2]["method"] = "$x^2$ 図"
    first, second = as_file(quality_latency(report)), as_file(quality_latency(report))
    assert first == second and "$x^2$ 図" in first


SIMULATIONS = {  # linear RGB, Machado et al. 2009, severity 1
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize(("theme", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_colours_of_series_have_contrast_and_differ_for_colour_blind_readers(theme, colours):
    assert all(contrast(colour, back) >= 4.5 for colour in colours for back in BACKGROUNDS[theme])
    for matrix in SIMULATIONS.values():
        seen = [lab(np.array(matrix) @ luminance(colour, channels=True)) for colour in colours]
        assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 25


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ np.clip(linear, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
