"""The encoded dataset of a run: prompts, images, clips or sounds with captions, and teacher pairs.

`prepare` encodes the data of a plan (`distill.data.plan`) once and stores the result (`distill.data.encoding`). Batches
are sampled with replacement by `BatchRandom`, so resuming needs no position.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.config.recipe import Recipe
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.data.encoding import Encoder
from distill.data.images import FirstUsable, Images
from distill.data.plan import Plan
from distill.data.shards import Table
from distill.data.source_encoding import SourceEncoder
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher
from teachers.loading.contents import Contents

CPU = torch.device("cpu")


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
        plan: The data, from `distill.data.plan.plan`.
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
