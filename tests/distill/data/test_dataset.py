"""Datasets: reading rows in advance, and plans."""

import time

import pytest
import torch
from PIL import Image

from distill.config.sections import DataRecipe
from distill.data import shards
from distill.data.batch_random import BatchRandom
from distill.data.dataset import Dataset
from distill.data.plan import plan
from distill.data.shards import Table

CPU = torch.device("cpu")


def test_rows_in_files_are_read_one_batch_ahead(monkeypatch):
    monkeypatch.setattr(shards, "RESIDENT", 0)
    data = Dataset(["a"], Table([{"x": torch.randn(9, 2)}], CPU), torch.arange(9))
    calls = []

    class CountingTable(Table):
        def gather(self, rows):
            calls.append(rows)
            return super().gather(rows)

    data.cond.__class__ = CountingTable
    batches = data.micro_batches(BatchRandom((0, step), 0, 4, 4, CPU) for step in range(3))
    first = next(batches)
    for _ in range(500):  # the second batch is read in advance, the third is not
        if len(calls) == 2:
            break
        time.sleep(0.01)
    assert len(calls) == 2
    for step, batch in enumerate([first, *batches]):
        assert torch.equal(batch.cond["x"], data.batch(BatchRandom((0, step), 0, 4, 4, CPU)).cond["x"])


def test_error_while_reading_ahead_is_raised_in_the_loop(monkeypatch):
    monkeypatch.setattr(shards, "RESIDENT", 0)
    data = Dataset(["a"], Table([{"x": torch.randn(3, 2)}], CPU), torch.tensor([5]))  # a row that does not exist
    batches = data.micro_batches([BatchRandom((0,), 0, 4, 4, CPU)])
    with pytest.raises(IndexError):
        next(batches)


def test_methods_of_prompts_use_the_captions_of_images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 32)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    planned = plan(DataRecipe(images=str(folder)), False, True)
    assert planned.images is None and planned.captions == ["number 0", "number 1", "number 2"]
    for latents in (False, True):
        (note,) = plan(DataRecipe(images=str(folder), prompts="pocket"), latents, True).notes
        assert note == "data.prompts pocket is not used, because the captions of data.images are the prompts"
    assert not plan(DataRecipe(images="pocket", prompts="pocket"), True, True).notes
