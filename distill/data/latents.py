"""Ready-made latents of a recipe: safetensors files with latents that were encoded before, and their captions."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from distill.data.shards import Table
from teachers.core.teacher import Teacher
from teachers.loading.prompts import COLUMNS, check_text, read_rows
from teachers.support.keys import file_content, key
from teachers.support.regular import check_regular
from teachers.support.text import printable, read_text

LATENTS = "latents"  # the tensor of a file
CAPTIONS = "captions"  # in its metadata
ENDING = ".safetensors"
LINE_END = re.compile(r"\r\n|\r|\n")
CHUNK = 256  # latents that are checked together


class StoredLatents:
    """Latents in one or several files, in the order of their names.

    Each file has the tensor "latents" (N, *teacher.shape): native latents, as the pipeline's network takes them, after
    the autoencoder's scaling. Their N captions are a JSON list in the metadata of the file as "captions", one a line in
    a .txt file of the same name, or the column text, prompt or caption of such a .jsonl file.

    Args:
        source: A file, or a folder of files.
        captioned: Whether the latents must have captions.
        limit: Use the first so many latents; 0: all.

    Attributes:
        captions: A caption for each latent; "" without captions.
        content_key: A key of the contents of all files.

    Raises:
        ValueError: If a file cannot be read, has no such tensor, or another number of captions.
    """

    def __init__(self, source: Path, captioned: bool, limit: int = 0) -> None:
        self.files = _files(source)
        self.captions: list[str] = []
        counts, content = [], []
        for file in self.files:
            count = _rows(file)
            captions = _captions(file, count) if captioned else [""] * count
            self.captions += captions
            counts.append(count)
            content.append((file_content(file), captions))
        self.captions = self.captions[: limit or None]
        self.content_key = key(content, len(self.captions))

    def table(self, teacher: Teacher, device: torch.device) -> Table:
        """The latents of unit variance as "x", checked.

        Raises:
            ValueError: If they do not have the teacher's shape, or are not finite.
        """
        shards, missing, scale = [], len(self.captions), teacher.denoiser.path.sigma_data
        for file in self.files:
            with _readable(file):
                latents = load_file(file)[LATENTS][:missing]
            if tuple(latents.shape[1:]) != tuple(teacher.shape):
                shape = ", ".join(map(str, teacher.shape))
                raise ValueError(
                    f"the latents in {printable(file)} must have the shape (N, {shape}) of this teacher, got "
                    f"{tuple(latents.shape)}"
                )
            _check_finite(latents, file)
            shards.append({"x": latents if scale == 1 else latents.float() / scale})
            missing -= len(latents)
            if not missing:
                break
        return Table(shards, device)


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise ValueError(
            f"data.latents must be a {ENDING} file or a folder of them; {printable(source)} does not exist"
        )
    files = sorted(source.glob(f"*{ENDING}")) if source.is_dir() else [source]
    if not files or files[0].suffix != ENDING:
        raise ValueError(f"data.latents must be a {ENDING} file or a folder of them, got {printable(source)}")
    for file in files:
        check_regular(file)
    return files


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{printable(file)} cannot be read as safetensors ({printable(error)})") from error


def _rows(file: Path) -> int:
    with _readable(file), safe_open(file, "pt") as stored:
        if LATENTS not in stored.keys():  # noqa: SIM118  # it is no mapping
            names = ", ".join(printable(name) for name in list(stored.keys())[:5]) or "nothing"
            raise ValueError(f'{printable(file)} must have the tensor "{LATENTS}", got {names}')
        part = stored.get_slice(LATENTS)
        shape, dtype = part.get_shape(), part.get_dtype()
    if len(shape) < 2 or not shape[0] or not dtype.startswith(("F", "BF")):
        raise ValueError(
            f'"{LATENTS}" in {printable(file)} must be real numbers of shape (N, ...) with N above 0, got {dtype} of '
            f"shape {tuple(shape)}"
        )
    return int(shape[0])


def _captions(file: Path, count: int) -> list[str]:
    with _readable(file), safe_open(file, "pt") as stored:
        listed = (stored.metadata() or {}).get(CAPTIONS)
    text, table = file.with_suffix(".txt"), file.with_suffix(".jsonl")
    if listed is not None:
        where, found = file, _json_list(file, listed)
    elif text.is_file():
        where, found = text, LINE_END.split(read_text(text).rstrip("\r\n"))
    elif table.is_file():
        where, found = table, [_cell(row) for _, row in read_rows(table)]
    else:
        raise ValueError(
            f'{printable(file)} has no captions; add them to its metadata as "{CAPTIONS}", a JSON list, or to '
            f"{printable(text.name)} beside it, one a line"
        )
    if len(found) != count:
        raise ValueError(
            f"{printable(where)} must have a caption for each of the {count:,} latents, got {len(found):,}"
        )
    checked = [check_text(caption, f"caption {number} of {printable(where)}") for number, caption in enumerate(found)]
    if None in checked:
        raise ValueError(f"caption {checked.index(None)} of {printable(where)} is missing")
    return [caption or "" for caption in checked]


def _json_list(file: Path, text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f'"{CAPTIONS}" in the metadata of {printable(file)} must be a JSON list') from error
    if not isinstance(found, list):
        raise ValueError(f'"{CAPTIONS}" in the metadata of {printable(file)} must be a JSON list')
    return found


def _cell(row: dict[str, Any]) -> Any:
    column = next((column for column in COLUMNS if column in row), None)
    return None if column is None else row[column]


def _check_finite(latents: Tensor, file: Path) -> None:
    for first in range(0, len(latents), CHUNK):
        finite = latents[first : first + CHUNK].flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            row = first + int((~finite).nonzero()[0])
            raise ValueError(
                f"the latents in {printable(file)} must be finite, got NaN or infinite values in row {row}"
            )
