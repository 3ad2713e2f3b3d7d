"""The report: its figures are those of the JSON, strings from outside stay text, labels keep clear of each other."""

import io
import json
import random
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
import yaml
from PIL import Image, ImageFont

from eval.report import plain, write_report
from eval.report.columns import DETAILS, columns, quality, speed
from eval.report.formats import duration, significant, training
from eval.report.grid import CELL, GAP, PAPER, SHARPNESS, cell, grid, strip, wrapped
from eval.report.labels import Box, label_of, labelled, place_labels
from eval.report.markdown import spread, title
from eval.report.model_index import METRICS, model_index
from eval.report.scatter import NAMED, charts, pareto, scatter, series_of, tick

EVIL = '<script>alert("1")</script> & | `x`'


def row(name: str, method: str, steps: int, latency: float, distance: float, **more) -> dict:
    return {
        "name": name, "method": method, "num_steps": steps, "solver": None, "nfe": 2.0 * steps, "latency_ms": latency,
        "latency_ms_p5": latency * 0.9, "latency_ms_p95": latency * 1.1, "images_per_second": 1234.5 / steps,
        "peak_memory_mb": 612.34, "prompt_agreement": 0.934, "samples": 2000, "speedup": 412.3 / latency,
        "frechet_distance": distance, "frechet_ratio": distance / 2.93, "precision": 0.91,
        "recall": 0.8, "density": 1.03, "coverage": 0.7, "real_images": 2000, "training": None, "seed": 0, "kid": None,
        "frechet_interval": [distance * 0.9, distance * 1.1], "frechet_ratio_interval": None, "best": False,
        "prompt_agreement_interval": [0.92, 0.95], "diversity_lpips": 0.31, "lpips_to_teacher": None,
        "psnr_to_teacher": None, "denoiser_ms": latency * 0.8, "decoder_ms": 1.5, "load_seconds": 0.43,
        "joules_per_image": None, "latency_compiled_ms": None,
        "throughput": [{"batch_size": 1, "images_per_second": 61.7}, {"batch_size": 32, "images_per_second": 1234.5}],
        "clip_score": 31.4159, "clip_interval": [31.1, 31.7], "clip_best": method == "dmd",
        "call": {},
        "pipeline": method, "from_cache": False,
    } | more  # fmt: skip


@pytest.fixture
def report() -> dict:
    cost = {"steps": 12345, "seconds": 210.5, "device": "cpu"}
    return {
        "date": "2026-01-01T00:00:00+00:00",
        "command": "python -m eval " + EVIL,
        "teacher": {"path": "pocket", "call": {"num_inference_steps": 50}},
        "runs": [
            {"name": EVIL, "method": "dmd", "folder": "dmd"},
            {"name": "plain-name", "method": "scm", "folder": "my|plug-in"},
        ],
        "baseline": "teacher, 50 steps",
        "clip": {"source": "some/clip", "figure": "CLIP-ViT-B/16@2000"},
        "curves": [
            {
                "figure": "Held-out Frechet distance",
                "run": EVIL,
                "method": "dmd",
                "seconds": [0.0, 60.0, 120.5],
                "values": [50.0, 3.0, 0.77777],
            },
            {"figure": "Tangent's norm", "run": EVIL, "method": "scm", "seconds": [0.0, 1.0], "values": [1.0, 1.0]},
        ],
        "samples": 2000,
        "batch_size": 32,
        "seed": 0,
        "features": "pocket",
        "reference": "pocket",
        "prompts": {"source": "pocket", "first": [EVIL, "a bag", "an ankle boot of considerable length " * 5]},
        "frechet_column": "Frechet distance (pocket@2000)",
        "memory_column": "Peak MB (process)",
        "machine": {"device": "cpu", "cpu": EVIL, "precision": "float32"},
        "notes": [EVIL],
        "rows": [
            row("teacher, 50 steps", "teacher", 50, 412.3, 2.93, best=True),
            row("teacher, DPM-Solver++, 1 step", "teacher", 1, 17.1, 214.2, solver="DPM-Solver++"),
            row(f"{EVIL}, 1 step", "dmd", 1, 13.4, 5.36, training=cost, frechet_ratio_interval=[0.9, 2.7]),
            row(
                "plain-name, 2 steps",
                "my|plug-in",
                2,
                20.2,
                6.41234567,
                training=cost,
                prompt_agreement=None,
                prompt_agreement_interval=None,
                psnr_to_teacher=21.5,
                lpips_to_teacher=0.21,
            ),
        ],
    }


@pytest.fixture
def written(report, tmp_path):
    images = [torch.rand(3, 3, 8, 8) for _ in report["rows"]]
    write_report(report, images, tmp_path)
    return tmp_path


VOID = ("img", "meta", "line", "circle", "polyline", "br", "input")


class Reader(HTMLParser):
    """Collects elements with data-value and the text inside them, and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[tuple[dict, str]] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self._open: list[int | None] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "srcset") and not v.startswith("data:")]
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
    details = {column.key: column for column in DETAILS.values()}
    seen = set()
    for given, text in reader.figures:
        index, key = int(given["data-row"]), given["data-key"]
        value = stored["rows"][index][key]
        assert json.loads(given["data-value"]) == value
        assert " ".join(text.split()) == " ".join((shown | details)[key].text(value).split())
        seen.add((index, key))
    wanted = {(i, key) for i in range(len(stored["rows"])) for key in shown}
    assert seen == wanted | {(i, key) for i, row in enumerate(stored["rows"]) for key in details if row[key]}
    assert {"frechet_interval", "psnr_to_teacher", "throughput", "load_seconds"} <= {key for _, key in seen}
    assert not {"kid", "joules_per_image", "latency_compiled_ms"} & set(shown), "what no row has is no column"


def test_the_page_fetches_nothing_and_runs_nothing(written):
    reader = Reader()
    page = (written / "report.html").read_text()
    reader.feed(page)
    assert reader.fetched == []
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
    """Blind to the exact values that stand beside the figures: what is read off the page is what is compared."""
    report["rows"][0] |= {"kid": 0.00123, "joules_per_image": 3.5, "latency_compiled_ms": 7.77}
    write_report(report, [torch.rand(3, 3, 8, 8) for _ in report["rows"]], written)
    stored = json.loads((written / "report.json").read_text())
    reader = Tables()
    reader.feed((written / "report.html").read_text())
    shown = [quality(stored), speed(stored)]
    assert len(reader.tables) == 2
    known = {column.key for part in shown for column in part}
    assert {"kid", "clip_score", "joules_per_image", "latency_compiled_ms"} <= known
    assert set(METRICS) <= known
    for (head, *body), part in zip(reader.tables, shown, strict=True):
        assert [text for text, _ in head] == [column.heading for column in part]
        assert len(body) == len(stored["rows"])
        for line, row in zip(body, stored["rows"], strict=True):
            for (text, small), column in zip(line, part, strict=True):
                assert " ".join(text.split()) == " ".join(column.text(row[column.key]).split())
                detail = DETAILS.get(column.key)
                if column.key == "latency_ms":
                    assert small == spread(row)
                else:
                    assert small == ("" if detail is None or row[detail.key] is None else detail.text(row[detail.key]))
    points = re.findall(r"<title>([^<]*): ([^<]*) ms, ([^<]*)</title>", (written / "report.html").read_text())
    assert len(points) == 2 * len(stored["rows"]), "both drawings"
    for (_, latency, distance), row in zip(points, stored["rows"] * 2, strict=True):
        assert latency == significant(row["latency_ms"])
        assert distance == significant(row["frechet_distance"])


def test_markdown_has_the_table_and_stays_text(report, written):
    text = (written / "report.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    half = 2 + len(report["rows"])
    assert len(table) == 2 * half, "quality and speed"
    cells = [re.split(r"(?<!\\)\|", line) for line in table[:half]]
    assert len({len(line) for line in cells}) == 1
    at = [cell.strip() for cell in cells[0]].index("Frechet distance (pocket@2000)")
    assert "Latency (ms)" in table[half]
    before_command = text[: text.index("```")]
    assert "<script>" not in before_command
    for line, source in zip(cells[2:], report["rows"], strict=True):
        figure = significant(source["frechet_distance"])
        assert line[at].split()[0] == (f"**{figure}**" if source["best"] else figure)
    assert "(0.900–2.70 tie)" in cells[4][at + 1], "an interval that holds 1 is called a tie"


def test_terminal_table(report):
    lines = plain(report).splitlines()
    assert len(lines) == 1 + len(report["rows"])
    assert lines[-1].startswith("plain-name, 2 steps")
    assert "6.41" in lines[-1]


def test_nothing_is_written_when_a_figure_is_no_number(report, tmp_path):
    report["rows"][0]["nfe"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(report, [torch.rand(3, 3, 8, 8)] * 4, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scatter_is_xml_with_a_point_a_row(report):
    for width, height in ((940, 430), (360, 400)):
        drawing = ElementTree.fromstring(scatter(report["rows"], EVIL, width, height))
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


def random_rows(count: int, seed: int) -> list[dict]:
    """Rows as crowded as a comparison of many good students: most within a factor of two in both directions."""
    draw = random.Random(seed)
    many = [row("teacher, 50 steps", "teacher", 50, 290.0, 0.48), row("teacher, 1 step", "teacher", 1, 9.3, 7.6)]
    for i in range(count - 2):
        name = f"{draw.choice(('pocket', 'a-run-with-a-long-name', 'x'))}-{i}, {1 + i % 2} steps"
        many.append(row(name, draw.choice(("dmd", "scm", "rcm")), 1, draw.uniform(7, 15), draw.uniform(0.35, 0.7)))
    return many


@pytest.mark.parametrize("count", [6, 12, 20])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("width", "height", "shape"), [(940, 430, "wide"), (360, 400, "narrow")])
def test_labels_of_many_rows_never_meet(count, seed, width, height, shape, monkeypatch):
    placed = []

    def spy(rows, points, within, most, original=labelled):
        placed.append((points, within, *original(rows, points, within, most)))
        return placed[-1][2:]

    monkeypatch.setattr("eval.report.scatter.labelled", spy)
    rows = random_rows(count, seed)
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
    few, many = charts(random_rows(6, 0), "Frechet"), charts(random_rows(14, 0), "Frechet")
    assert "<ol" not in few
    assert many.count("<ol") == 2
    entries = re.findall(r"<li><b[^>]*>(\d+)</b><span>([^<]*)</span>", many)
    assert entries == 2 * [(str(i), entry["name"]) for i, entry in enumerate(random_rows(14, 0), start=1)]
    assert charts(random_rows(10, 0), "Frechet").count("<ol") == 1, "a phone has room for fewer names"


@pytest.mark.parametrize("width", [940, 360])
def test_the_axis_title_fits_its_drawing(report, width):
    for title_ in ("Frechet distance (pocket@1000)", "FID-clean@10k", "Frechet distance (a_long_name@1000000)"):
        drawing = ElementTree.fromstring(scatter(report["rows"], title_, width))
        lines = [e for e in drawing.iter() if e.get("class") == "axis"][1:]
        assert all(12 + 6.6 * len(e.text) <= width for e in lines), [e.text for e in lines]
        assert " ".join(e.text for e in lines).startswith(title_)


def test_titles_stay_short(report):
    report["runs"] = [{"name": f"run-{i}"} for i in range(40)]
    assert title(report) == "run-0, run-1, run-2 and 37 more against the teacher"
    report["runs"] = [{"name": "n" * 300} for _ in range(3)] + [{"name": "m" * 300}]
    assert len(title(report)) < 150
    report["runs"] = [{"name": f"{letter}" * 300} for letter in "abcdef"]
    assert len(title(report)) < 210
    report["rows"] = report["rows"][2:]
    assert title(report | {"runs": [{"name": "a"}, {"name": "b"}]}) == "a and b, side by side"


def test_a_page_of_many_rows_keeps_its_head_short(report, tmp_path):
    report["rows"] = random_rows(20, 1)
    write_report(report, [torch.rand(3, 3, 8, 8)] * 20, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="card"') == 8
    assert "10 more rows in the tables below" in page


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


def test_model_index_is_yaml_with_the_jsons_figures(report):
    documents = [d["model-index"] for d in yaml.safe_load_all(model_index(report))]
    assert [d[0]["name"] for d in documents] == [EVIL, "plain-name"]
    (result,) = documents[1][0]["results"]
    assert result["task"]["type"] == "text-to-image"
    figures = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert figures["frechet_distance"] == report["rows"][3]["frechet_distance"]
    assert figures["recall"] == 0.8
    assert "prompt_agreement" not in figures, "None is left out"
    report["runs"][0]["folder"] = "elsewhere"
    assert yaml.safe_load(model_index(report).split("---")[1])["model-index"][0]["results"] == []


def test_strips_hold_the_pictures_in_their_places():
    png, width = strip(torch.stack([torch.full((3, 16, 16), i / 10) for i in range(7)]), across=5)
    sheet = Image.open(io.BytesIO(png))
    assert sheet.size == (5 * (CELL + GAP) - GAP, 2 * (CELL + GAP) - GAP)
    assert width == sheet.width // SHARPNESS
    assert sheet.getpixel((CELL + GAP + 1, CELL + GAP + 1)) == (153,) * 3  # number 6, second of the second line


def test_small_images_are_magnified_by_whole_pixels_and_large_ones_shrunk():
    image = torch.rand(3, 32, 32)
    big = cell(image)
    assert big.size == (CELL, CELL)
    factor = CELL // 32
    assert big.getpixel((factor - 1, 0)) == big.getpixel((0, 0))
    assert big.getpixel((0, 0)) == tuple((image[:, 0, 0] * 255).round().int().tolist())
    assert cell(torch.rand(3, 512, 256)).size == (CELL // 2, CELL)


def test_grid_has_a_column_a_row_and_a_line_a_prompt(report):
    images = [torch.zeros(3, 3, 16, 16) for _ in report["rows"]]
    with_prompts = grid(report["rows"], images, report["prompts"]["first"])
    without = grid(report["rows"], images, None)
    assert with_prompts.width > without.width >= 4 * (CELL + GAP)
    assert with_prompts.height == without.height > 3 * (CELL + GAP)
    assert without.getpixel((without.width - GAP - 1, without.height - GAP - 1)) == (0, 0, 0)
    assert without.getpixel((without.width - 1, without.height - 1)) == PAPER


def test_text_is_wrapped_and_cut():
    font = ImageFont.load_default(20)
    assert wrapped("pocket-dmd-gan-regression, 1 step", font, 150, 4) == ["pocket-dmd-", "gan-regression,", "1 step"]
    lines = wrapped("an ankle boot of considerable length and weight " * 9, font, 150, 3)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 150 for line in lines)
    assert lines[-1].endswith("...")
    assert wrapped("x" * 100, font, 150, 3)[0].endswith("...")
    assert wrapped("", font, 150, 3) == [""]


def test_figures_as_text():
    texts = [significant(v) for v in (None, 0, 0.00012, 0.1234, 0.99951, 1.234, 12.34, 99.96, 1234.5, -3.456)]
    assert texts == ["–", "0", "0.0001", "0.123", "1.00", "1.23", "12.3", "100", "1,234", "-3.46"]
    assert [duration(s) for s in (12, 89, 210.5, 90000)] == ["12 s", "89 s", "3.5 min", "25.0 h"]
    assert training({"steps": 1000, "seconds": None}) == "1,000 steps"
    assert training({}) == "–"
    assert significant(0.5) == "0.500"
    assert [tick(v) for v in (0.3, 1.0, 1.5, 20.0, 12_000.0)] == ["0.3", "1", "1.5", "20", "12,000"]
