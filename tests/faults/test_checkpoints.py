"""Damaged checkpoints, checkpoints of other formats, and full disks."""

import json
import os
import pickle
import resource
import signal
from contextlib import contextmanager
from itertools import product

import pytest
import torch

from distill.train import train
from distill.training import checkpoint
from teachers.support.checksums import MANIFEST, seal, write_manifest

FILES = (checkpoint.WEIGHTS, checkpoint.EMA, checkpoint.OPTIMIZERS, checkpoint.META, MANIFEST)


def store(folder, *steps):
    for step in steps:
        state = checkpoint.Checkpoint(
            {"a": torch.full((64,), float(step))}, {"b": torch.ones(64)}, {"student": {"x": step}}, {"step": step}
        )
        checkpoint.save(folder, state, keep=9)


@pytest.mark.parametrize(("name", "damage"), list(product(FILES, ("flip", "cut", "gone"))))
@pytest.mark.first_is_quick
def test_damaged_checkpoint_is_renamed_and_the_previous_one_used(tmp_path, name, damage):
    store(tmp_path, 1, 2)
    file = tmp_path / "00000002" / name
    content = file.read_bytes()
    position = content.index(b"1") if name == MANIFEST else len(content) // 2
    if damage == "gone":
        file.unlink()
    else:
        rest = bytes([content[position] ^ 0xFF]) + content[position + 1 :] if damage == "flip" else b""
        file.write_bytes(content[:position] + rest)
    with pytest.warns(UserWarning, match=r"00000002 is damaged .* the previous one is used"):
        checkpoint.quarantine_damaged(tmp_path)
    assert checkpoint.load_newest(tmp_path).meta["step"] == 1
    assert (tmp_path / "damaged-00000002").is_dir()


def test_run_with_damaged_checkpoints_only_is_rejected(tmp_path):
    store(tmp_path, 1)
    (tmp_path / "00000001" / checkpoint.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r"00000001 is damaged \(weights.safetensors has changed since it was written\)"
    ):
        checkpoint.quarantine_damaged(tmp_path)


@pytest.mark.parametrize("manifest", [seal({"format": 99, "files": {}}), {"format": 1, "files": {}}])
def test_checkpoint_of_another_format_is_rejected(tmp_path, manifest):
    store(tmp_path, 1, 2)
    (tmp_path / "00000002" / MANIFEST).write_text(json.dumps(manifest))
    for read in (checkpoint.quarantine_damaged, checkpoint.newest_meta):
        with pytest.raises(ValueError, match=r"00000002 must be a checkpoint of format 2, got (99|1); resume with"):
            read(tmp_path)


def test_checkpoints_under_each_others_names_are_damaged(tmp_path):
    store(tmp_path, 1, 2, 3)
    (tmp_path / "00000003").rename(tmp_path / "x")
    (tmp_path / "00000002").rename(tmp_path / "00000003")
    (tmp_path / "x").rename(tmp_path / "00000002")
    assert checkpoint.newest_meta(tmp_path) == {"step": 1}
    with pytest.warns(UserWarning, match=r"is damaged \(manifest.json is that of step"):
        checkpoint.quarantine_damaged(tmp_path)
    assert checkpoint.load_newest(tmp_path).meta["step"] == 1


def test_nothing_is_renamed_if_no_checkpoint_is_valid(tmp_path):
    store(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / f"0000000{step}" / checkpoint.META).write_text("{}")
    assert checkpoint.newest_meta(tmp_path) is None
    with pytest.raises(ValueError, match=r"00000001 is damaged .*restore one from a copy, or give this run another"):
        checkpoint.quarantine_damaged(tmp_path)
    assert checkpoint.saved_steps(tmp_path) == [1, 2]


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_not_executed_even_with_a_valid_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(tmp_path, 1)
    file = tmp_path / "00000001" / checkpoint.OPTIMIZERS
    torch.save({"student": Exploit()}, file)
    write_manifest(file.parent, {"format": checkpoint.FORMAT, "step": 1})
    checkpoint.quarantine_damaged(tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load_newest(tmp_path)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@contextmanager
def limited_file_size(size: int):
    """No file of this process can grow beyond `size` bytes; larger writes fail, as on a full disk."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, previous[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [100_000, 3_600_000])  # fails in the first file, and in the optimizers' file
@pytest.mark.slow
@pytest.mark.first_by_default
def test_full_disk_keeps_the_previous_checkpoint_and_training_continues(recipe, monkeypatch, capsys, size):
    save = checkpoint.save
    errors = []

    def save_with_limit(folder, state, *args):
        if state.meta["step"] != 2:
            return save(folder, state, *args)
        with limited_file_size(size):
            try:
                return save(folder, state, *args)
            except ValueError as error:
                errors.append(str(error))
                assert checkpoint.saved_steps(folder) == [1]
                assert not list(folder.glob(".*"))
                raise

    monkeypatch.setattr(checkpoint, "save", save_with_limit)
    run = recipe("train.steps=3")
    train(run)
    assert len(errors) == 1 and "the checkpoint of step 1 is kept" in errors[0]
    assert checkpoint.saved_steps(run.folder / "checkpoints") == [1, 3]
    stopping = recipe("train.steps=3", "train.on_failed_save=stop", name="stopping")
    with pytest.raises(ValueError, match="checkpoint of step 2 could not be written"):
        train(stopping)
    assert checkpoint.saved_steps(stopping.folder / "checkpoints") == [1]
