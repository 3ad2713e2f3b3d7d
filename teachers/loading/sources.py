"""Source images of editing and inpainting pipelines: folders with instructions, and images with their masks.

A folder has metadata.jsonl, .csv or .parquet, as the ImageFolder of `datasets`, with one row for each sample and the
names of its files relative to the metadata's folder, in the columns of published data sets and of diffusers' training
scripts.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.loading.prompts import COLUMNS, METADATA, check_text, read_rows
from teachers.media import Image
from teachers.support.files import sha256
from teachers.support.images import read_for_training
from teachers.support.keys import file_content, key
from teachers.support.listing import is_image, list_files, walk
from teachers.support.text import lookalike, printable

# Names of columns by what they hold; the first that exists counts.
PROMPTS = ("edit_prompt", "instruction", *COLUMNS)
IMAGES = ("original_image", "input_image", "source_image", "source")
TARGETS = ("edited_image", "target_image", "target", "image")
MASKS = ("mask", "mask_image")
SUFFIX = "_file_name"  # that columns with names of files may have
SHOWN = 80  # characters of a value in a message
LEAST_MASK, MOST_MASK = 0.25, 0.75  # of each side: random masks


@dataclass(frozen=True)
class SourceRow:
    """One row of a folder.

    Attributes:
        name: The name for messages.
        prompt: The instruction, or the caption; None without one.
        image: The file of the source image.
        mask: The file of its mask, or None.
        target: The file of the edited image, or None.
    """

    name: str
    prompt: str | None
    image: Path
    mask: Path | None = None
    target: Path | None = None

    def content(self) -> str:
        """A key of the row's contents, which does not depend on where its files are."""
        files = (self.image, self.mask, self.target)
        return key(self.prompt, [None if file is None else file_content(file) for file in files])


def has_metadata(folder: Path) -> bool:
    """Whether there is a folder with metadata in it or in a subfolder."""
    return folder.is_dir() and any(file.name in METADATA for file in walk(folder))


def read_source_rows(folder: Path, masked: bool) -> list[SourceRow]:
    """The rows of a folder of source images, in the order of its metadata.

    Args:
        folder: The folder.
        masked: Whether the pipelines take masks: a row without a source image then has its target as source image.

    Raises:
        ValueError: If there is no metadata, or a row has no source image or names a file that is not in the folder.
    """
    listed = list_files(folder)
    files = {os.path.normpath(file): file for file in listed if is_image(file)}
    rows = []
    for metadata in (file for file in listed if file.name in METADATA):
        for number, row in read_rows(metadata):
            rows.append(_row(row, f"{printable(metadata)}, line {number}", metadata.parent, files, masked))
    if not rows:
        raise ValueError(
            f"{printable(folder)} must have metadata.jsonl with a row for each source image, such as "
            '{"original_image": "a.png", "edit_prompt": "make it snow", "edited_image": "b.png"}'
        )
    return rows


def _row(row: Mapping[str, Any], where: str, folder: Path, files: Mapping[str, Path], masked: bool) -> SourceRow:
    def file(names: Iterable[str]) -> Path | None:
        column = choose(names, row)
        value = None if column is None else row[column]
        if value is None or value == "":  # an empty cell of a .csv
            return None
        found = files.get(os.path.normpath(folder / value)) if isinstance(value, str) else None
        if found is None:
            raise ValueError(
                f"{where}: {column} must be the name of an image relative to {printable(folder)}, got "
                f"{printable(str(value)[:SHOWN])!r}"
                f"{lookalike(str(value), [os.path.relpath(file, folder) for file in files])}"
            )
        return found

    target, image, mask = file((*TARGETS, "file_name")), file(IMAGES), file(MASKS)
    if image is None and masked:
        image = target
    if image is None:
        raise ValueError(f"{where}: every row must have a source image as {' or '.join(IMAGES[:3])}")
    column = choose(PROMPTS, row)
    return SourceRow(where, None if column is None else check_text(row[column], where), image, mask, target)


def choose(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """The first of `names`, with or without the suffix of names of files, among `columns`; None if there is none."""
    known = set(columns)
    return next((column for name in names for column in (name, name + SUFFIX) if column in known), None)


def read_source(
    image: Path | bytes, mask: Path | bytes | None, shape: tuple[int, ...], name: str | None = None
) -> Tensor:
    """Read a source image, and a mask if the pipelines take one, at the size of a teacher.

    Args:
        image: The file of the image, or its contents.
        mask: The file of the mask, or its contents; None: a rectangle that depends on the image's contents.
        shape: `Teacher.source_shape`.
        name: A name for messages.

    Returns:
        The image in [-1, 1], with the mask in {0, 1} as the last channel, (*shape).

    Raises:
        ValueError: If a file cannot be read, or the mask has another aspect ratio than the image, so that it cannot be
            laid over it; the message names it.
    """
    channels, height, width = shape
    medium = Image(height, width)
    label = _label("image", image, name)
    picture = read_for_training(image, label, max(height, width)).image
    values = medium.fitted(picture)
    if channels == 3:
        return values
    if mask is None:
        content = file_content(image) if isinstance(image, Path) else sha256([image])
        return torch.cat([values, random_mask(content, height, width)])
    mask_label = _label("mask", mask, name)
    drawn = read_for_training(mask, mask_label, max(height, width)).image
    if not _same_aspect(picture.size, drawn.size):
        sizes = [f"{size[0]} x {size[1]} pixels" for size in (picture.size, drawn.size)]
        raise ValueError(
            f"{printable(mask_label)} must have the aspect ratio of its image {printable(label)}, {sizes[0]}, got "
            f"{sizes[1]}"
        )
    return torch.cat([values, (medium.fitted(drawn).mean(0, keepdim=True) >= 0).float()])


def _label(what: str, source: Path | bytes, name: str | None) -> str:
    """The name of an image or a mask in messages: its file, or the row that it is in."""
    if isinstance(source, Path):
        return str(source)
    return f"the {what}" if name is None else f"the {what} of {name}"


def _same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two sizes are those of one picture at two scales, whose sides are rounded to pixels."""
    return abs(first[0] * second[1] - first[1] * second[0]) <= 2 * max(*first, *second)


def random_mask(content: str, height: int, width: int) -> Tensor:
    """A rectangle of ones (1, height, width) that depends on a key; its sides are 1/4 to 3/4 of the image's."""
    generator = torch.Generator().manual_seed(int(content[:15], 16))
    mask, spans = torch.zeros(1, height, width), []
    for length in (height, width):
        share, start = torch.rand(2, generator=generator).tolist()
        size = max(1, round(length * (LEAST_MASK + share * (MOST_MASK - LEAST_MASK))))
        spans.append(slice(first := round(start * (length - size)), first + size))
    mask[:, spans[0], spans[1]] = 1
    return mask
