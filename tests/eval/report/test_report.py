"""Markdown, CSV, the terminal's table, model-index and figures as text; nothing is written for invalid values."""

import csv
import io
import re

import pytest
import torch
import yaml

from eval.report import plain, write_report
from eval.report.columns import columns
from eval.report.csv_table import csv_table
from eval.report.formats import between, duration, formatted, ratio_between, significant, training
from eval.report.markdown import title
from eval.report.model_index import model_index
from tests.eval.report.example import UNSAFE


@pytest.mark.slow
def test_markdown_has_both_tables_and_escapes_text(report, written):
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
    assert "(0.900–2.70 tie)" in cells[4][at + 1], "an interval that contains 1 is called a tie"


def test_the_terminal_table_has_a_line_for_each_row(report):
    lines = plain(report).splitlines()
    assert len(lines) == 1 + len(report["rows"])
    assert lines[-1].startswith("plain-name, 2 steps")
    assert "6.41" in lines[-1]


def test_nothing_is_written_if_a_figure_is_nan(report, tmp_path):
    report["rows"][0]["nfe"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(report, [torch.rand(3, 3, 8, 8)] * 4, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_titles_are_short_for_many_and_long_names(report):
    report["runs"] = [{"name": f"run-{i}"} for i in range(40)]
    assert title(report) == "run-0, run-1, run-2 and 37 more against the teacher"
    report["runs"] = [{"name": "n" * 300} for _ in range(3)] + [{"name": "m" * 300}]
    assert len(title(report)) < 150
    report["runs"] = [{"name": f"{letter}" * 300} for letter in "abcdef"]
    assert len(title(report)) < 210
    report["rows"] = report["rows"][2:]
    assert title(report | {"runs": [{"name": "a"}, {"name": "b"}]}) == "Comparison of a and b"


def test_model_index_is_yaml_with_the_figures_of_every_metric(report):
    documents = [d["model-index"] for d in yaml.safe_load_all(model_index(report))]
    assert [d[0]["name"] for d in documents] == [UNSAFE, "plain-name"]
    (result,) = documents[1][0]["results"]
    assert result["task"]["type"] == "text-to-image"
    figures = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert figures["frechet_distance"] == report["rows"][3]["frechet_distance"]
    assert figures["recall"] == 0.8
    assert figures["latency_ms"] == report["rows"][3]["latency_ms"]
    assert set(figures) == {m["key"] for m in report["metrics"] if report["rows"][3][m["key"]] is not None} | {
        "latency_ms",
        "nfe",
    }
    assert "prompt_agreement" not in figures, "unknown values are left out"
    report["runs"][0]["folder"] = "elsewhere"
    assert yaml.safe_load(model_index(report).split("---")[1])["model-index"][0]["results"] == []


def test_csv_has_every_figure_and_interval_of_every_row(report):
    report["rows"][0]["name"] = "=1+2"
    lines = list(csv.DictReader(io.StringIO(csv_table(report))))
    assert len(lines) == len(report["rows"])
    assert lines[0]["name"] == "'=1+2", "spreadsheets do not evaluate it"
    for line, row in zip(lines, report["rows"], strict=True):
        for column in columns(report):
            value = row[column.key]
            if isinstance(value, int | float):
                assert float(line[column.key]) == value
            elif value is None and column.key in line:
                assert line[column.key] == ""
            interval = column.interval and row.get(column.interval.key)
            if interval:
                assert [float(line[f"{column.key}_{end}"]) for end in ("low", "high")] == interval
        assert float(line["images_per_second_at_32"]) == 1234.5
        assert float(line["latency_ms_p95"]) == row["latency_ms_p95"]
    assert lines[2]["training_seconds"] == "210.5"
    assert not {"kid", "kid_low", "precision_low"} & set(lines[0]), "no column without a value"


def test_figures_as_text():
    texts = [significant(v) for v in (None, 0, 0.00012, 0.1234, 0.99951, 1.234, 12.34, 99.96, 1234.5, -3.456)]
    assert texts == ["–", "0", "0.0001", "0.123", "1.00", "1.23", "12.3", "100", "1,234", "-3.46"]
    assert [duration(s) for s in (12, 89, 210.5, 90000)] == ["12 s", "89 s", "3.5 min", "25.0 h"]
    assert training({"steps": 1000, "seconds": None}) == "1,000 steps"
    assert training({}) == "–"
    assert significant(0.5) == "0.500"
    assert [formatted(0.9341, spec) for spec in ("", ".3f", ".1%")] == ["0.934", "0.934", "93.4%"]
    assert formatted(0.00123, "", 1000) == "1.23"
    assert formatted(None, ".1%") == between(None) == "–"
    assert between([0.92, 0.95], ".1%") == "92.0–95.0%"
    assert [ratio_between(ends) for ends in ([0.9, 2.7], [1.1, 2.7])] == ["0.900–2.70 tie", "1.10–2.70"]
