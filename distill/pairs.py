"""Pairs of noise and the teacher's ODE endpoint from it, made ahead of time for methods that regress on them.

    accelerate launch -m distill.pairs recipes/pocket/dmd_regression.yaml [key=value ...]

Training makes the missing ones itself; made here, any number of processes share the work. They lie in the run's cache
as shards, each written whole or not at all, so that the same command goes on after a kill. Pair i has noise of its own
seed, whatever made it, so that none is made twice and more can be added later.
"""

import argparse
import hashlib
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from distill import data
from distill.draws import Draws
from distill.engine import PATIENCE
from distill.errors import speak
from distill.recipe import DTYPES, Recipe, load, options
from distill.registry import TEACHERS, find
from distill.run import claim
from distill.sampling import follow
from teachers.denoiser import Condition
from teachers.teacher import Teacher, select

SHARD = 256  # pairs a file


@dataclass(frozen=True)
class Store:
    """Shards of pairs, mapped into memory and not read: a row costs what it costs to read that row."""

    shards: list[dict[str, Tensor]]
    count: int

    def __len__(self) -> int:
        return self.count

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noise, endpoint) (N, C, H, W) and the caption's row (N,) of the pairs `rows` (N,), on the CPU."""
        places = [(self.shards[row // SHARD], row % SHARD) for row in rows.tolist()]
        noise, endpoint, prompt = (
            torch.stack([shard[name][at] for shard, at in places]) for name in ("noise", "endpoint", "prompt")
        )
        return noise, endpoint, prompt


def make(
    recipe: Recipe, teacher: Teacher, captions: list[str], cond: Condition, wanted: tuple[int, int], engine: Accelerator
) -> Store:
    """`wanted` pairs (how many, the teacher's steps for each); those that exist are kept, the processes share the rest.

    `cond` has one row for each of `captions`, which take turns. Raises nothing of its own: a shard that is damaged or
    from other settings is made again.
    """
    count, steps = wanted
    key = repr((recipe.teacher, recipe.seed, steps, captions))
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = recipe.folder / "cache" / f"pairs-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = torch.arange(count).split(SHARD)
    files = [folder / f"{number:06d}.safetensors" for number in range(len(seeds))]
    missing = [number for number, file in enumerate(files) if not _complete(file, digest, len(seeds[number]))]
    engine.wait_for_everyone()  # all have looked before any writes: otherwise their lists differ
    mine = missing[engine.process_index :: engine.num_processes]
    total = sum(len(seeds[number]) for number in mine)
    bar = tqdm(total=total, desc="teacher pairs", unit="pair", disable=not (mine and engine.is_main_process))
    for number in mine:
        shard = _shard(seeds[number], recipe, teacher, len(captions), cond, steps, bar, engine.device)
        _save(files[number], digest, shard)
    bar.close()
    engine.wait_for_everyone()
    return Store([load_file(file) for file in files], count)


@torch.no_grad()
def _shard(
    seeds: Tensor,
    recipe: Recipe,
    teacher: Teacher,
    captions: int,
    cond: Condition,
    steps: int,
    bar: tqdm,
    device: torch.device,
) -> dict[str, Tensor]:
    prompt = seeds % captions
    noise = torch.cat(
        [Draws((recipe.seed, "pair", i), 0, 1, 1, torch.device("cpu")).normal(*teacher.shape) for i in seeds.tolist()]
    )
    ends = []
    size = max(1, recipe.train.batch_size // recipe.train.accumulation)  # what fits in training fits here
    for z, rows in zip(noise.split(size), prompt.split(size), strict=True):
        chosen = select(cond, rows.to(device))
        ends.append(follow(teacher, z.to(device), chosen, steps, recipe.teacher.guidance).cpu())
        bar.update(len(z))
    return {"noise": noise, "endpoint": torch.cat(ends), "prompt": prompt, "seed": seeds}


def _save(file: Path, digest: str, shard: dict[str, Tensor]) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    save_file(shard, temporary, metadata={"key": digest})
    temporary.replace(file)


def _complete(file: Path, digest: str, rows: int) -> bool:
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as stored:
            known = (stored.metadata() or {}).get("key") == digest
            return known and stored.get_slice("seed").get_shape()[0] >= rows
    except SafetensorError:
        return False


def attach(
    dataset: data.Dataset, recipe: Recipe, teacher: Teacher, wanted: tuple[int, int], engine: Accelerator
) -> data.Dataset:
    """`dataset` with the pairs that the method wants; itself where it wants none."""
    if not wanted[0]:
        return dataset
    return replace(dataset, pairs=make(recipe, teacher, dataset.captions, dataset.cond, wanted, engine))


def command() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML recipe whose method regresses on pairs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the recipe")
    args = parser.parse_args()
    recipe = load(args.recipe, args.overrides)
    cls, method = options(recipe)
    wanted = cls.pairs(method)
    if not wanted[0]:
        raise ValueError(
            f"the method of {args.recipe} wants no teacher pairs as it is set (DMD does with "
            "method.regression_weight above 0)"
        )
    family = find(TEACHERS, recipe.teacher.family)
    plan = data.plan(recipe.data, False, family.guided)
    patience = InitProcessGroupKwargs(timeout=PATIENCE)  # some processes may have a shard less to make
    engine = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    with claim(recipe.folder) if engine.is_main_process else nullcontext():
        teacher = family.load(
            recipe.teacher.path, engine.device, DTYPES[recipe.teacher.precision], recipe.teacher.sigma_data
        )
        captions, cond = data.conditions(plan, teacher)
        store = make(recipe, teacher, captions, cond, wanted, engine)
        engine.print(f"{len(store):,} pairs in {len(store.shards)} shards under {recipe.folder / 'cache'}")


if __name__ == "__main__":
    speak(command)
