"""Writing and removing checkpoints."""

import pytest
import torch

from distill.train import train
from distill.training import checkpoint
from tests.runs import interrupted


def save_steps(folder, steps, **options):
    state = checkpoint.Checkpoint({"a": torch.ones(2)}, {"b": torch.ones(2)}, {"student": {"x": 1}}, {"seconds": 1.0})
    for step in steps:
        state.meta["step"] = step
        checkpoint.save(folder, state, **options)


def test_newest_checkpoints_and_multiples_of_keep_every_are_kept(tmp_path):
    save_steps(tmp_path, range(1, 8), keep=2, keep_every=3)
    assert checkpoint.saved_steps(tmp_path) == [3, 6, 7]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000006", "00000007"]


def test_incomplete_checkpoints_are_removed(tmp_path):
    save_steps(tmp_path, (1, 2, 3), keep=2)
    assert checkpoint.saved_steps(tmp_path) == [2, 3]
    (tmp_path / ".00000009.tmp").mkdir()  # left by a process that was killed while saving
    checkpoint.quarantine_damaged(tmp_path)
    assert not (tmp_path / ".00000009.tmp").exists()
    assert checkpoint.load_newest(tmp_path).meta["step"] == 3


@pytest.mark.exhaustive
def test_a_resumed_run_says_that_its_number_of_threads_differs(two_step_recipe, text_pipeline, monkeypatch, capsys):
    whole = two_step_recipe("stable_diffusion", text_pipeline, "train.checkpoint_every=1")
    train(whole)
    parts = interrupted(whole, "parts")
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: before + 1)
    train(parts)
    assert f"the run had {before} CPU threads before and has {before + 1} now" in capsys.readouterr().out
