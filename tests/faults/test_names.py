"""Names and texts of strangers: nothing that they hold reaches a terminal, a report or a model card unchanged."""

import csv
import io
import json
import logging
import os
import re
import shutil
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from distill.checks.table import Check, table
from distill.config.recipe import load
from distill.config.run_files import OWN, RECIPE, RESERVED
from distill.config.saved import save
from distill.data.images import ImageFolder
from distill.exporting.hub import add_evaluation
from distill.exporting.model_card.sections import code_span
from eval.demo import page as demo_page
from eval.features.image_folder import image_warnings
from eval.images import as_text
from eval.pipelines.demo_files import Store
from eval.pipelines.demo_pipelines import Demo
from eval.pipelines.runs import read_run
from eval.report import write_report
from eval.report.csv_table import csv_table
from eval.report.grid import grid
from eval.report.html import page
from eval.report.markdown import markdown, plain
from eval.report.model_index import model_index
from teachers.describe import describe
from teachers.loading.contents import pipeline_contents
from teachers.support.errors import run_cli
from teachers.support.files import atomic_write
from teachers.support.keys import key
from teachers.support.text import cleaned, folder_name_problem, json_text, printable
from tests.commands import eval_main, fewstep
from tests.eval.report.example import example_report
from tests.settings import RECIPES

HOSTILE = {
    "title": "\x1b]0;PWNED\x07name",
    "clear": "\x1b[2Jname",
    "8-bit sequence": "\x9b2Jname",
    "return": "name\rother",
    "newline": "name\nfake: 1",
    "backspace": "name\b\b\b\bother",
    "override": "name\u202egnp.exe",
    "isolate": "\u2066name\u2069",
    "mark": "name\u200f1\u061c",
    "separator": "name\u2028next\u2029next\x85next",
    "invisible": "na\u200bme\ufeff\u00ad\U000e0041",
    "surrogate": "name\udcff\ud800",
    "null": "name\0",
    "delete": "name\x7f",
}
hostile = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
TOGETHER = "".join(HOSTILE.values())  # for what takes long
FILE_NAMES = {kind: name for kind, name in HOSTILE.items() if kind not in ("null", "surrogate")}


def unsafe(text: str, lines: str = "") -> list[str]:
    """The characters of a text that control a terminal or its direction."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [c for c in text if unicodedata.category(c) in kinds and c not in f"{lines}\u200c\u200d"]


@hostile
def test_hostile_text_becomes_one_line_of_visible_characters(name):
    assert not unsafe(printable(name)) and not unsafe(printable(name, lines=True), "\n")
    assert printable(name) != name and printable(printable(name)) == printable(name)
    assert json.loads(json_text({name: [name]})) == {name: [name]} and not unsafe(json_text({name: name}, 2), "\n")


@pytest.mark.parametrize(
    "text",
    [
        "für 日本",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f680",
        "a\xa0b",
        "全\u3000角",
        "e\u0301",
    ],
)
def test_text_of_all_languages_stays(text):
    assert printable(text) == text and cleaned({"a": [text, 1, None]}) == {"a": [text, 1, None]}


def test_line_feeds_and_tabs_can_stay():
    assert printable("a\n\tb\r", lines=True) == "a\n\tb\\r" and printable("a\n\tb") == "a\\n\\tb"


def hostile_report(name: str) -> dict:
    report = example_report()
    report["rows"][2] |= {"name": name, "training": {"steps": 1, "seconds": 1.0, "device": name}}
    report["runs"][0]["name"] = name
    report["notes"].append(f"a note on {name}")
    report["prompts"]["first"][1] = name
    report["reference"] = report["command"] = report["teacher"]["path"] = name
    report["machine"]["cpu"] = name
    return report


WRITERS = {
    "terminal": plain,
    "markdown": markdown,
    "csv": csv_table,
    "model index": model_index,
    "html": lambda report: page(report, [torch.rand(3, 3, 8, 8)] * 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_writers_of_reports_clean_every_text(writer):
    text = WRITERS[writer](hostile_report(TOGETHER))
    assert not unsafe(text, "\n")
    expected = WRITERS[writer](hostile_report("name"))
    assert len(text.splitlines()) == len(expected.splitlines()), "no text adds a line"


@pytest.mark.slow
def test_files_of_reports_are_clean_and_the_json_is_exact(tmp_path):
    report = hostile_report(TOGETHER)
    write_report(report, [torch.rand(3, 3, 8, 8)] * 4, tmp_path)
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.suffix != ".png":
            assert not unsafe(file.read_text(encoding="utf-8"), "\n"), file.name
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rows"][2]["name"] == TOGETHER


@hostile
@pytest.mark.first_is_quick
def test_grids_draw_names_of_any_kind(name):
    report = hostile_report(name)
    assert grid(report["rows"], [torch.rand(3, 3, 8, 8)] * 4, report["prompts"]["first"]).width > 0


@pytest.mark.parametrize(
    "text", ["=cmd|'/C calc'!A0", "+1", "-1+2", "@SUM(1)", "\t=1", " =1", "\n=1", "|x", "%x", "＝1", "\u202e=1"]
)
def test_csv_cells_are_no_formulas(text):
    rows = list(csv.reader(io.StringIO(csv_table(hostile_report(text)))))
    cells = [cell for row in rows[1:] for cell in row if cell and not re.fullmatch(r"-?[\d.e+-]+", cell)]
    assert not [cell for cell in cells if cell.lstrip()[0] in "=+-@|%＝\t\r\n"]


@pytest.mark.parametrize(
    "name",
    [
        "x\n---\nlicense: mit",
        '"]\nlicense: mit',
        "x: {y",
        "'",
        "- a",
        "#",
        "!!python/name:os.system",
        "\u2028---\nlicense: mit",
        "\U0001f600 é",
    ],
)
def test_front_matter_of_model_cards_cannot_be_left(name):
    report = example_report()
    report["runs"] = report["runs"][:1]  # as `find_report` returns it
    report["runs"][0]["name"] = report["reference"] = name
    text = add_evaluation("---\nlibrary_name: diffusers\ntags: [a]\n---\n\n# title\n", report)
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert set(values) == {"library_name", "tags", "model-index"} and values["tags"] == ["a"]
    assert values["model-index"][0]["name"] == printable(name)
    assert body.startswith("\n# title\n")
    assert add_evaluation(text, None).count("---\n") == 2


@pytest.mark.parametrize(
    "card", ["", "no front matter", "---\n", "---\n[1]\n---\n", "---\n{a\n---\n", "---\n" + "[" * 500 + "\n---\n"]
)
def test_model_cards_of_strangers_are_refused_or_kept(card):
    report = example_report()
    report["runs"] = report["runs"][:1]
    try:
        assert "# title" in add_evaluation(card + "# title\n", report)
    except ValueError as error:
        assert "the front matter of README.md" in str(error)


def test_code_in_cards_cannot_be_left():
    assert code_span("a` <b> `\n# title\x1b") == "`a' <b> '\\n# title\\x1b`"


def show_warning(message, category, filename, lineno, file=None, line=None):
    """As Python does outside of pytest, which records warnings instead."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


@hostile
def test_commands_print_warn_log_and_fail_without_control_characters(capfd, name):
    """The streams are those of the process, as in a terminal."""

    def command() -> None:
        print(f"printed {name}")
        print(f"printed {name}", file=sys.stderr)
        warnings.warn(f"warned {name}", stacklevel=1)
        logging.getLogger("other").warning("logged %s", name)
        raise ValueError(f"failed {name}")

    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("other").addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show_warning
            assert run_cli(command) == 2
    finally:
        logging.getLogger("other").removeHandler(handler)
    out, err = capfd.readouterr()
    words = [out, *err.splitlines(keepends=True)]
    # A carriage return on standard error is one of progress bars; warnings and logs have none.
    allowed = "\n" + "\r" * (name == HOSTILE["return"])
    assert not [word for word in words if unsafe(word, allowed)]
    assert err.count("\r") <= 1
    assert "failed" in err.splitlines()[-1]


def test_progress_bars_keep_their_sequences(capsys):
    run_cli(lambda: sys.stderr.write("\r\x1b[A\x1b[Kbar\x1b[32mgreen\x1b[0m\n") and None)
    assert capsys.readouterr().err == "\r\x1b[A\x1b[Kbar\x1b[32mgreen\x1b[0m\n"


def test_streams_and_warnings_are_restored_after_a_command():
    before = (sys.stdout, sys.stderr, warnings.formatwarning, logging.getLogRecordFactory())
    run_cli(lambda: None)
    assert (sys.stdout, sys.stderr, warnings.formatwarning, logging.getLogRecordFactory()) == before


REFUSED = {
    **HOSTILE,
    "empty": "",
    "dot": ".",
    "dots": "..",
    "slash": "a/b",
    "absolute": "/a",
    "backslash": "a\\b",
    "hidden": ".cache",
    "lock": ".lock",
    "option": "-rf",
    "long option": "--help",
    "home": "~root",
    "report": "report",
    "report in capitals": "Report",
    **{name: name for name in OWN},
    "status in capitals": "Status.JSON",
    "device": "NUL",
    "device with an ending": "con.txt",
    "port": "com1",
    "printer": "LPT9",
    "final dot": "a.",
    "final blank": "a ",
    "first blank": " a",
    "long": "a" * 256,
    "long in bytes": "é" * 150,
}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.first_is_quick
def test_names_of_runs_are_refused(tmp_path, name):
    (tmp_path / "r.yaml").write_text(
        (RECIPES / "dmd.yaml").read_text().replace("name: pocket-dmd", "name: " + json.dumps(name))
    )
    values = yaml.safe_load((tmp_path / "r.yaml").read_text()) if "\ud800" not in name else {"name": name}
    assert folder_name_problem(values["name"], RESERVED)
    with pytest.raises(ValueError, match="name") as error:
        load(tmp_path / "r.yaml")
    assert not unsafe(str(error.value)) or "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a", "pocket-dmd", "v1.0", "été", "日本", "a b", "x" * 200, "console", "reports"])
def test_names_of_runs_are_accepted(name):
    assert folder_name_problem(name, ("report",)) is None


@pytest.mark.slow
def test_saved_recipes_hold_no_marks_of_direction(recipe, tmp_path):
    run = recipe()
    run.data.images = "photos\u202egnp"
    run.folder.mkdir(parents=True)
    save(run)
    text = (run.folder / RECIPE).read_text(encoding="utf-8")
    assert not unsafe(text, "\n") and yaml.safe_load(text)["data"]["images"] == "photos\u202egnp"


@pytest.mark.parametrize("name", FILE_NAMES.values(), ids=FILE_NAMES.keys())
@pytest.mark.first_is_quick
def test_images_with_hostile_names_are_read_and_named_in_visible_characters(tmp_path, capsys, name):
    folder = tmp_path / f"photos {name}"
    folder.mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8 + i)).save(folder / f"{name}{i}.png")
        (folder / f"{name}{i}.txt").write_text(f"a caption\x1b[2J {i}")
    assert len(ImageFolder(folder, True).rows) == 2
    assert image_warnings(folder) and not unsafe("".join(image_warnings(folder)))
    assert eval_main(["images", str(folder), str(folder), "--features", "pixels"]) == 0
    output = capsys.readouterr()
    assert not unsafe(output.out, "\n") and not unsafe(output.err, "\n\r")
    (folder / f"{name}0.png").write_bytes(b"damaged")
    assert eval_main(["images", str(folder), str(folder), "--features", "pixels"]) == 2
    assert not unsafe(capsys.readouterr().err, "\n\r")


def test_names_that_are_not_utf8_are_read_and_printed(tmp_path, capsys):
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/b\xff"))
    folder.mkdir()
    for i in range(2):
        file = Path(os.fsdecode(bytes(folder) + b"/\xe9%d.png" % i))
        Image.new("RGB", (8, 8)).save(file)
        file.with_suffix(".txt").write_text("a coat")
    images = ImageFolder(folder, True)
    assert [row.caption for row in images.rows] == ["a coat", "a coat"] and key(folder)
    assert set(pipeline_contents(str(folder), whole=True)) and key(images.content_key)
    assert (
        eval_main(["images", str(folder), str(folder), "--features", "pixels", "--json", str(folder / "f.json")]) == 0
    )
    assert (folder / "f.json").is_file()
    with atomic_write(folder / "\udcfe") as temporary:
        temporary.write_text("x")
    (folder / "model_index.json").write_text("{}")
    assert fewstep("describe", folder) == 2
    assert not unsafe(capsys.readouterr().err, "\n\r")


@pytest.mark.slow
def test_descriptions_hold_no_names_of_folders_unchanged(text_pipeline, tmp_path):
    hostile_name = "".join(FILE_NAMES.values())
    folder = tmp_path / f"teacher {hostile_name}"
    shutil.copytree(text_pipeline, folder)
    shutil.copytree(text_pipeline / "vae", folder / f"extra {hostile_name}")
    text = describe(str(folder))
    assert not unsafe(text, "\n") and "\nfake" not in text and "extra" in text


def test_tables_of_checks_are_clean():
    text = table([Check("a\x1b[2J", 0.1, 1.0, "note\u202e\nfake")])
    assert not unsafe(text, "\n") and len(text.splitlines()) == 2


def test_figures_for_the_terminal_are_clean():
    metrics = dict.fromkeys(
        ("kid", "precision", "recall", "density", "coverage", "frechet_interval", "reference_images")
    )
    metrics |= {"name": "FID", "frechet_distance": 1.0, "samples": 2, "features": "x", "warnings": ["in \x1b[2J\nfake"]}
    assert not unsafe(as_text(metrics), "\n") and "\nfake" not in as_text(metrics)


@hostile
@pytest.mark.first_is_quick
def test_records_with_hostile_names_are_read(make_run, name):
    run = make_run("student")
    file = run / "pipeline" / "distill.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": name, "method": name}))
    assert read_run(run).name == name
    file.write_text(json.dumps({"format": 1, "teacher": {}, "evaluation": {}, "calls": [], name: 1}))
    assert fewstep("eval", run) == 2


@pytest.mark.slow
def test_demo_names_are_clean(make_run, tmp_path):
    pytest.importorskip("gradio")
    run = make_run("student")
    file = run / "pipeline" / "distill.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "a\u202e<b>\x1b[2J"}))
    demo = Demo([run], torch.device("cpu"), "float32")
    shown = json.dumps(demo_page(demo, Store(tmp_path)).get_config_file(), default=str)
    assert "a\\\\u202e&lt;b&gt;\\\\x1b[2J" in shown
