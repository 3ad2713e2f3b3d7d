"""Safetensors files with latents that were encoded before, and their captions."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from distill.data.latents import Latents
from distill.data.shards import Table
from teachers.core.teacher import Teacher
from teachers.loading.contents import Contents, autoencoder_key
from teachers.loading.prompts import COLUMNS, check_text, read_rows
from teachers.support.keys import file_content, key
from teachers.support.listing import visible
from teachers.support.regular import check_regular
from teachers.support.text import printable, read_text

LATENTS = "latents"  # the tensor of a file
CAPTIONS = "captions"  # in its metadata
AUTOENCODER = "autoencoder"
ENDING = ".safetensors"
LINE_END = re.compile(r"\r\n|\r|\n")
DTYPES = ("F64", "F32", "F16", "BF16")
CHUNK = 256  # latents that are checked together
# Standard deviation of encoded latents relative to sigma_data; raw ones of many models have 4 to 6.
USUAL = (1 / 3, 3.0)


class StoredLatents(Latents):
    """Latents in one or several files, in the order of their names.

    Each file has the tensor "latents" (N, *teacher.shape): native latents, as the pipeline's network takes them, after
    the autoencoder's scaling. Their N captions are a JSON list in the metadata of the file as "captions", the lines of
    a .txt file of the same name, or the column text, prompt or caption of such a .jsonl file.

    Args:
        source: A file, or a folder of files.
        captioned: Whether the latents must have captions.
        limit: Number of latents that are used, from the first; 0: all.

    Attributes:
        autoencoders: What `autoencoder_key` was of the teachers that encoded the files, where `fewstep encode` did.

    Raises:
        ValueError: If a file cannot be read, has no such tensor, or another number of captions.
    """

    title = "the stored latents"

    def __init__(self, source: Path, captioned: bool, limit: int = 0) -> None:
        self.files = _files(source)
        all_captions: list[str] = []
        self.autoencoders: set[str] = set()
        content = []
        for file in self.files:
            count, metadata = _header(file)
            self.autoencoders |= {metadata[AUTOENCODER]} if AUTOENCODER in metadata else set()
            captions = _captions(file, count) if captioned else [""] * count
            all_captions += captions
            content.append((file_content(file), captions))
        self.captions = all_captions[: limit or None]
        self.content_key = key(content, len(self.captions))

    def table(self, teacher: Teacher, contents: Contents, device: torch.device) -> Table:
        """See `Latents`. Warnings say if their scale is unusual, or if another autoencoder encoded them."""
        self._check_autoencoder(teacher, contents)
        shards, missing, scale = [], len(self.captions), teacher.denoiser.path.sigma_data
        squares = []
        for file in self.files:
            with _readable(file):
                latents = load_file(file)[LATENTS][:missing]
            if tuple(latents.shape[1:]) != tuple(teacher.shape):
                shape = ", ".join(map(str, teacher.shape))
                raise ValueError(
                    f"the latents in {printable(file)} must have the shape (N, {shape}) of this teacher, got "
                    f"{tuple(latents.shape)}"
                )
            squares.append(_mean_squares(latents, file))
            shards.append({"x": latents if scale == 1 else latents.float() / scale})
            missing -= len(latents)
            if not missing:
                break
        spread = torch.cat(squares).mean().sqrt().item() / scale
        if not USUAL[0] <= spread <= USUAL[1]:
            warnings.warn(
                f"data.latents have {spread:.3g} times the standard deviation that the teacher's have; they must be "
                "latents as the pipeline's network takes them, after the autoencoder's scaling and shift",
                stacklevel=2,
            )
        return Table(shards, device)

    def _check_autoencoder(self, teacher: Teacher, contents: Contents) -> None:
        """Warn if `fewstep encode` wrote the files with another autoencoder than the teacher's."""
        own = autoencoder_key(teacher, contents) if self.autoencoders else None
        if own is not None and self.autoencoders - {own}:
            warnings.warn(
                "data.latents were encoded by an autoencoder with other weights than the teacher's; encode them again "
                "with this teacher, unless both have the same latents",
                stacklevel=2,
            )


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise ValueError(
            f"data.latents must be a {ENDING} file or a folder of them; {printable(source)} does not exist"
        )
    files = visible(source, f"*{ENDING}") if source.is_dir() else [source]
    if not files or files[0].suffix.lower() != ENDING:
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


def _header(file: Path) -> tuple[int, dict[str, str]]:
    """The number of latents in a file, and its metadata."""
    with _readable(file), safe_open(file, "pt") as stored:
        if LATENTS not in stored.keys():  # noqa: SIM118
            names = ", ".join(printable(name) for name in list(stored.keys())[:5]) or "nothing"
            raise ValueError(f'{printable(file)} must have the tensor "{LATENTS}", got {names}')
        part = stored.get_slice(LATENTS)
        shape, dtype, metadata = part.get_shape(), part.get_dtype(), stored.metadata() or {}
    if len(shape) < 2 or not shape[0] or dtype not in DTYPES:
        raise ValueError(
            f'"{LATENTS}" in {printable(file)} must be of shape (N, ...) with N above 0 and of a type of '
            f"{', '.join(DTYPES)}, got {dtype} of shape {tuple(shape)}"
        )
    return int(shape[0]), metadata


def _captions(file: Path, count: int) -> list[str]:
    with _readable(file), safe_open(file, "pt") as stored:
        listed = (stored.metadata() or {}).get(CAPTIONS)
    text, table = file.with_suffix(".txt"), file.with_suffix(".jsonl")
    if listed is not None:
        where, found = file, _json_list(file, listed)
    elif text.is_file():
        where, found = text, _lines(text, count)
    elif table.is_file():
        where, found = table, [_cell(row) for _, row in read_rows(table)]
    else:
        raise ValueError(
            f'{printable(file)} has no captions; add them to its metadata as "{CAPTIONS}", a JSON list, or to '
            f"{printable(text.name)} in the same folder, one per line"
        )
    if len(found) != count:
        raise ValueError(
            f"{printable(where)} must have a caption for each of the {count:,} latents, got {len(found):,}"
        )
    checked = [check_text(caption, f"caption {number} of {printable(where)}") for number, caption in enumerate(found)]
    if None in checked:
        raise ValueError(f"caption {checked.index(None)} of {printable(where)} is missing")
    return [caption or "" for caption in checked]


def _lines(file: Path, count: int) -> list[str]:
    """The lines of a file, without empty ones at its end that are more than `count`."""
    lines = LINE_END.split(read_text(file))
    while len(lines) > count and not lines[-1]:
        lines.pop()
    return lines


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


def _mean_squares(latents: Tensor, file: Path) -> Tensor:
    """The mean square of each latent (N,); they must be finite."""
    found = []
    for first in range(0, len(latents), CHUNK):
        part = latents[first : first + CHUNK].flatten(1).double()
        finite = part.isfinite().all(1)
        if not bool(finite.all()):
            row = first + int((~finite).nonzero()[0])
            raise ValueError(
                f"the latents in {printable(file)} must be finite, got NaN or infinite values in row {row}"
            )
        found.append(part.square().mean(1))
    return torch.cat(found)
