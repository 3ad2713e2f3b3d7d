"""Source images of a comparison: each sample has an instruction and the image that it edits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from eval.pipelines.signatures import pipeline_class, source_names
from teachers.loading.registry import family_of, installed
from teachers.loading.sketch import sketch
from teachers.loading.sources import SourceRow, has_metadata, read_source, read_source_rows
from teachers.loading.trial import stored_size
from teachers.media import Image
from teachers.support.errors import reads
from teachers.support.keys import key
from teachers.support.text import printable

RGB = 3  # channels of a source image; one more is its mask


@dataclass(frozen=True)
class Sources:
    """Source images with instructions, read when they are needed.

    Attributes:
        rows: The rows; sample i has row i modulo their number.
        shape: The shape of a source image, as `Teacher.source_shape`.
    """

    rows: Sequence[SourceRow]
    shape: tuple[int, ...]

    def read(self, indices: Sequence[int]) -> Tensor:
        """The source images (B, *shape) of the samples `indices`."""
        rows = [self.rows[i % len(self.rows)] for i in indices]
        return torch.stack([read_source(row.image, row.mask, self.shape, row.name) for row in rows])

    def prompts(self, count: int) -> list[str]:
        """The instructions of the first `count` samples."""
        return [self.rows[i % len(self.rows)].prompt or "" for i in range(count)]

    def first(self, prompts: Sequence[str]) -> list[int]:
        """For each prompt the number of the first row that has it."""
        numbers: dict[str, int] = {}
        for number, row in enumerate(self.rows):
            numbers.setdefault(row.prompt or "", number)
        return [numbers[prompt] for prompt in prompts]

    def content(self) -> str:
        """A key of all rows' contents."""
        return key([row.content() for row in self.rows], self.shape)


@reads
def source_shape(folder: Path) -> tuple[int, ...]:
    """The shape of the source images of the pipeline in `folder`, as `Teacher.source_shape`; no weights are read."""
    family = installed()[family_of(str(folder))]
    return sketch(str(folder), family, stored_size(str(folder), family)).source_shape


def sources_for(folders: Sequence[Path], prompts: str | None) -> Sources | None:
    """The source images of a comparison; None if no pipeline takes any.

    Args:
        folders: The folders of the compared pipelines.
        prompts: The source of prompts, which must be a folder of source images with instructions.

    Raises:
        ValueError: If only some pipelines take source images, they take source images of other sizes, there is no such
            folder, or an image of it cannot be used.
    """
    kinds = {folder: pipeline_class(folder) for folder in folders}
    taking = [folder for folder, kind in kinds.items() if source_names(kind)]
    if not taking:
        return None
    if other := next((kind for kind in kinds.values() if not source_names(kind)), None):
        raise ValueError(
            f"all pipelines of a comparison must take a source image, or none: {kinds[taking[0]].__name__} takes one, "
            f"{other.__name__} does not"
        )
    shapes = {folder: source_shape(folder) for folder in taking}
    first, shape = next(iter(shapes.items()))
    if different := next((folder for folder in taking if shapes[folder] != shape), None):
        raise ValueError(
            "all pipelines of a comparison must take source images of one size, because they get the same ones: "
            f"{printable(first)} takes {_words(shape)}, {printable(different)} takes {_words(shapes[different])}; "
            "evaluate them separately"
        )
    return open_sources(kinds[first], shape, prompts)


def _words(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width} x {height} pixels" + " with a mask" * (channels > RGB)


def open_sources(kind: type[DiffusionPipeline], shape: tuple[int, ...], prompts: str | None) -> Sources:
    """The source images in the folder `prompts`, for a pipeline class and the shape of its source images.

    Raises:
        ValueError: If it is not such a folder, a row has no instruction, or an image or mask is not readable.
    """
    if prompts is None or not has_metadata(Path(prompts)):
        given = "none" if prompts is None else printable(prompts)
        raise ValueError(
            f"--prompts must be a folder of source images with instructions (metadata.jsonl) for {kind.__name__}, got "
            f"{given}"
        )
    rows = read_source_rows(Path(prompts), masked=shape[0] > RGB)
    if missing := next((row for row in rows if row.prompt is None), None):
        raise ValueError(f"{missing.name}: every row must have an instruction as edit_prompt, or a caption as text")
    for file in dict.fromkeys(file for row in rows for file in (row.image, row.mask) if file is not None):
        Image.check(file)
    return Sources(rows, shape)
