"""The HTML page shows the values of report.json, escapes every string and loads nothing."""

import json
import re
from html.parser import HTMLParser

import torch

from eval.report import write_report
from eval.report.columns import columns, intervals, quality, speed
from eval.report.formats import significant
from eval.report.markdown import spread
from tests.eval.report.example import crowded_rows

VOID = ("img", "meta", "line", "circle", "polyline", "br", "input")


class Reader(HTMLParser):
    """Collects elements with data-value and the text inside them, and everything that would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[tuple[dict, str]] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self._open: list[int | None] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "href", "srcset") and not v.startswith("data:")]
        if tag in VOID:
            return
        self._open.append(len(self.figures) if "data-value" in given else None)
        if "data-value" in given:
            self.figures.append((given, ""))

    def handle_endtag(self, tag):
        if tag not in VOID and self._open:
            self._open.pop()

    def handle_data(self, data):
        for index in self._open:
            if index is not None:
                given, text = self.figures[index]
                self.figures[index] = given, text + data


def test_every_figure_of_the_page_is_that_of_the_json(report, written):
    stored = json.loads((written / "report.json").read_text())
    reader = Reader()
    reader.feed((written / "report.html").read_text())
    shown = {column.key: column for column in columns(stored)}
    details = {column.key: column for column in intervals(stored)}
    seen = set()
    for given, text in reader.figures:
        index, key = int(given["data-row"]), given["data-key"]
        value = stored["rows"][index][key]
        assert json.loads(given["data-value"]) == value
        assert " ".join(text.split()) == " ".join((shown | details)[key].text(value).split())
        seen.add((index, key))
    expected = {(i, key) for i in range(len(stored["rows"])) for key in shown}
    assert seen == expected | {(i, key) for i, row in enumerate(stored["rows"]) for key in details if row.get(key)}
    assert {"frechet_interval", "psnr_to_teacher", "throughput", "load_seconds"} <= {key for _, key in seen}
    assert not {"kid", "joules_per_image", "latency_compiled_ms"} & set(shown), "what no row has is no column"


def test_the_page_fetches_nothing_and_runs_nothing(written):
    reader = Reader()
    page = (written / "report.html").read_text()
    reader.feed(page)
    assert reader.loaded == []
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert "url(" not in page
    assert "@import" not in page
    assert reader.tags.count("img") == 1 + 4, "the grid, and a strip a row"
    assert reader.tags.count("svg") == 2 + 2 * 2, "two scatters; a chart and its legend's line for each figure"
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)


class Tables(HTMLParser):
    """The page's tables as a reader sees them: headings, and for each line the cells' text, small print apart."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[list[str]]]] = []
        self._inside = self._small = False

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(["", ""])
            self._inside, self._small = True, False
        elif tag == "small":
            self._small = True

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.tables[-1][-1][-1][self._small] += data


def test_every_cell_that_is_seen_is_the_jsons_figure_in_its_column(report, written):
    """Reads only the visible text, not the exact values in attributes."""
    report["rows"][0] |= {"kid": 0.00123, "joules_per_image": 3.5, "latency_compiled_ms": 7.77}
    write_report(report, [torch.rand(3, 3, 8, 8) for _ in report["rows"]], written)
    stored = json.loads((written / "report.json").read_text())
    reader = Tables()
    reader.feed((written / "report.html").read_text())
    shown = [quality(stored), speed(stored)]
    assert len(reader.tables) == 2
    known = {column.key for part in shown for column in part}
    assert {"kid", "clip_score", "joules_per_image", "latency_compiled_ms"} <= known
    for (head, *body), part in zip(reader.tables, shown, strict=True):
        assert [text for text, _ in head] == [column.heading for column in part]
        assert len(body) == len(stored["rows"])
        for line, row in zip(body, stored["rows"], strict=True):
            for (text, small), column in zip(line, part, strict=True):
                assert " ".join(text.split()) == " ".join(column.text(row[column.key]).split())
                if column.key == "latency_ms":
                    assert small == spread(row)
                else:
                    assert small == (column.interval_text(row) or "")
    points = re.findall(r"<title>([^<]*): ([^<]*) ms, ([^<]*)</title>", (written / "report.html").read_text())
    assert len(points) == 2 * len(stored["rows"]), "both drawings"
    for (_, latency, distance), row in zip(points, stored["rows"] * 2, strict=True):
        assert latency == significant(row["latency_ms"])
        assert distance == significant(row["frechet_distance"])


def test_a_page_of_many_rows_keeps_its_head_short(report, tmp_path):
    report["rows"] = crowded_rows(20, 1)
    write_report(report, [torch.rand(3, 3, 8, 8)] * 20, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="card"') == 8
    assert "10 more rows in the tables below" in page
