"""Limits of the machine: memory, open files, unwritable files. Scripts: full_disk.py, memory_limit.py, hosts.py."""

import json
import os
import resource

import pytest
import torch

from distill.data import shards
from distill.train import train
from distill.training.jsonl_log import JsonlLog, warn_if_unwritable
from teachers.support.errors import run_cli


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**58), lambda: bytearray(2**62)])
def test_failed_allocation_is_an_error_without_traceback(allocate, capsys):
    def command() -> None:
        allocate()

    assert run_cli(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory (") and line.endswith(
        "use smaller batches (train.accumulation, --batch-size)"
    )


@pytest.mark.slow
def test_more_shards_than_open_files_are_allowed(tmp_path, monkeypatch):
    """A large table stays memory-mapped, which needs no open files."""
    files = [tmp_path / f"{number:03d}.safetensors" for number in range(150)]
    for number, file in enumerate(files):
        shards.write(file, "key", {"x": torch.full((2, 3), float(number))})
    monkeypatch.setattr(shards, "RESIDENT", 0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        assert all(shards.is_valid(file, "key", 2) for file in files)
        table = shards.load(files, torch.device("cpu"))
        assert table.gather(torch.tensor([0, 299]))["x"][:, 0].tolist() == [0.0, 149.0]
        assert not table.resident
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_log_that_cannot_grow_costs_the_line_and_a_warning(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl", 0)
    log.append({"step": 2})
    before_line = (tmp_path / "log.jsonl").read_text()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.warns(UserWarning, match=r"log\.jsonl \(File too large\)"):
            log.append({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.last == 3 and (tmp_path / "log.jsonl").read_text() == before_line


def test_log_whose_file_system_became_read_only_costs_the_line_and_a_warning(tmp_path, monkeypatch):
    log = JsonlLog(tmp_path / "log.jsonl", 0)
    log.append({"step": 1})

    def refused(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    with pytest.warns(UserWarning, match="Read-only file system"):
        log.append({"step": 2})


def test_error_of_a_tracker_costs_a_warning():
    with (
        pytest.warns(UserWarning, match="the record could not be written .*No space"),
        warn_if_unwritable("the record"),
    ):
        raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_unwritable_grid_log_and_cache_of_the_teacher_cost_warnings(recipe):
    run = recipe("train.steps=2", "train.evaluate_every=1")
    run.folder.mkdir(parents=True)
    for name in ("cache", "samples"):
        (run.folder / name).write_text("a file, where a folder should be")
    (run.folder / "history.jsonl").mkdir()
    with pytest.warns(UserWarning) as warned:
        folder = train(run)
    messages = " ".join(str(warning.message) for warning in warned)
    assert "the next start computes teacher.safetensors again" in messages
    assert "the grid of samples of step 1 could not be written" in messages
    assert "history.jsonl" in messages
    assert json.loads((folder / "distill.json").read_text())["cost"]["steps"] == 2
