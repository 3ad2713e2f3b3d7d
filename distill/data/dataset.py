"""The dataset of a run: prompts, images, clips or sounds with captions, and teacher pairs.

`plan` opens and checks the data before any weights are loaded. `prepare` encodes it once and stores the result
(`distill.data.encoding`). Batches are sampled with replacement by `BatchRandom`, so resuming needs no position.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.config.recipe import Recipe
from distill.config.sections import DataRecipe
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.data.encoding import Encoder
from distill.data.hf_datasets import HFImages, is_hf_source
from distill.data.images import FirstUsable, ImageFolder, Images
from distill.data.latents import EmbeddedLatents, Latents
from distill.data.shards import Table
from distill.data.source_encoding import SourceEncoder
from distill.data.source_images import open_source_images
from distill.data.stored_latents import StoredLatents
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher
from teachers.loading.contents import Contents
from teachers.loading.embedded import EMBEDDED
from teachers.loading.prompts import read_prompts
from teachers.media import Image, Medium
from teachers.support.text import agree, counted

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """Checked data that is not encoded yet.

    Attributes:
        prompts: The prompts, if there are no samples.
        images: Images, clips or sounds with captions.
        latents: Ready-made latents with captions.
        notes: Sentences for the user about the data.
        targets: Whether the edited images of rows with source images are encoded.
        medium: The medium of the teacher's samples.
    """

    prompts: Sequence[str] = ()
    images: Images | None = None
    latents: Latents | None = None
    notes: Sequence[str] = ()
    targets: bool = True
    medium: type[Medium] = Image

    @property
    def captions(self) -> Sequence[str]:
        """One caption for each row; empty for `images`, whose captions are encoded with them."""
        return self.prompts if self.latents is None else self.latents.captions

    def summary(self) -> str:
        """A short description of the data."""
        if self.images is not None:
            return f"captioned {self.medium.plural}"
        kind = "prompts" if self.latents is None else f"rows of {self.latents.title}"
        return f"{len(self.captions):,} {kind}"


@dataclass(frozen=True)
class Dataset:
    """Encoded data with N rows.

    Attributes:
        captions: The distinct captions.
        cond: The conditions of the distinct captions, one row for each.
        prompt: For each data row the index (N,) of its caption in `captions`.
        latents: Unit-variance latents as "x", N rows; None if there are prompts only.
        pairs: Teacher pairs, if the method requests any.
        teacher: What the teacher that encoded the data computes with; None: unknown.
        sources: A key of the source images of all rows; None for teachers without any. Each row then has a condition
            and a caption of its own.
    """

    captions: Sequence[str]
    cond: Table
    prompt: Tensor
    latents: Table | None = None
    pairs: Table | None = None
    teacher: Contents | None = None
    sources: str | None = None

    def batch(self, rng: BatchRandom) -> Batch:
        """A micro-batch of rows that are sampled with replacement by `rng`."""
        rows = rng.rows(len(self.prompt), CPU)
        latents = None if self.latents is None else self.latents.gather(rows)["x"]
        return Batch(self.cond.gather(self.prompt[rows]), rng, latents, partial(self._read_pairs, rng))

    def _read_pairs(self, rng: BatchRandom) -> Pairs:
        if self.pairs is None:
            raise ValueError("there are no teacher pairs: Distiller.pairs of this method must return their number")
        indices = rng.rows(len(self.pairs), CPU)
        rows, cond = self.pairs.gather(indices), self.cond.gather(caption_rows(indices, len(self.captions)))
        return Pairs(rows["noise"], rows["endpoint"], cond)

    def micro_batches(self, rng: Iterable[BatchRandom]) -> Iterator[Batch]:
        """A batch for each element of `rng`. If rows are read from files, a thread reads one batch ahead."""
        if all(table is None or table.resident for table in (self.cond, self.latents)):
            yield from map(self.batch, rng)
            return
        use_gpu = torch.cuda.is_initialized()
        initializer = (torch.cuda.set_device, (torch.cuda.current_device(),)) if use_gpu else (None, ())
        with ThreadPoolExecutor(1, "read-ahead", *initializer) as reader:
            pending: deque[Future[Batch]] = deque()
            for numbers in rng:
                pending.append(reader.submit(self.batch, numbers))
                if len(pending) > 1:
                    yield pending.popleft().result()  # no local variable, which would keep the batch in memory
            while pending:
                yield pending.popleft().result()

    def held_out_rows(self, count: int) -> Tensor:
        """The rows (count,) whose prompts are used in evaluations, spread evenly."""
        return torch.arange(count) * max(1, len(self.prompt) // count) % len(self.prompt)

    def held_out(self, count: int) -> Callable[[Tensor], Condition]:
        """Conditions for evaluations.

        Args:
            count: Number of prompts, which are spread evenly over the rows.

        Returns:
            A function from indices (N,) in [0, count) to N conditions.
        """
        rows = self.held_out_rows(count)
        return lambda indices: self.cond.gather(self.prompt[rows[indices]])


def plan(
    recipe: DataRecipe,
    needs_latents: bool,
    captioned: bool,
    medium: type[Medium] = Image,
    source: Sequence[str] = (),
) -> Plan:
    """Open and check a recipe's data, without a teacher.

    Args:
        recipe: The recipe's `data` section.
        needs_latents: Whether the method learns from images, clips or sounds.
        captioned: Whether every row needs a caption, as for teachers with prompts.
        medium: The medium of the teacher's samples.
        source: The family's `source`.

    Returns:
        The checked data.

    Raises:
        ValueError: If the data is missing or cannot be used, with the key.
    """
    if source:
        images = open_source_images(recipe, masked=len(source) > 1, targets=needs_latents)
        return Plan(images=images, notes=images.notes, targets=needs_latents)
    if recipe.images in EMBEDDED:
        embedded = EMBEDDED[recipe.images]
        if medium.name != embedded.medium:
            raise ValueError(
                f"data.images must be a folder or a dataset of {medium.plural} for this teacher, got '{embedded.name}'"
            )
        return Plan(latents=EmbeddedLatents(embedded, recipe.limit), notes=_unused_prompts(recipe, "images"))
    if recipe.latents is not None:
        stored = StoredLatents(Path(recipe.latents), captioned, recipe.limit)
        notes = _unused_prompts(recipe, "latents")
        return Plan(latents=stored, notes=notes) if needs_latents else Plan(stored.captions, notes=notes)
    if recipe.images is not None:
        images = open_images(recipe, captioned, medium)
        notes = [*_unused_prompts(recipe, "images"), *images.notes]
        if needs_latents:
            return Plan(images=images, notes=notes, medium=medium)
        return _captions_plan(recipe, images, captioned, notes, medium)
    if needs_latents:
        raise ValueError(
            f"data.images must be set for this method, for example to a folder of {medium.plural} with captions"
        )
    if recipe.prompts is None:
        if captioned:
            raise ValueError(
                "data.prompts must be set for this teacher, for example to a text file with one prompt per line"
            )
        return Plan([""])
    return Plan(read_prompts(recipe.prompts, recipe.column)[: recipe.limit or None])


def _captions_plan(recipe: DataRecipe, images: Images, captioned: bool, notes: list[str], medium: type[Medium]) -> Plan:
    """The captions of images, clips or sounds as prompts, for methods that learn from prompts alone."""
    captions = list(images.captions())
    used = [caption or "" for caption in captions if caption is not None or not captioned]
    if not used:
        raise ValueError(f"data.images {recipe.images} must have at least one caption, got none")
    if missing := len(captions) - len(used):
        samples = counted(missing, medium.noun, medium.plural)
        notes = [*notes, f"{samples} without a caption {agree(missing, 'are not used')}"]
    return Plan(used, notes=notes)


def _unused_prompts(recipe: DataRecipe, used: str) -> list[str]:
    """A note on prompts that are not used, because the data has captions; empty if there are none."""
    source = getattr(recipe, used)
    if recipe.prompts in (None, source):
        return []
    return [f"data.prompts {recipe.prompts} is not used, because the captions of data.{used} are the prompts"]


def open_images(recipe: DataRecipe, captioned: bool, medium: type[Medium] = Image) -> Images:
    """The images, clips or sounds of a recipe, opened and checked without reading all of them.

    Args:
        recipe: The recipe's `data` section, with `images`.
        captioned: Whether captions are needed.
        medium: Their medium.

    Raises:
        ValueError: If they cannot be opened, or have no captions.
    """
    assert recipe.images is not None
    if is_hf_source(recipe.images, medium):
        return HFImages(recipe.images, captioned, recipe.column, recipe.streaming, recipe.limit, medium)
    if recipe.streaming or recipe.column:
        raise ValueError(
            "data.streaming and data.column need .parquet files, .tar files or a dataset on the Hub, "
            f"got data.images {recipe.images}"
        )
    return ImageFolder(Path(recipe.images), captioned, recipe.limit, medium)


def prepare(
    plan: Plan,
    teacher: Teacher,
    recipe: Recipe,
    accelerator: Accelerator,
    contents: Contents | None = None,
    most_rows: int | None = None,
) -> Dataset:
    """Encode captions and samples, or read them from the cache, and unload the text encoders. Every process calls it.

    Args:
        plan: The data, from `plan`.
        teacher: The run's teacher, whose encoders are used.
        recipe: The run's recipe.
        accelerator: The processes and the device.
        contents: What the teacher computes with; by default its `contents` in memory.
        most_rows: The most samples that are encoded; None: all. Those that cannot be used do not count.

    Raises:
        ValueError: If no sample is readable, or the cache cannot be written.
    """
    for note in plan.notes:
        accelerator.print(note)
    contents = teacher.contents() if contents is None else contents
    if teacher.source:
        return _prepare_sources(plan, teacher, recipe, accelerator, contents, most_rows)
    encoder = Encoder(teacher, recipe.cache, accelerator, contents)
    captions, latents = plan.captions, None
    if plan.latents is not None:
        latents = plan.latents.table(teacher, contents, accelerator.device)
    elif plan.images is not None:
        captions, latents = encoder.encode_images(_first(plan.images, encoder, most_rows))
    distinct = list(dict.fromkeys(captions))
    row = {caption: i for i, caption in enumerate(distinct)}
    cond = encoder.encode_captions(distinct)
    teacher.unload_encoders()
    prompt = torch.tensor([row[caption] for caption in captions])
    return Dataset(distinct, cond, prompt, latents, teacher=contents)


def _prepare_sources(
    plan: Plan,
    teacher: Teacher,
    recipe: Recipe,
    accelerator: Accelerator,
    contents: Contents,
    most_rows: int | None,
) -> Dataset:
    """`prepare` for teachers with source images: every row has a condition of its own."""
    assert plan.images is not None
    encoder = SourceEncoder(teacher, recipe.cache, accelerator, contents)
    encoder.targets = plan.targets
    captions, cond, latents = encoder.encode_rows(_first(plan.images, encoder, most_rows))
    teacher.unload_encoders()
    rows = torch.arange(len(captions))
    return Dataset(captions, cond, rows, latents, teacher=contents, sources=plan.images.content_key)


def _first(images: Images, encoder: Encoder, count: int | None) -> Images:
    """The first `count` images that the encoder can use, or all."""
    return images if count is None else FirstUsable(images, count, lambda row: not isinstance(encoder.read(row), str))


def caption_rows(indices: Tensor, captions: int) -> Tensor:
    """The caption index (N,) of the teacher pairs with `indices` (N,): captions are used cyclically."""
    return indices % captions
