"""Pairs of noise and the teacher's ODE endpoint from it, made ahead of time for methods that regress on them.

    accelerate launch -m distill.pairs recipes/pocket/dmd_regression.yaml [key=value ...]

Training makes the missing ones itself; made here, any number of processes share the work. They lie in the run's cache
as shards, each written whole or not at all, so that the same command goes on after a kill. Pair i has noise of its own
seed, whatever made it, so that none is made twice and more can be added later.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import DTYPES, Recipe, asked, options
from distill.config.registry import TEACHERS, find
from distill.data import dataset as data
from distill.data import shards
from distill.data.draws import Draws
from distill.data.shards import Table, digest
from distill.training.engine import PATIENCE
from distill.training.run_folder import claim
from teachers.core.sampling import follow
from teachers.core.teacher import Teacher
from teachers.support.errors import speak


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
    missing = [number for number in mine if not shards.sound(files[number], key, len(seeds[number]))]
    total = sum(len(seeds[number]) for number in missing)
    bar = tqdm(total=total, desc="teacher pairs", unit="pair", disable=not (missing and engine.is_main_process))
    for number in missing:
        shard = _shard(seeds[number], recipe, teacher, len(captions), cond, steps, bar, engine.device)
        shards.write(files[number], key, shard)
    bar.close()
    engine.wait_for_everyone()
    return shards.load(files, engine.device, count)


@torch.no_grad()
def _shard(
    seeds: Tensor,
    recipe: Recipe,
    teacher: Teacher,
    captions: int,
    cond: Table,
    steps: int,
    bar: tqdm,
    device: torch.device,
) -> dict[str, Tensor]:
    prompt = data.turns(seeds, captions)
    noise = torch.cat(
        [Draws((recipe.seed, "pair", i), 0, 1, 1, torch.device("cpu")).normal(*teacher.shape) for i in seeds.tolist()]
    )
    ends = []
    size = max(1, recipe.train.batch_size // recipe.train.accumulation)  # what fits in training fits here
    for z, rows in zip(noise.split(size), prompt.split(size), strict=True):
        ends.append(follow(teacher, z.to(device), cond.take(rows), steps, recipe.teacher.guidance).cpu())
        bar.update(len(z))
    return {"noise": noise, "endpoint": torch.cat(ends)}


def attach(
    dataset: data.Dataset, recipe: Recipe, teacher: Teacher, wanted: tuple[int, int], engine: Accelerator
) -> data.Dataset:
    """`dataset` with the pairs that the method wants; itself where it wants none."""
    if not wanted[0]:
        return dataset
    return replace(dataset, pairs=make(recipe, teacher, dataset.captions, dataset.cond, wanted, engine))


def command() -> None:
    recipe = asked(__doc__)
    cls, method = options(recipe)
    wanted = cls.pairs(method)
    if not wanted[0]:
        raise ValueError(
            f"the method of {recipe.name} wants no teacher pairs as it is set (DMD does with "
            "method.regression_weight above 0)"
        )
    family = find(TEACHERS, recipe.teacher.family)
    plan = data.plan(recipe.data, cls.needs_latents(method), family.guided)
    patience = InitProcessGroupKwargs(timeout=PATIENCE)  # some processes may have a shard less to make
    engine = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    with claim(recipe.folder) if engine.is_main_process else nullcontext():
        teacher = family.load(
            recipe.teacher.path, engine.device, DTYPES[recipe.teacher.precision], recipe.teacher.sigma_data
        )
        dataset = data.prepare(plan, teacher, recipe, engine)
        made = make(recipe, teacher, dataset.captions, dataset.cond, wanted, engine)
        files = -(-len(made) // shards.SHARD)
        engine.print(f"{len(made):,} pairs in {files} shards under {recipe.folder / 'cache'}")


if __name__ == "__main__":
    speak(command)
