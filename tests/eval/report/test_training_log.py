"""Training curves from the logs of runs, and energy from the counters of drivers."""

import json
from dataclasses import replace

import pytest
import torch

from eval.pipelines.energy import Energy, counters
from eval.pipelines.runs import read_run
from eval.report.training_log import MOST, curves


def write(path, entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")


def test_curves_are_read_from_history_and_log(make_run):
    folder = make_run("mine")
    write(
        folder / "history.jsonl",
        [{"step": i, "seconds": 10.0 * i, "held_out_frechet": {"1": 5.0 - i, "2": 4.0 - i}} for i in range(3)],
    )
    write(
        folder / "log.jsonl",
        [{"step": i, "seconds": i, "fake_score/loss": 1.0 / (i + 1), "student/loss": 3} for i in range(1000)],
    )
    with (folder / "log.jsonl").open("a") as log:
        log.write(
            '{"step": 1000, "seconds": 1000, "fake_score/loss": NaN}\n{"step": 10'
        )  # NaN, and a line cut by an interruption
    found = curves([read_run(folder)])
    assert [(c["figure"], c["run"]) for c in found] == [
        ("Held-out Frechet distance", "mine, 1 step"),
        ("Held-out Frechet distance", "mine, 2 steps"),
        ("Fake score's loss", "mine"),
    ]
    assert found[0]["seconds"] == [0, 10, 20]
    assert found[1]["values"] == [4, 3, 2]
    assert MOST / 2 <= len(found[2]["values"]) <= MOST
    json.dumps(found, allow_nan=False)


def test_only_comparable_distances_are_shown(make_run):
    folder = make_run("mine")
    distances = [(30.0, "a"), (29.0, "a"), (20.0, "b"), (19.0, "b")]
    write(
        folder / "history.jsonl",
        [
            {"step": i, "seconds": i, "held_out_frechet": {"1": d}, "evaluation": e}
            for i, (d, e) in enumerate(distances)
        ],
    )
    assert [curve["values"] for curve in curves([read_run(folder)])] == [[20, 19]]


def test_runs_without_logs_have_no_curves(make_run):
    run = read_run(make_run("mine"))
    assert curves([run]) == []
    (run.folder.parent / "history.jsonl").write_bytes(b"\xff\xfe")
    assert curves([run, replace(run, name="other")]) == []


@pytest.fixture
def rapl(tmp_path):
    """Writes the values of RAPL counters into a folder and returns the folder."""

    def write_counters(*joules):
        for number, value in enumerate(joules):
            folder = tmp_path / f"intel-rapl:{number}"
            folder.mkdir(exist_ok=True)
            (folder / "energy_uj").write_text(f"{int(value * 1e6)}\n")

        return tmp_path

    return write_counters


def test_energy_is_the_difference_of_the_counters(rapl):
    cpu = torch.device("cpu")
    with Energy(cpu, rapl(10, 20)) as used:
        rapl(12.5, 21)
    assert used.joules == pytest.approx(3.5)
    with Energy(cpu, rapl(12.5, 21)) as overflowed:
        rapl(1, 22)
    assert overflowed.joules is None, "a counter restarted at zero"


def test_energy_is_none_without_counters(tmp_path):
    with Energy(torch.device("cpu"), tmp_path) as used:
        pass
    assert used.joules is None
    assert counters(torch.device("meta")) == {}
