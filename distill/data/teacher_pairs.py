"""Pairs of noise and the teacher's ODE endpoint from it, for methods that regress on them.

Pairs are stored in the run's cache as shards, each written atomically, so interrupted work continues. Pair i has its
own random seed, whichever process makes it: no pair is made twice, and more can be added later.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import Recipe
from distill.data import shards
from distill.data.batch_random import BatchRandom
from distill.data.dataset import Dataset, caption_rows
from distill.data.shards import Table, digest
from teachers.core.sampling import teacher_endpoint
from teachers.core.teacher import Teacher


def make(
    recipe: Recipe, teacher: Teacher, captions: Sequence[str], cond: Table, wanted: tuple[int, int], engine: Accelerator
) -> Table:
    """`wanted` pairs (how many, the teacher's steps for each); those that exist are kept, the processes share the rest.

    `cond` has one row for each of `captions`, which take turns. Raises nothing of its own: a shard that is damaged or
    from other settings is made again.
    """
    count, steps = wanted
    key = digest(recipe.teacher, recipe.seed, steps, list(captions))
    folder = recipe.folder / "cache" / f"pairs-{key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = torch.arange(count).split(shards.SHARD)
    files = [folder / f"{number:06d}.safetensors" for number in range(len(seeds))]
    mine = range(engine.process_index, len(files), engine.num_processes)
    missing = [number for number in mine if not shards.is_valid(files[number], key, len(seeds[number]))]
    total = sum(len(seeds[number]) for number in missing)
    bar = tqdm(total=total, desc="teacher pairs", unit="pair", disable=not (missing and engine.is_main_process))
    for number in missing:
        shard = make_shard(seeds[number], recipe, teacher, len(captions), cond, steps, bar, engine.device)
        shards.write(files[number], key, shard)
    bar.close()
    engine.wait_for_everyone()
    return shards.load(files, engine.device, count)


@torch.no_grad()
def make_shard(
    seeds: Tensor,
    recipe: Recipe,
    teacher: Teacher,
    captions: int,
    cond: Table,
    steps: int,
    bar: tqdm,
    device: torch.device,
) -> dict[str, Tensor]:
    prompt = caption_rows(seeds, captions)
    noise = torch.cat(
        [
            BatchRandom((recipe.seed, "pair", i), 0, 1, 1, torch.device("cpu")).normal(*teacher.shape)
            for i in seeds.tolist()
        ]
    )
    ends = []
    size = max(1, recipe.train.batch_size // recipe.train.accumulation)  # what fits in training fits here
    for z, rows in zip(noise.split(size), prompt.split(size), strict=True):
        ends.append(teacher_endpoint(teacher, z.to(device), cond.take(rows), steps, recipe.teacher.guidance).cpu())
        bar.update(len(z))
    return {"noise": noise, "endpoint": torch.cat(ends)}


def attach(dataset: Dataset, recipe: Recipe, teacher: Teacher, wanted: tuple[int, int], engine: Accelerator) -> Dataset:
    """`dataset` with the pairs that the method wants; itself where it wants none."""
    if not wanted[0]:
        return dataset
    return replace(dataset, pairs=make(recipe, teacher, dataset.captions, dataset.cond, wanted, engine))
