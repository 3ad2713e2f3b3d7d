"""The HTML page shows the values of report.json, escapes every string and loads only samples at their own size."""

import base64
import hashlib
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from eval.report import write_report
from eval.report.columns import columns, intervals, quality, speed
from eval.report.formats import significant, spread
from eval.report.gallery import sample_file
from eval.report.html import page
from eval.report.verdict import verdict_text
from tests.eval.report.accessibility import problems
from tests.eval.report.example import UNSAFE, crowded_rows

pytestmark = pytest.mark.slow

VOID_TAGS = ("img", "meta", "line", "circle", "path", "use", "rect", "br", "wbr", "input")


class PageReader(HTMLParser):
    """Collects the elements with data-value and their text, all tags, image sources and everything that is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[tuple[dict, str]] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self._open: list[int | None] = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        if tag != "a" and not (tag == "use" and self._local(attributes)):
            self.loaded += [v for k, v in attrs if k in ("src", "href", "srcset") and not v.startswith("data:")]
        self.links += [attributes["href"]] if tag == "a" else []
        if tag == "img":
            self.images.append(attributes.get("src", ""))
        if tag in VOID_TAGS:
            return
        self._open.append(len(self.figures) if "data-value" in attributes else None)
        if "data-value" in attributes:
            self.figures.append((attributes, ""))

    @staticmethod
    def _local(attributes: dict) -> bool:
        return attributes.get("href", "").startswith("#")

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS and self._open:
            self._open.pop()

    def handle_data(self, data):
        for index in self._open:
            if index is not None:
                attributes, text = self.figures[index]
                self.figures[index] = attributes, text + data


def read_page(html: str) -> PageReader:
    reader = PageReader()
    reader.feed(html)
    return reader


def test_every_figure_equals_the_value_in_the_json(report, written):
    stored = json.loads((written / "report.json").read_text())
    reader = read_page((written / "report.html").read_text())
    shown = {column.key: column for column in columns(stored)}
    details = {column.key: column for column in intervals(stored)}
    seen = set()
    for attributes, text in reader.figures:
        index, key = int(attributes["data-row"]), attributes["data-key"]
        value = stored["rows"][index][key]
        assert json.loads(attributes["data-value"]) == value
        assert " ".join(text.split()) == " ".join((shown | details)[key].text(value).split())
        seen.add((index, key))
    expected = {(i, key) for i in range(len(stored["rows"])) for key in shown}
    assert seen == expected | {(i, key) for i, row in enumerate(stored["rows"]) for key in details if row.get(key)}
    assert {"frechet_interval", "psnr_to_teacher", "throughput", "load_seconds"} <= {key for _, key in seen}
    assert not {"kid", "joules_per_image", "latency_compiled_ms"} & set(shown), "no column for a value that no row has"


def test_page_loads_nothing_and_runs_only_its_viewer(written):
    html = (written / "report.html").read_text()
    reader = read_page(html)
    assert reader.loaded == []
    assert not {"link", "iframe", "object"} & set(reader.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html and "default-src 'none'" in html
    assert "http" not in script and "@import" not in html
    assert reader.tags.count("img") == 4 * 3 + 1, "three images of four rows, and the viewer's"
    assert reader.tags.count("svg") == 2 + 2, "two scatter charts and two training charts"
    assert not re.search(r"{[{%#]|[%#]}}", re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL))


def test_links_of_the_page_are_files_of_the_report(report, written):
    found = json.loads((written / "report.json").read_text())["gallery"]
    reader = read_page((written / "report.html").read_text())
    for link in reader.links:
        assert link.startswith("#") or (written / link).exists(), link
    samples = [link for link in reader.links if link.endswith(".png")]
    assert samples == [sample_file(found, row, number) for row in range(4) for number in range(3)]


def test_report_of_an_earlier_version_is_rendered_without_links_to_files(report):
    html = page(report, [torch.rand(3, 3, 8, 8)] * 4)
    assert {link for link in read_page(html).links} == {"#samples"}
    assert "data-file" not in html


def test_accessibility_of_the_page_by_static_rules(report, written):
    assert problems((written / "report.html").read_text()) == []
    report["prompts"] = {"source": None, "first": None}
    assert problems(page(report, [torch.rand(3, 3, 8, 8)] * 4)) == []
    assert problems("<h3>x</h3><img><button></button><div id=a></div><p id=a tabindex=0></p>") != []


def test_first_sentence_is_the_verdict_and_the_same_in_markdown(report, written):
    html = (written / "report.html").read_text()
    (shown,) = re.findall(r'<p class="verdict">(.*?)</p>', html, re.DOTALL)
    text = unescape(" ".join(re.sub("<[^>]*>", "", shown).split()))
    assert text.replace("( ", "(") == " ".join(verdict_text(report).split())
    assert html.index('class="verdict"') < html.index('class="lead"')


def test_page_of_many_large_images_is_below_five_megabytes(report):
    report["rows"] = crowded_rows(6, 0)
    noise = torch.rand(12, 3, 200, 260)
    html = page(report, [noise] * 6)
    assert len(html) < 5e6
    assert html.count("<img src=") == 6 * 12 and "2 more lines" in html


class TableReader(HTMLParser):
    """The page's tables as text: headings, and for each row its cells, each as text and small print."""

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
        elif tag == "small":
            self._small = False

    def handle_data(self, data):
        if self._inside:
            self.tables[-1][-1][-1][self._small] += data


def test_visible_text_of_every_cell_is_the_value_of_its_row_and_column(report, written):
    """Reads only the visible text, not the exact values in attributes."""
    report["rows"][0] |= {"kid": 0.00123, "joules_per_image": 3.5, "latency_compiled_ms": 7.77}
    write_report(report, [torch.rand(3, 3, 8, 8) for _ in report["rows"]], written)
    stored = json.loads((written / "report.json").read_text())
    reader = TableReader()
    reader.feed((written / "report.html").read_text())
    shown = [quality(stored), speed(stored)]
    assert len(reader.tables) == 2
    keys = {column.key for part in shown for column in part}
    assert {"kid", "clip_score", "joules_per_image", "latency_compiled_ms"} <= keys
    assert {metric["key"] for metric in stored["metrics"]} <= keys
    for (head, *body), part in zip(reader.tables, shown, strict=True):
        assert [text.strip() for text, _ in head] == [column.heading or "Row" for column in part]
        assert len(body) == len(stored["rows"])
        for line, row in zip(body, stored["rows"], strict=True):
            for (text, small), column in zip(line, part, strict=True):
                assert " ".join(text.split()) == " ".join(column.text(row[column.key]).split())
                if column.key == "latency_ms":
                    assert small == spread(row)
                else:
                    assert small == (column.interval_text(row) or "")


def test_tooltips_of_the_scatter_charts_have_the_values_of_the_json(report, written):
    points = re.findall(r"<title>([^<]*): ([^<]*) ms, ([^<]*)</title>", (written / "report.html").read_text())
    assert len(points) == 2 * len(report["rows"]), "one chart for wide screens, one for phones"
    for (_, latency, distance), row in zip(points, report["rows"] * 2, strict=True):
        assert latency == significant(row["latency_ms"])
        assert distance == significant(row["frechet_distance"])


def test_strings_are_escaped(report, written):
    html = (written / "report.html").read_text()
    assert UNSAFE not in html
    assert html.count("&lt;script&gt;") >= 10


def test_thumbnails_of_small_images_are_the_samples(report):
    images = [torch.rand(3, 3, 8, 8) for _ in report["rows"]]
    reader = read_page(page(report, images))
    expected = [(image * 255).round().byte() for row in images for image in row]
    for source, image in zip([source for source in reader.images if source], expected, strict=True):
        decoded = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
        assert np.array_equal(np.asarray(decoded), image.permute(1, 2, 0).numpy())


def test_terms_are_explained_where_they_first_appear(report):
    images = [torch.rand(1, 3, 8, 8) for _ in report["rows"]]
    html = page(report, images)
    assert "<b>@2000</b>: computed from 2,000 samples" in html
    assert html.index("<b>tie</b>: the 95% confidence interval of the ratio contains 1") < html.index("(tie)")
    report["rows"][2]["frechet_ratio_interval"] = [1.5, 2.7]
    assert "<b>tie</b>" not in page(report, images)


def test_page_of_many_rows_has_eight_cards(report):
    report["rows"] = crowded_rows(20, 1)
    html = page(report, [torch.rand(3, 3, 8, 8)] * 20)
    assert html.count('class="card"') == 8
    assert "10 more rows in the tables below" in html


def test_page_of_one_row_has_no_scatter_chart(report):
    report["rows"], report["curves"] = report["rows"][2:3], []
    report["baseline"] = report["rows"][0]["name"]
    assert "<svg" not in page(report, [torch.rand(3, 3, 8, 8)])


@pytest.mark.parametrize("prompts", [None, ["a", "b", "c"]])
def test_prompts_are_shown_next_to_the_samples(report, prompts):
    report["prompts"] = {"source": prompts and "x", "first": prompts}
    html = page(report, [torch.rand(3, 3, 8, 8)] * 4)
    assert html.count('alt="teacher, 50 steps: b"') == (1 if prompts else 0)
    assert html.count('alt="teacher, 50 steps: sample 1"') == (0 if prompts else 1)
