"""Captioned images from where a recipe says they are, in a fixed order and never all in memory.

A folder of image files needs nothing but Pillow; the rest comes through `distill.data.hf_datasets`.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from distill.data.shards import digest

BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Row:
    """One image: a file or the bytes of one. `caption` is None where there is none."""

    name: str
    caption: str | None
    image: Path | bytes | None

    def picture(self) -> Image.Image:
        """The image in RGB, upright. One of BROKEN where it cannot be read whole."""
        if self.image is None:
            raise ValueError(f"{self.name} holds no bytes of an image")
        with Image.open(io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


@dataclass(frozen=True)
class Block:
    """Neighbouring rows: what they are (for the key of what is made from them), and how to read them."""

    identity: str
    read: Callable[[], Sequence[Row]]


class Images(ABC):
    """A source of captioned images. `mark` changes when its rows do; `contents` is what tells it from other data."""

    mark: str
    contents: Sequence[Any]

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """All rows in order, `size` at a time."""

    @abstractmethod
    def captions(self) -> Iterator[str | None]:
        """All captions in order, without reading images."""


class Folder(Images):
    """Image files with captions from metadata.jsonl (file_name, text) or from a .txt of the same name.

    Raises ValueError, which names the file, for one that is no image or has no caption though `captioned`.
    """

    def __init__(self, folder: Path, captioned: bool, limit: int = 0) -> None:
        if not folder.is_dir():
            raise ValueError(f"there is no folder of images {folder}")
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".txt" and p.name != "metadata.jsonl")
        if not files:
            raise ValueError(f"the folder {folder} holds no images")
        known = _metadata(folder / "metadata.jsonl")
        self.rows = []
        for file in files[: limit or None]:
            beside = file.with_suffix(".txt")
            caption = known.get(file.name, beside.read_text(encoding="utf-8").strip() if beside.is_file() else None)
            row = Row(str(file), caption, file)
            try:
                row.picture()  # decoding is what finds a truncated file
            except BROKEN as error:
                raise ValueError(
                    f"{file} is not an image that can be read; take it out of the folder or repair it"
                ) from error
            if caption is None and captioned:
                raise ValueError(
                    f"{file} has no caption; write it to {beside.name} beside it, or list it in metadata.jsonl"
                )
            self.rows.append(row)
        self.contents = [(row.caption, row.image) for row in self.rows]
        self.mark = digest([_stamp(row) for row in self.rows])

    def blocks(self, size: int) -> Iterator[Block]:
        for first in range(0, len(self.rows), size):
            rows = self.rows[first : first + size]
            yield Block(digest([_stamp(row) for row in rows]), rows.copy)

    def captions(self) -> Iterator[str | None]:
        return (row.caption for row in self.rows)


def _stamp(row: Row) -> tuple[str, int, int, str | None]:
    assert isinstance(row.image, Path)
    status = row.image.stat()
    return row.image.name, status.st_size, status.st_mtime_ns, row.caption


def _metadata(file: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
        try:
            row = json.loads(line)
            known[row["file_name"]] = row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{file}, line {number}: every line has to read {{"file_name": ..., "text": ...}}'
            ) from error
    return known
