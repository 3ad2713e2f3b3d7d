"""Charts and their labels."""

import re
from xml.etree import ElementTree

import pytest

from eval.report.labels import Box, label_of, labelled, place_labels
from eval.report.scatter import NAMED, charts, pareto, scatter, series_of, tick
from tests.eval.report.example import UNSAFE, crowded_rows


def test_scatter_is_xml_with_a_point_a_row(report):
    for width, height in ((940, 430), (360, 400)):
        drawing = ElementTree.fromstring(scatter(report["rows"], UNSAFE, width, height))
        points = [e for e in drawing.iter() if e.tag.endswith("circle")]
        assert len(points) == len(report["rows"])
        for point in points:
            assert 0 < float(point.get("cx")) < width
            assert 0 < float(point.get("cy")) < height
        # Higher distance is higher up, longer latency further right.
        assert float(points[1].get("cy")) < float(points[2].get("cy"))
        assert float(points[0].get("cx")) > float(points[1].get("cx"))


@pytest.mark.parametrize("distances", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 300.0]])
def test_scatter_of_unusual_figures(report, distances):
    for entry, distance in zip(report["rows"], distances, strict=True):
        entry["frechet_distance"], entry["latency_ms"] = distance, 5.0
    drawing = scatter(report["rows"], "Frechet")
    assert "nan" not in drawing
    ElementTree.fromstring(drawing)


def test_labels_keep_clear_of_each_other_and_of_points():
    # A cluster of four within a few units, a point at each edge, and long labels.
    points = [(100, 100), (104, 103), (98, 108), (107, 96), (290, 20), (20, 180)]
    labels = [f"a student, {i} steps" for i in range(len(points))]
    within = Box(0, 0, 300, 200)
    boxes = place_labels(points, labels, within)
    for i, box in enumerate(boxes):
        assert box.left >= 0
        assert box.top >= 0
        assert box.right <= 300
        assert box.bottom <= 200
        for other in boxes[:i]:
            assert box.overlap(other) == 0
        for x, y in points:
            assert not (box.left < x < box.right and box.top < y < box.bottom)


@pytest.mark.parametrize("count", [6, 12, 20])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("width", "height", "shape"), [(940, 430, "wide"), (360, 400, "narrow")])
def test_labels_of_many_rows_never_meet(count, seed, width, height, shape, monkeypatch):
    placed = []

    def spy(rows, points, within, most, original=labelled):
        placed.append((points, within, *original(rows, points, within, most)))
        return placed[-1][2:]

    monkeypatch.setattr("eval.report.scatter.labelled", spy)
    rows = crowded_rows(count, seed)
    drawing = ElementTree.fromstring(scatter(rows, "Frechet", width, height, NAMED[shape]))
    ((points, within, labels, boxes),) = placed
    assert [e.text for e in drawing.iter() if e.get("class") == "label"] == labels
    if count > NAMED[shape]:
        assert labels == [str(i + 1) for i in range(count)]
    for i, box in enumerate(boxes):
        assert box.overlap(within) == pytest.approx((box.right - box.left) * (box.bottom - box.top)), "inside the plot"
        assert all(box.overlap(other) == 0 for other in boxes[:i])
        assert not any(box.left < x < box.right and box.top < y < box.bottom for x, y in points)


def test_numbered_points_have_a_key():
    few, many = charts(crowded_rows(6, 0), "Frechet"), charts(crowded_rows(14, 0), "Frechet")
    assert "<ol" not in few
    assert many.count("<ol") == 2
    entries = re.findall(r"<li><b[^>]*>(\d+)</b><span>([^<]*)</span>", many)
    assert entries == 2 * [(str(i), entry["name"]) for i, entry in enumerate(crowded_rows(14, 0), start=1)]
    assert charts(crowded_rows(10, 0), "Frechet").count("<ol") == 1, "a phone has room for fewer names"


@pytest.mark.parametrize("width", [940, 360])
def test_the_axis_title_fits_its_drawing(report, width):
    for title_ in ("Frechet distance (pocket@1000)", "FID-clean@10k", "Frechet distance (a_long_name@1000000)"):
        drawing = ElementTree.fromstring(scatter(report["rows"], title_, width))
        lines = [e for e in drawing.iter() if e.get("class") == "axis"][1:]
        assert all(12 + 6.6 * len(e.text) <= width for e in lines), [e.text for e in lines]
        assert " ".join(e.text for e in lines).startswith(title_)


def test_labels_and_series():
    assert label_of({"name": "teacher, DPM-Solver++, 4 steps", "solver": "DPM-Solver++"}) == "teacher, 4 steps"
    assert len(label_of({"name": "x" * 50})) == 26
    rows = [{"method": m} for m in ("teacher", "dmd", "scm", *"abcdefg")]
    colours = series_of(rows)
    assert (colours["teacher"], colours["dmd"], colours["scm"]) == (0, 1, 2)
    assert max(colours.values()) == 5
    assert list(colours.values()).count(0) == 1


def test_the_front_is_what_nothing_beats():
    assert pareto([1, 2, 3, 2], [5, 3, 4, 6]) == [0, 1]
    assert pareto([2, 1, 3], [1, 1, 0.5]) == [1, 2], "equal quality: the faster"
    assert pareto([1.0], [1.0]) == [0]


def test_ticks_as_text():
    assert [tick(v) for v in (0.3, 1.0, 1.5, 20.0, 12_000.0)] == ["0.3", "1", "1.5", "20", "12,000"]
