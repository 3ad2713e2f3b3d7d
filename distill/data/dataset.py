"""What a student learns from: prompts, images with captions, and the teacher pairs of `distill.pairs`.

`plan` opens and checks everything that a recipe names before any weights load; `prepare` encodes it once and keeps it
(`distill.data.encoding`). Batches are drawn with replacement by `BatchRandom`, so that there is no position to lose on resume.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from distill.config.recipe import DataRecipe, Recipe
from distill.data import shards
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.data.encoding import Encoder
from distill.data.hf_datasets import DataSet, is_data_set
from distill.data.images import Folder, Images
from distill.data.shards import Table
from teachers import pocket
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher
from teachers.loading.prompts import read_prompts

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """Checked sources: captions, one a row; or images that bring theirs; or the pocket's ready-made latents."""

    captions: Sequence[str] = ()
    images: Images | None = None
    pocket: bool = False
    latents: Tensor | None = None  # (N, *shape) of unit variance, a row for each caption

    def summary(self) -> str:
        """What there is to learn from, in a few words."""
        if self.images is not None:
            return "captioned images"
        kind = (
            "the pocket teacher's latents" if self.pocket else "latents in memory" if self.latents is not None else ""
        )
        return f"{len(self.captions):,} {'rows of ' + kind if kind else 'prompts'}"


@dataclass(frozen=True)
class Dataset:
    """`prompt` (N,) points each row at its row of `cond`, with one row a distinct caption; latents as "x"."""

    captions: Sequence[str]
    cond: Table
    prompt: Tensor
    latents: Table | None = None
    pairs: Table | None = None

    def batch(self, rng: BatchRandom) -> Batch:
        rows = rng.rows(len(self.prompt), CPU)
        latents = None if self.latents is None else self.latents.take(rows)["x"]
        return Batch(self.cond.take(self.prompt[rows]), rng, latents, partial(self._read_pairs, rng))

    def _read_pairs(self, rng: BatchRandom) -> Pairs:
        if self.pairs is None:
            raise ValueError("this method asked for no teacher pairs (Distiller.pairs), so there are none to read")
        numbers = rng.rows(len(self.pairs), CPU)
        rows, cond = self.pairs.take(numbers), self.cond.take(caption_rows(numbers, len(self.captions)))
        return Pairs(rows["noise"], rows["endpoint"], cond)

    def micro_batches(self, rng: Iterable[BatchRandom]) -> Iterator[Batch]:
        """The batch of each of `rng`. Rows that lie in files are read one batch ahead, by a thread of its own."""
        if all(table is None or table.resident for table in (self.cond, self.latents)):
            yield from map(self.batch, rng)
            return
        card = (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_initialized() else (None, ())
        with ThreadPoolExecutor(1, "read-ahead", *card) as reader:
            ahead: deque[Future[Batch]] = deque()
            for following in rng:
                ahead.append(reader.submit(self.batch, following))
                if len(ahead) > 1:
                    yield ahead.popleft().result()  # and nothing here holds on to it
            while ahead:
                yield ahead.popleft().result()

    def held_out(self, count: int) -> Callable[[Tensor], Condition]:
        """Of `count` prompts, spread evenly over the rows: the conditions of those with the numbers (N,)."""
        rows = torch.arange(count) * max(1, len(self.prompt) // count) % len(self.prompt)
        return lambda numbers: self.cond.take(self.prompt[rows[numbers]])


def plan(recipe: DataRecipe, needs_latents: bool, guided: bool) -> Plan:
    """Open and check everything that the recipe names, without a teacher. ValueError names the culprit."""
    if recipe.images == "pocket":
        draw = torch.Generator().manual_seed(0)
        _, labels = pocket.examples()
        phrasings = [pocket.captions(label) for label in range(10)]
        chosen = torch.randint(1 << 30, (len(labels),), generator=draw).tolist()
        return Plan(
            [phrasings[k][c % len(phrasings[k])] for k, c in zip(labels.tolist(), chosen, strict=True)], pocket=True
        )
    if recipe.images is not None:
        images = open_images(recipe, guided)
        return Plan(images=images) if needs_latents else Plan([words or "" for words in images.captions()])
    if needs_latents:
        raise ValueError("this method learns from images: give data.images, a folder of images with captions")
    if recipe.prompts is None:
        if guided:
            raise ValueError("this teacher takes prompts: give data.prompts, a text file with one prompt a line")
        return Plan([""])
    return Plan(read_prompts(recipe.prompts, recipe.column)[: recipe.limit or None])


def open_images(recipe: DataRecipe, guided: bool) -> Images:
    """The images that the recipe names, opened and checked as far as that goes without reading them all."""
    assert recipe.images is not None
    if is_data_set(recipe.images):
        return DataSet(recipe.images, guided, recipe.column, recipe.streaming, recipe.limit)
    if recipe.streaming or recipe.column:
        raise ValueError(
            "data.streaming and data.column are for .parquet and .tar files and data sets on the hub; "
            f"data.images is {recipe.images}"
        )
    return Folder(Path(recipe.images), guided, recipe.limit)


def prepare(plan: Plan, teacher: Teacher, recipe: Recipe, engine: Accelerator) -> Dataset:
    """Encode captions, and images, or find them encoded; then the encoders leave memory. Every process calls it."""
    encoder = Encoder(teacher, recipe.cache, engine, recipe.teacher.path or teacher.digest())
    captions, latents = plan.captions, None
    if plan.pocket:
        latents = Table([{"x": pocket.examples()[0]}], engine.device)
    elif plan.latents is not None:
        latents = Table([{"x": plan.latents.float()}], engine.device)
    elif plan.images is not None:
        captions, latents = encoder.latents(plan.images)
    distinct = list(dict.fromkeys(captions))
    row = {caption: i for i, caption in enumerate(distinct)}
    cond = encoder.words(distinct)
    teacher.unload_encoders()
    return Dataset(distinct, cond, torch.tensor([row[caption] for caption in captions]), latents)


def caption_rows(numbers: Tensor, captions: int) -> Tensor:
    """The captions' rows (N,) of the teacher pairs with these numbers (N,): captions take turns."""
    return numbers % captions


def cached(path: Path, key: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors at `path` where they were built for this `key` and are sound, else `build()`, which is kept there."""
    if not shards.is_valid(path, shards.digest(key)):
        shards.write(path, shards.digest(key), build())
    return load_file(path)
