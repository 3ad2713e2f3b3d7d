"""Options and files of comparisons: users' mistakes, the help, and what the command imports."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import eval.compare
from eval.compare import _without_repeated, command_line
from eval.config.options import Options
from eval.pipelines.cached import MeasuredRow
from eval.pipelines.jobs import Job
from tests.commands import eval_main as main

MISTAKES = {
    "no folder": (lambda make, tmp: [tmp / "nowhere"], [], "does not exist"),
    "no pipeline": (lambda make, tmp: [tmp], [], "contains no pipeline"),
    "other format": (lambda make, tmp: [make(format=7)], [], "must have format 1"),
    "no calls": (lambda make, tmp: [make(calls=[])], [], "must list at least one call"),
    "no method": (lambda make, tmp: [make(method=None)], [], 'must have the entry "method"'),
    "no steps": (
        lambda make, tmp: [make(teacher={"path": "x", "call": {}})], [], 'must have the entry "num_inference_steps"',
    ),
    "teacher missing": (
        lambda make, tmp: [make(teacher={"path": str(tmp), "call": {"num_inference_steps": 2}})], [],
        "must be a diffusers pipeline",
    ),
    "two teachers": (
        lambda make, tmp: [make("a"), make("b", teacher={"path": "x", "call": {"num_inference_steps": 2}})], [],
        "all runs of a comparison must have one teacher",
    ),
    "two features": (
        lambda make, tmp: [make("a"), make("b", evaluation={"prompts": "pocket", "features": "inception"})], [],
        "select one with --features",
    ),
    "unknown argument in a call": (
        lambda make, tmp: [make(calls=[{"num_steps": 1, "call": {"steps": 1}}])], [], 'takes no argument "steps"',
    ),
    "no prompts file": (lambda make, tmp: [make()], ["--prompts", "missing.txt"], "missing.txt"),
    "prompts needed": (lambda make, tmp: [make()], ["--prompts", "none"], "needs prompts"),
    "features": (lambda make, tmp: [make()], ["--features", "dino"], "feature extractor"),
    "reference": (lambda make, tmp: [make()], ["--reference", "missing.npz"], "there is no reference"),
    "samples": (lambda make, tmp: [make()], ["--samples", "1"], "--samples must be at least 2, got 1"),
    "batch size": (lambda make, tmp: [make()], ["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    "size": (lambda make, tmp: [make()], ["--size", "0"], "--size must be at least 1, got 0"),
    "device": (lambda make, tmp: [make()], ["--device", "abacus"], "is not available here"),
    "precision": (lambda make, tmp: [make()], ["--precision", "int4"], "--precision must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.first_is_quick
def test_mistakes_are_one_sentence_and_exit_code_2(mistake, make_run, tmp_path, capsys):
    runs, options, sentence = MISTAKES[mistake]
    out = tmp_path / "out"
    assert main([*map(str, runs(make_run, tmp_path)), "--out", str(out), *options]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not out.exists()


def test_mistakes_in_files(make_run, tmp_path, capsys):
    run, out = make_run(), ["--out", str(tmp_path / "out"), "--samples", "4"]
    np.savez(tmp_path / "three.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert main([str(run), "--reference", str(tmp_path / "three.npz"), *out]) == 2
    assert 'has 3 dimensions and the features "pixels" have 192' in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main([str(run), "--prompts", str(tmp_path / "empty.txt"), *out]) == 2
    assert "empty.txt" in capsys.readouterr().err
    (run / "pipeline/distill.json").write_text("{")
    assert main([str(run), *out]) == 2
    assert "not valid JSON" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([str(run), "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"runs": []}, "needs at least one run, got none"),
        ({"few_steps": (1, 0)}, r"few_steps must be at least 1, got \[1, 0\]"),
        ({"steps": "1,x"}, '--steps must be whole numbers of at least 1, such as 4 or 1,2,4, got "1,x"'),
    ],
)
def test_options_made_in_python_are_checked(options, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        Options(**{"runs": ["x"], "out": tmp_path} | options)


@pytest.mark.slow
def test_help_and_usage_from_a_shell():
    text = subprocess.run([sys.executable, "-m", "eval", "--help"], capture_output=True, text=True, check=True).stdout
    for option in (
        "--out",
        "--samples",
        "--batch-size",
        "--seed",
        "--device",
        "--features",
        "--reference",
        "--prompts",
        "--baseline",
        "--compile",
        "--inception-weights",
    ):
        assert option in text
    assert subprocess.run([sys.executable, "-m", "eval"], capture_output=True, check=False).returncode == 2


def test_eval_never_imports_distill():
    for file in Path(eval.compare.__file__).parent.rglob("*.py"):
        for line in file.read_text().splitlines():
            assert not line.strip().startswith(("import distill", "from distill")), f"{file}: {line}"


def test_options_are_checked_without_importing_torch():
    code = "import sys, eval.config.options, eval.config.protocol; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("started", "argv", "shown"),
    [
        (["/home/me/v/bin/python3", "/home/me/v/bin/fewstep", "eval", "a b"], 1, "fewstep eval 'a b'"),
        (["C:/python.exe", "C:/Scripts/fewstep.exe", "eval", "a"], 1, "fewstep eval a"),
        (["/usr/bin/python3", "-m", "eval", "a"], 2, "python -m eval a"),
        (["/usr/bin/python3", "-X", "utf8", "mine.py", "a"], 3, "python -X utf8 mine.py a"),
    ],
)
def test_the_command_of_a_report_has_no_location_of_the_interpreter(monkeypatch, started, argv, shown):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", started[argv:])
    assert command_line() == shown


def test_the_teacher_at_its_usual_steps_is_one_row_if_its_solver_stays():
    def row(name, steps, fast=False, solver=None):
        job = Job(name, "teacher", steps, Path(), {}, fast_solver=fast)
        return MeasuredRow(job, SimpleNamespace(figures={"solver": solver}), False)

    usual, student = row("usual", 4), MeasuredRow(Job("s", "dmd", 4, Path(), {}), SimpleNamespace(figures={}), False)
    few, same, other = row("few", 2, True), row("same", 4, True), row("other", 4, True, "DPM-Solver++")
    assert _without_repeated([usual, few, same, other, student]) == [usual, few, other, student]
