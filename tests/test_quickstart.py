"""`fewstep quickstart` with few steps: two students and one report, which a second run reuses."""

import json
import subprocess
import sys
import time

import pytest


@pytest.mark.slow
def test_quickstart_trains_reports_and_is_reused(tmp_path):
    command = [sys.executable, "-m", "distill.quickstart", "--output", str(tmp_path / "out"), "--samples", "20"]
    command += ["train.steps=3", "train.batch_size=4", "train.evaluate_every=0", "train.evaluate_samples=10"]
    command += ["train.evaluate_teacher_steps=2"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["teacher"] * 5 + ["dmd", "scm", "scm"]
    keys = "name method num_steps nfe latency_ms images_per_second peak_memory_mb frechet_distance samples"
    assert all(row[key] is not None for row in report["rows"] for key in [*keys.split(), "prompt_agreement"])
    assert [row["nfe"] for row in report["rows"]] == [100, 2, 4, 8, 16, 1, 1, 2]
    assert (tmp_path / "out/report/report.html").is_file() and "report.html" in first.stdout
    start = time.perf_counter()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished") == 2 and again.stderr.count("measured before") == 8
    assert time.perf_counter() - start < 60
