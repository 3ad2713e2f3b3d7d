"""A small part of the fuzz (`tests/faults/fuzz.py`), and what it must detect.

python -m tests.faults.fuzz models --count 2000
"""

import json
import os
import random
import shutil

import pytest

from tests.faults import fuzz, fuzz_inputs
from tests.faults.fuzz_inputs import Case
from tests.faults.mutations import ANY, BINARY, STRUCTURED, damage, inject_code

CASES = 3
QUICK = {
    "models": (Case.describe,),
    "runs": (Case.export, Case.sample),
    "data": (Case.eval_images, Case.eval_stats),
    "references": (Case.eval_statistics, Case.protocol),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.make_inputs(folder, models=("Stable Diffusion 1.5", "pixels, v"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz_inputs.KINDS)
def test_damaged_input_ends_with_one_sentence_or_works(work, monkeypatch, kind):
    chosen = {command: 1 for command in QUICK[kind]}
    monkeypatch.setitem(fuzz_inputs.COMMANDS, kind, chosen)
    fuzz.check_undamaged(kind, work)
    records = [fuzz.run_case(kind, 7, index, work, pipes=False) for index in range(CASES)]
    ran = [record for record in records if record is not None]
    problems = [record for record in ran if "problem" in record]
    assert not problems, json.dumps(problems[:3], indent=2)
    assert ran and {record["status"] for record in ran} <= {0, 2}


def judged(tmp_path, command):
    case = tmp_path / "case"
    for name in (*fuzz.ALLOWED, "home", "cwd", "in"):
        (case / name).mkdir(parents=True)
    before = fuzz.snapshot(case, [case / "out", case / "tmp"])
    status = fuzz.fork(case, lambda: command(case))
    text = "".join((case / "tmp" / stream).read_text() for stream in ("stdout", "stderr"))
    after = fuzz.snapshot(case, [case / "out", case / "tmp"])
    return fuzz.judge(status, "command", text, (case / "canary").exists(), before, after)


def fail(case):
    raise RuntimeError("a bug")


def say(text, code):
    def command(case):
        print(text, end="", flush=True)
        return code

    return command


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (fail, "traceback"),
        (say("unexpected error: TypeError: x; please report it", 1), "unexpected"),
        (say("", 2), "silent"),
        (say("error: one\nerror: two\n", 2), "silent"),
        (say("error: one\n", 0), "silent"),
        (say("", 1), "unexpected"),
        (say("a line\n" * 50 + "error: x\n", 2), "noise"),
        (lambda case: os.kill(os.getpid(), 9), "crash"),
        (lambda case: (case / "in" / "new").write_text("") and 0, "outside"),
        (lambda case: (case / "canary").write_text("ran") and 0, "code"),
    ],
)
@pytest.mark.first_is_quick
def test_every_problem_is_detected(tmp_path, command, problem):
    assert judged(tmp_path, command).startswith(problem)


@pytest.mark.parametrize(
    "command", [say("", 0), say("error: a sentence\n", 2), lambda c: (c / "out" / "x").write_text("") and 0]
)
@pytest.mark.first_is_quick
def test_right_ends_are_no_problem(tmp_path, command):
    assert judged(tmp_path, command) is None


@pytest.mark.slow
def test_case_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 1)

    def hang(case):
        while True:
            pass

    assert judged(tmp_path, hang) == "hang"


def test_cases_are_the_same_every_time(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / f"{number}.json").write_text(json.dumps({"a": [1, 2, {"b": "c"}], "d": 0.5}))
    results = []
    for copy in "ab":
        shutil.copytree(source, tmp_path / copy)
        done = damage(random.Random(3), tmp_path / copy, tmp_path / "canary")
        results.append((done, {f.name: f.read_bytes() for f in (tmp_path / copy).rglob("*") if f.is_file()}))
    assert results[0] == results[1] and results[0][0]


def test_every_kind_of_damage_changes_a_folder(tmp_path):
    for number, change in enumerate((*ANY, *STRUCTURED[".json"], *BINARY[".png"], inject_code)):
        folder = tmp_path / str(number) / "model"
        folder.mkdir(parents=True)
        for name in "ab":
            (folder / f"{name}.json").write_text(json.dumps({name: list(range(50)), "_class_name": "X"}))
        before = fuzz.snapshot(folder.parent, [])
        words = (tmp_path / "canary",) if change is inject_code else ()
        change(random.Random(5), folder / "a.json", *words)
        assert fuzz.snapshot(folder.parent, []) != before, change.__name__
