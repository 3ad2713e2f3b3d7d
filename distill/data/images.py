"""Captioned images of a recipe, in a fixed order and never all in memory.

This module reads folders of image files with Pillow; `distill.data.hf_datasets` reads other sources.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from teachers.support.keys import file_content, key

# What Pillow raises for files that are damaged or not images.
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Row:
    """One image with its caption.

    Attributes:
        name: The name for messages.
        caption: The caption, or None.
        image: An image file, the contents of one, or None.
    """

    name: str
    caption: str | None
    image: Path | bytes | None

    def load(self) -> Image.Image:
        """The decoded image in RGB, with its EXIF rotation applied. Raises one of `UNREADABLE` if it is damaged."""
        if self.image is None:
            raise ValueError(f"{self.name} has no image data")
        with Image.open(io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


@dataclass(frozen=True)
class Block:
    """Consecutive rows.

    Attributes:
        identity: A hash that identifies the rows, for the key of their shard.
        read: Reads the rows.
    """

    identity: str
    read: Callable[[], Sequence[Row]]


class Images(ABC):
    """A source of captioned images.

    Attributes:
        content_key: A key of the rows' contents, which does not depend on where they are, for the key of their latents
            and for the run's fingerprint.
    """

    content_key: str

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """All rows in order, in blocks of `size` rows."""

    @abstractmethod
    def captions(self) -> Iterator[str | None]:
        """All captions in order, without reading the images."""


class ImageFolder(Images):
    """Image files with captions in metadata.jsonl (keys file_name and text) or in .txt files of the same name.

    Args:
        folder: The folder.
        captioned: Whether every image must have a caption.
        limit: Use the first so many files; 0: all.

    Raises:
        ValueError: If the folder has no images, or a file is not a readable image or has no caption.
    """

    def __init__(self, folder: Path, captioned: bool, limit: int = 0) -> None:
        if not folder.is_dir():
            raise ValueError(f"the folder of images {folder} does not exist")
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".txt" and p.name != "metadata.jsonl")
        if not files:
            raise ValueError(f"the folder {folder} contains no images")
        captions = _metadata(folder / "metadata.jsonl")
        self.rows = []
        for file in files[: limit or None]:
            caption_file = file.with_suffix(".txt")
            caption = captions.get(
                file.name, caption_file.read_text(encoding="utf-8").strip() if caption_file.is_file() else None
            )
            row = Row(str(file), caption, file)
            try:
                row.load()  # only decoding detects a truncated file
            except UNREADABLE as error:
                raise ValueError(f"{file} is not a readable image; remove it from the folder or repair it") from error
            if caption is None and captioned:
                raise ValueError(
                    f"{file} has no caption; write it to {caption_file.name} in the same folder or to metadata.jsonl"
                )
            self.rows.append(row)
        self._row_keys = [_row_key(row) for row in self.rows]
        self.content_key = key(self._row_keys)

    def blocks(self, size: int) -> Iterator[Block]:
        for first in range(0, len(self.rows), size):
            rows = self.rows[first : first + size]
            yield Block(key(self._row_keys[first : first + size]), rows.copy)

    def captions(self) -> Iterator[str | None]:
        return (row.caption for row in self.rows)


def _row_key(row: Row) -> str:
    assert isinstance(row.image, Path)
    return key(file_content(row.image), row.caption)


def _metadata(file: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
        try:
            row = json.loads(line)
            captions[row["file_name"]] = row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{file}, line {number}: every line must be {{"file_name": ..., "text": ...}}') from error
    return captions
