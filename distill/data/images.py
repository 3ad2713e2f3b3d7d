"""Captioned images, clips or sounds of a recipe, in a fixed order and never all in memory.

This module reads folders of files; `distill.data.hf_datasets` reads other sources.
"""

import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from distill.data.splits import in_training_folders
from teachers.loading.prompts import COLUMNS, METADATA, check_text, read_rows
from teachers.media import Image, Medium, Reading
from teachers.support.keys import file_content, key
from teachers.support.limits import CAPTION_BYTES
from teachers.support.listing import list_files
from teachers.support.text import agree, counted, first_names, lookalike, printable, read_text


@dataclass(frozen=True)
class Row:
    """One image, clip or sound with its caption.

    Attributes:
        name: The name for messages.
        caption: The caption, or None.
        source: A file, the contents of one, or None.
        sources: The source image and its mask, for teachers with source images; each as `source`.
    """

    name: str
    caption: str | None
    source: Path | bytes | None
    sources: tuple[Path | bytes | None, Path | bytes | None] = (None, None)

    def read(self, medium: Medium, captioned: bool = False) -> Reading:
        """Read the file.

        Args:
            medium: The medium of the teacher's samples.
            captioned: Whether a caption is needed.

        Raises:
            ValueError: If the row cannot be used; the message names it.
        """
        if captioned and self.caption is None:
            raise ValueError(f"{printable(self.name)} has no caption")
        if self.source is None:
            raise ValueError(f"{printable(self.name)} has no {medium.name} data")
        return medium.read(self.source, self.name)


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
    """A source of captioned images, clips or sounds.

    Attributes:
        content_key: A key of the rows' contents, which does not depend on where they are, for the key of their latents
            and for the run's fingerprint.
        notes: Sentences for the user, such as which files are not used.
    """

    content_key: str
    notes: Sequence[str] = ()

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """All rows in order, in blocks of `size` rows."""

    @abstractmethod
    def captions(self) -> Iterator[str | None]:
        """All captions in order, without reading the files."""


class ListedImages(Images):
    """Samples that are all known before any is read, such as those of a folder.

    Args:
        rows: The rows.
        row_keys: A key of the contents of each row.
        notes: See `Images`.
    """

    def __init__(self, rows: Sequence[Row], row_keys: Sequence[str], notes: Sequence[str]) -> None:
        self.rows, self._row_keys, self.notes = rows, row_keys, notes
        self.content_key = key(list(row_keys))

    def blocks(self, size: int) -> Iterator[Block]:
        for first in range(0, len(self.rows), size):
            rows = self.rows[first : first + size]
            yield Block(key(list(self._row_keys[first : first + size])), partial(list, rows))

    def captions(self) -> Iterator[str | None]:
        return (row.caption for row in self.rows)


class ImageFolder(ListedImages):
    """Files of one medium in a folder and its subfolders; images as `teachers.support.listing.list_images` finds them.

    If there are subfolders for training and for validation or test, only those for training are read.

    Captions are in metadata.jsonl, .csv or .parquet (columns file_name, relative to their folder, and text, prompt or
    caption), or in .txt files beside the files with the same names.

    Args:
        folder: The folder.
        captioned: Whether every file must have a caption.
        limit: Number of files that are used, from the first; 0: all.
        medium: The medium of the files.

    Raises:
        ValueError: If the folder has no such files, an image is not readable, a file has no caption, or a row of
            metadata has no file. Clips and sounds are decoded later.
    """

    def __init__(self, folder: Path, captioned: bool, limit: int = 0, medium: type[Medium] = Image) -> None:
        if not folder.exists():
            raise ValueError(f"the folder of {medium.plural} {folder} does not exist")
        self.folder, self.medium = folder, medium
        found = list_files(folder, medium.plural, medium.endings)
        files = [file for file in found if medium.lists(file)]
        others = [file for file in found if not medium.lists(file)]
        if not files:
            problem = f"; {first_names(others)} have other endings" if others else ""
            raise ValueError(
                f"the folder {folder} contains no {medium.plural} ({', '.join(medium.endings[:10])}){problem}"
            )
        captions, shared = _captions(others, files, medium) if captioned else ({}, [])
        listed, files = files, in_training_folders(files, folder)
        rows = []
        for file in files[: limit or None]:
            row = Row(str(file), captions.get(file), file)
            medium.check(file)  # only decoding detects a truncated file
            if row.caption is None and captioned:
                raise ValueError(
                    f"{printable(file)} has no caption; write it to {printable(file.with_suffix('.txt').name)} in the "
                    "same folder, or to metadata.jsonl as text, prompt or caption"
                )
            rows.append(row)
        apart = len(listed) - len(files)
        notes = self._notes(others, rows, shared) + [
            f"{counted(apart, medium.noun, medium.plural)} of {folder} {agree(apart, 'are not used')} "
            "(not in its folders for training)"
        ] * bool(apart)
        super().__init__(rows, [_row_key(row) for row in rows], notes)

    def _notes(self, others: Sequence[Path], rows: Sequence[Row], shared: Sequence[Path]) -> list[str]:
        notes = []
        if shared:
            notes.append(
                f"{counted(len(shared), 'caption file')} in {self.folder} "
                f"{agree(len(shared), 'are shared by several')} {self.medium.plural} "
                f"whose names differ in their endings only: {first_names(shared)}"
            )
        unused = [file for file in others if file.suffix.lower() != ".txt" and file.name not in METADATA]
        if unused:
            notes.append(
                f"{counted(len(unused), 'file')} in {self.folder} {agree(len(unused), 'are not used')} (endings other "
                f"than those of {self.medium.plural}): {first_names(unused)}"
            )
        empty = [row.name for row in rows if row.caption == ""]
        if empty:
            count = counted(len(empty), self.medium.noun, self.medium.plural)
            notes.append(f"{count} {agree(len(empty), 'have an empty caption')}: {first_names(empty)}")
        return notes


class FirstUsable(ListedImages):
    """The first rows of other images that can be used.

    Args:
        images: The other images.
        count: The largest number of rows.
        usable: Whether a row can be used.
    """

    def __init__(self, images: Images, count: int, usable: Callable[[Row], bool]) -> None:
        read = (row for block in images.blocks(count) for row in block.read())
        rows = list(islice(filter(usable, read), count))
        super().__init__(rows, [key(row.name, row.caption) for row in rows], images.notes)


def _text(value: object, where: str) -> str | None:
    """A caption of metadata, which must be text: a number may be a class or an index."""
    if isinstance(value, int | float) and not math.isnan(value):  # NaN stands for no value
        raise ValueError(f"{where}: a caption must be text, got the number {value}; write it in quotes")
    return check_text(value, where)


def _row_key(row: Row) -> str:
    assert isinstance(row.source, Path)
    return key(file_content(row.source), row.caption)


def _relative(files: Iterable[str], folder: Path) -> list[str]:
    return [os.path.relpath(file, folder) for file in files]


def _captions(
    others: Sequence[Path], files: Sequence[Path], medium: type[Medium]
) -> tuple[dict[Path, str | None], list[Path]]:
    """The caption of each file that has one, and the .txt files that are those of several files.

    Metadata take precedence over .txt files.
    """
    texts = {file.with_suffix(""): file for file in others if file.suffix.lower() == ".txt"}  # .txt comes after .TXT
    captions = {
        file: check_text(read_text(text, CAPTION_BYTES), printable(text))
        for file in files
        if (text := texts.get(file.with_suffix("")))
    }
    known, described = {os.path.normpath(file): file for file in files}, set[Path]()
    for file in others:
        for number, row in read_rows(file) if file.name in METADATA else ():
            where = f"{printable(file)}, line {number}"
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError(
                    f'{where}: every line must have the name of its {medium.noun}, as {{"file_name": ..., "text": ...}}'
                )
            named = known.get(os.path.normpath(file.parent / name))
            if named is None:
                raise ValueError(
                    f"{where}: there is no {medium.noun} {printable(name)!r} for this caption"
                    f"{lookalike(name, _relative(known, file.parent))}; names are relative to "
                    f"{printable(file.parent)} and end in {', '.join(medium.endings[:10])}"
                )
            if named in described:
                raise ValueError(
                    f"{where}: this is a second caption of {printable(name)!r}; each {medium.noun} must have only one"
                )
            described.add(named)
            column = next((column for column in COLUMNS if column in row), None)
            captions[named] = None if column is None else _text(row[column], where)
    used = Counter(texts[file.with_suffix("")] for file in files if file in captions and file not in described)
    return captions, [text for text, count in used.items() if count > 1]
