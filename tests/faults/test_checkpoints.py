"""Checkpoints that a disk has damaged, that are somebody else's, that do not fit on the disk."""

import hashlib
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

FILES = (checkpoint.WEIGHTS, checkpoint.EMA, checkpoint.OPTIMIZERS, checkpoint.META, checkpoint.MANIFEST)
NO_MANIFEST = (checkpoint.MANIFEST, "gone")  # then it is no checkpoint of ours: a test of its own


def store(folder, *steps):
    for step in steps:
        state = checkpoint.Checkpoint(
            {"a": torch.full((64,), float(step))}, {"b": torch.ones(64)}, {"student": {"x": step}}, {"step": step}
        )
        checkpoint.save(folder, state, keep=9)


@pytest.mark.parametrize(
    ("name", "damage"), [case for case in product(FILES, ("flip", "cut", "gone")) if case != NO_MANIFEST]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, name, damage):
    store(tmp_path, 1, 2)
    file = tmp_path / "00000002" / name
    whole = file.read_bytes()
    middle = whole.index(b"1") if name == checkpoint.MANIFEST else len(whole) // 2
    if damage == "gone":
        file.unlink()
    else:
        rest = bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :] if damage == "flip" else b""
        file.write_bytes(whole[:middle] + rest)
    with pytest.warns(UserWarning, match=r"00000002 is damaged .* going on from the one before"):
        checkpoint.quarantine_damaged(tmp_path)
    assert checkpoint.load_newest(tmp_path).meta["step"] == 1
    assert (tmp_path / "damaged-00000002").is_dir()


def test_where_every_checkpoint_is_damaged_the_run_is_refused(tmp_path):
    store(tmp_path, 1)
    (tmp_path / "00000001" / checkpoint.WEIGHTS).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"00000001 is damaged \(weights.safetensors is not what was written\)"):
        checkpoint.quarantine_damaged(tmp_path)


@pytest.mark.parametrize("manifest", [None, {"format": 99, "files": {}}])
def test_a_foreign_checkpoint_is_refused_by_name(tmp_path, manifest):
    store(tmp_path, 1, 2)
    file = tmp_path / "00000002" / checkpoint.MANIFEST
    file.unlink() if manifest is None else file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"00000002 (has no manifest|is a checkpoint of format 99)"):
        checkpoint.quarantine_damaged(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_pickle_is_executed_even_with_a_matching_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(tmp_path, 1)
    file = tmp_path / "00000001" / checkpoint.OPTIMIZERS
    torch.save({"student": Bomb()}, file)
    manifest = file.with_name(checkpoint.MANIFEST)
    values = json.loads(manifest.read_text())
    values["files"][file.name] = {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    manifest.write_text(json.dumps(values))
    checkpoint.quarantine_damaged(tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load_newest(tmp_path)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@contextmanager
def room_for(size: int):
    """No file of this process may grow beyond `size` bytes: the kernel refuses the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [100_000, 3_600_000])  # in the first file, and in the optimizers'
def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on(recipe, monkeypatch, capsys, size):
    save = checkpoint.save
    refused = []

    def in_need(folder, state, *args):
        if state.meta["step"] != 2:
            return save(folder, state, *args)
        with room_for(size):
            try:
                return save(folder, state, *args)
            except ValueError as error:
                refused.append(str(error))
                assert checkpoint.steps(folder) == [1]
                assert not list(folder.glob(".*"))
                raise

    monkeypatch.setattr(checkpoint, "save", in_need)
    run = recipe("train.steps=3")
    train(run)
    assert len(refused) == 1 and "the checkpoint of step 1 is kept" in refused[0]
    assert checkpoint.steps(run.folder / "checkpoints") == [1, 3]
    stopping = recipe("train.steps=3", "train.on_failed_save=stop", name="stopping")
    with pytest.raises(ValueError, match="checkpoint of step 2 could not be written"):
        train(stopping)
    assert checkpoint.steps(stopping.folder / "checkpoints") == [1]
