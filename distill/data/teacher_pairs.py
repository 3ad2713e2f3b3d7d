"""Pairs of noise and the endpoint of the teacher's ODE from it, for methods with a regression loss.

Pairs are stored in shards in the run's cache. Each shard is written atomically, so interrupted work continues, and more
pairs can be added later. Pair i depends on the teacher, the captions, the seed and i. It does not depend on the number
of pairs or processes, nor on which shards exist already. This holds bit for bit on the same hardware with the same
micro-batch size: the rounding of convolutions and matrix products depends on the batch size and on a row's position, so
pair i is always computed in a batch of the same size at the same position, and incomplete batches are padded.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import Recipe
from distill.config.run_files import CACHE
from distill.data import shards
from distill.data.batch_random import BatchRandom
from distill.data.dataset import Dataset, caption_rows
from distill.data.shards import Table
from teachers.core.sampling import teacher_endpoint
from teachers.core.teacher import Teacher
from teachers.loading.contents import Contents, teacher_key
from teachers.support.keys import key


def make(
    recipe: Recipe,
    teacher: Teacher,
    captions: Sequence[str],
    cond: Table,
    requested: tuple[int, int],
    accelerator: Accelerator,
    contents: Contents | None = None,
    sources: str | None = None,
) -> Table:
    """Make the pairs that are missing in the run's cache. Every process calls it; each makes a part of the shards.

    Shards that are damaged or have other settings are made again.

    Args:
        recipe: The run's recipe.
        teacher: The run's teacher.
        captions: The captions; pair i has caption i modulo their number.
        cond: The conditions of the captions, one row for each.
        requested: Number of pairs, and the teacher's ODE steps for each.
        accelerator: The processes and the device.
        contents: What the teacher computes with; by default its `contents` in memory.
        sources: The key of the data's source images, if it has any.

    Returns:
        The pairs: "noise" and "endpoint", both (pairs, ...).
    """
    count, steps = requested
    inputs = captions if sources is None else [*captions, sources]
    name = pairs_key(recipe, teacher, inputs, steps, teacher.contents() if contents is None else contents)
    folder = recipe.folder / CACHE / f"pairs-{name[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    indices = torch.arange(count).split(shards.SHARD)
    files = [folder / f"{number:06d}.safetensors" for number in range(len(indices))]
    own = range(accelerator.process_index, len(files), accelerator.num_processes)
    # The number counts, because pair i has caption i: shards must not change places.
    keys = [key(name, number) for number in range(len(files))]
    missing = [number for number in own if not shards.is_valid(files[number], keys[number], len(indices[number]))]
    total = sum(len(indices[number]) for number in missing)
    bar = tqdm(total=total, desc="teacher pairs", unit="pair", disable=not (missing and accelerator.is_main_process))
    for number in missing:
        shard = make_shard(indices[number], recipe, teacher, len(captions), cond, steps, bar, accelerator.device)
        shards.write(files[number], keys[number], shard)
    bar.close()
    accelerator.wait_for_everyone()
    return shards.load(files, accelerator.device, count)


def pairs_key(recipe: Recipe, teacher: Teacher, captions: Sequence[str], steps: int, contents: Contents) -> str:
    """A key of everything that pairs depend on apart from their number; see `make` for the arguments."""
    inputs = (captions, steps, recipe.teacher.guidance, recipe.seed)
    return teacher_key(teacher, contents, inputs, __name__)


@torch.no_grad()
def make_shard(
    indices: Tensor,
    recipe: Recipe,
    teacher: Teacher,
    captions: int,
    cond: Table,
    steps: int,
    bar: tqdm,
    device: torch.device,
) -> dict[str, Tensor]:
    """The pairs with the given indices, which start at a multiple of the shard size.

    Args:
        indices: Indices (N,) of the pairs.
        recipe: The run's recipe.
        teacher: The run's teacher.
        captions: Number of captions.
        cond: The conditions of the captions.
        steps: The teacher's ODE steps.
        bar: A progress bar, updated by the number of finished pairs.
        device: The teacher's device.

    Returns:
        "noise" and "endpoint", both (N, ...) on the CPU.
    """
    cpu = torch.device("cpu")
    noise = torch.cat(
        [BatchRandom((recipe.seed, "pair", i), 0, 1, 1, cpu).normal(*teacher.shape) for i in indices.tolist()]
    )
    prompts = caption_rows(indices, captions)
    size = batch_size(recipe)
    endpoints = []
    for z, rows in zip(noise.split(size), prompts.split(size), strict=True):
        padded = torch.arange(size) % len(z)  # the same batch size for every pair, see the module's docstring
        x = teacher_endpoint(teacher, z[padded].to(device), cond.gather(rows[padded]), steps, recipe.teacher.guidance)
        endpoints.append(x[: len(z)].cpu())
        bar.update(len(z))
    return {"noise": noise, "endpoint": torch.cat(endpoints)}


def batch_size(recipe: Recipe) -> int:
    """The number of pairs that are computed together.

    At most the run's micro-batch size, which fits into memory in training, such that a shard has equal batches.
    """
    limit = max(1, recipe.train.batch_size // recipe.train.accumulation)
    return math.ceil(shards.SHARD / math.ceil(shards.SHARD / limit))


def attach(
    dataset: Dataset, recipe: Recipe, teacher: Teacher, requested: tuple[int, int], accelerator: Accelerator
) -> Dataset:
    """`dataset` with the pairs that the method requests; see `make` for the arguments."""
    if not requested[0]:
        return dataset
    pairs = make(
        recipe, teacher, dataset.captions, dataset.cond, requested, accelerator, dataset.teacher, dataset.sources
    )
    return replace(dataset, pairs=pairs)
