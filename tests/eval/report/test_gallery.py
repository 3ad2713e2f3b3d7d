"""Samples at their own size beside the report, and the files for papers: SVG figures and a LaTeX table."""

import csv
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from eval.pipelines.generate import generators
from eval.pipelines.seeds import sample_seed
from eval.report import write_report
from eval.report.gallery import sample_file
from eval.report.latex_table import latex, latex_table
from tests.eval.report.example import UNSAFE

pytestmark = pytest.mark.slow


def test_files_are_the_samples_without_loss(report, tmp_path):
    samples = [torch.rand(12, 3, 40, 24) for _ in report["rows"]]
    stored = write_report(report, samples, tmp_path)
    for row, images in enumerate(samples):
        for number, image in enumerate(images):
            read = np.asarray(Image.open(tmp_path / sample_file(stored["gallery"], row, number)))
            assert np.array_equal(read, (image * 255).round().byte().permute(1, 2, 0).numpy())
    assert {file.name for file in (tmp_path / "images").iterdir()} == {*stored["gallery"]["rows"], "samples.csv"}
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in stored["gallery"]["rows"]), (
        "names of strangers are not paths"
    )


@pytest.mark.slow
def test_seeds_are_those_of_the_generators(report, tmp_path):
    report["seed"] = 7
    write_report(report, [torch.rand(2, 3, 8, 8)] * 4, tmp_path)
    with (tmp_path / "images/samples.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["number"] for line in lines] == ["0", "1"] and lines[1]["prompt"] == "a bag"
    for name, stream in (("latents_seed", "samples/initial"), ("generator_seed", "samples/noise")):
        drawn = [torch.randn(3, generator=generator) for generator in generators([0, 1], 7, stream)]
        for line, expected in zip(lines, drawn, strict=True):
            assert torch.equal(torch.randn(3, generator=torch.Generator().manual_seed(int(line[name]))), expected)
    assert sample_seed(0, 7, "samples/initial") == int(lines[0]["latents_seed"])


@pytest.mark.slow
def test_new_report_replaces_the_samples_of_the_old_one(report, tmp_path):
    write_report(report, [torch.rand(5, 3, 8, 8)] * 4, tmp_path)
    write_report(report, [torch.rand(2, 3, 8, 8)] * 4, tmp_path)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 2 * 4
    assert not list(tmp_path.glob(".*.tmp"))


def test_figures_are_valid_svg_files(written):
    files = sorted((written / "figures").iterdir())
    assert [file.name for file in files] == ["quality-latency.svg", "training-1.svg", "training-2.svg"]
    for file in files:
        assert ElementTree.fromstring(file.read_text(encoding="utf-8")).tag.endswith("svg")


def test_latex_table_has_a_line_per_row_and_escapes_text(report):
    text = latex_table(report)
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line == r"\toprule")
    cells = {line.count(" & ") for line in lines[head + 1 :] if line.endswith(r"\\")}
    assert len(cells) == 1
    assert sum(line.endswith(r"\\") for line in lines) == 1 + len(report["rows"])
    assert lines[0].startswith("% ") and text.count(r"\midrule") == 2
    assert r"\textbf{2.93} {\scriptsize [2.64--3.22]}" in text
    assert latex("50% of $x_1$ & {y}^2 \\ ~") == (
        r"50\% of \$x\_1\$ \& \{y\}\textasciicircum{}2 \textbackslash{} \textasciitilde{}"
    )
    assert latex('[a] *"b"*') == "{[}a] {*}''b''{*}"
    assert latex(UNSAFE) in text and "<" not in "".join(lines[1:])


@pytest.mark.parametrize("count", [11, 1, 10])
@pytest.mark.first_by_default
def test_lines_after_the_first_ten_are_folded(report, tmp_path, count):
    write_report(report, [torch.rand(count, 3, 8, 8)] * 4, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("<details>" in html) == (count > 10)
    assert Image.open(tmp_path / "grid.png").height < 2200, "the grid has the first ten"
