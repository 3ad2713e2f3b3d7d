"""`fewstep quickstart` with few steps: two students and one report, which a second run reuses."""

import json
import subprocess
import sys
import time

import pytest

from tests.commands import eval_main, fewstep
from tests.forks import Fork


@pytest.fixture
def comparisons(monkeypatch, tmp_path) -> list[Fork]:
    """The processes of the comparisons, which are forks that time few calls."""
    started: list[Fork] = []
    run = subprocess.run

    def fork(command, **options):
        if command[:3] != [sys.executable, "-m", "eval"]:
            return run(command, **options)
        started.append(Fork(tmp_path / f"comparison{len(started)}", eval_main, command[3:]))
        return subprocess.CompletedProcess(command, started[-1].wait(200))

    monkeypatch.setattr(subprocess, "run", fork)
    return started


@pytest.mark.slow
def test_quickstart_trains_reports_and_is_reused(tmp_path, capfd, comparisons):
    words = ["quickstart", "--output", tmp_path / "out", "--samples", 20, "teacher.num_steps=5"]
    words += ["train.steps=3", "train.batch_size=4", "train.evaluate_every=0", "train.evaluate_samples=10"]
    words += ["train.evaluate_teacher_steps=2"]
    code, first = fewstep(*words), capfd.readouterr()
    assert code == 0, first.err + comparisons[0].error
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["teacher"] * 5 + ["dmd", "scm", "scm"]
    keys = "name method num_steps nfe latency_ms images_per_second peak_memory_mb frechet_distance samples"
    assert all(row[key] is not None for row in report["rows"] for key in [*keys.split(), "prompt_agreement"])
    assert [row["nfe"] for row in report["rows"]] == [10, 2, 4, 8, 16, 1, 1, 2]
    assert (tmp_path / "out/report/report.html").is_file() and "report.html" in first.out
    start = time.perf_counter()
    code, again = fewstep(*words), capfd.readouterr()
    assert code == 0, again.err + comparisons[1].error
    assert again.out.count("is finished") == 2 and comparisons[1].error.count("measured before") == 8
    assert time.perf_counter() - start < 60
