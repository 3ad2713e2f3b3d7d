"""Encodes prompts and samples, such as images, into shards, once, on all processes together.

A shard is identified by everything that the encoder reads (weights, configurations, options, precision, code) and by
the contents of the shard's captions or samples. A second run, with any method, therefore does not load the text
encoders, and a run with more data encodes only the new part.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from distill.data import shards
from distill.data.conditions import BATCH, cut_prompts, encode_prompts, encode_unguided, non_finite_rows, precision_of
from distill.data.images import Images, Row
from distill.data.shards import SHARD, Table
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher
from teachers.loading.contents import Contents, encoder_key
from teachers.media import Medium
from teachers.support.checksums import Damaged, read_sealed_json, write_sealed_json
from teachers.support.keys import key
from teachers.support.text import agree, counted, first_names, printable

VALUES = 2**26  # of the samples that are encoded together, at most, unless a single one has more
SKIPPED = "are skipped because they cannot be used or have no caption"


class Encoder:
    """Writes and reads the encoded data of one teacher. Every process calls every method, in the same order.

    Args:
        teacher: The teacher, whose encoders are used.
        cache: The folder of the shards.
        accelerator: The processes and the device.
        contents: What the teacher computes with (`Teacher.contents` or `Teacher.stored_contents`).

    Attributes:
        written: Number of shards that this process has written.
    """

    def __init__(self, teacher: Teacher, cache: Path, accelerator: Accelerator, contents: Contents) -> None:
        self.teacher, self.cache, self.accelerator, self.contents = teacher, cache, accelerator, contents
        self.written = 0

    def encode_captions(self, captions: Sequence[str]) -> Table:
        """The conditions of `captions`, one row for each. Also sets the teacher's condition of the empty prompt."""
        if not self.teacher.prompted:
            return Table([dict(self.teacher.condition([""]))], self.accelerator.device)
        encoder = self.encoder_key("condition")
        null_key = key(encoder, "null condition")
        null = self._file(null_key)
        guided, main = self.teacher.guided, self.accelerator.is_main_process
        if guided and main and not shards.is_valid(null, null_key):
            self._write(null, null_key, encode_unguided(self.teacher))
        parts = [captions[i : i + SHARD] for i in range(0, len(captions), SHARD)]
        keys = [key(encoder, part) for part in parts]
        own, before = range(self.accelerator.process_index, len(keys), self.accelerator.num_processes), self.written
        for number in tqdm(own, desc="prompts", unit="shard", disable=not self.accelerator.is_main_process, delay=1):
            if not shards.is_valid(self._file(keys[number]), keys[number]):
                self._write(self._file(keys[number]), keys[number], encode_prompts(self.teacher, parts[number]))
        if self.written > before:
            self.warn_of_cut_prompts(captions)
        self.accelerator.wait_for_everyone()
        if guided:
            row = torch.zeros(1, dtype=torch.long)
            self.teacher.null_cache = shards.load([null], self.accelerator.device).gather(row)
        return shards.load([self._file(name) for name in keys], self.accelerator.device)

    def warn_of_cut_prompts(self, captions: Sequence[str]) -> None:
        """Print how many captions are too long for the text encoder, on the main process."""
        if self.accelerator.is_main_process and (warning := cut_prompts(self.teacher, captions)):
            self.accelerator.print(warning)

    def encode_images(self, images: Images) -> tuple[list[str], Table]:
        """Encode all readable images, clips or sounds.

        Those that cannot be read, or have no caption although one is needed, are skipped with a message.

        Args:
            images: Their source.

        Returns:
            The captions, and the latents as "x", one row for each caption.

        Raises:
            ValueError: If none is readable.
        """
        stored = self.read_shards(images, self.encoder_key("encode"))
        captions = self.report(stored)
        return captions, Table([{"x": shard["x"]} for shard in stored if len(shard["x"])], self.accelerator.device)

    def read_shards(self, images: Images, encoder: str) -> list[dict[str, Tensor]]:
        """The shards of all rows; those that are missing are encoded.

        Args:
            images: The source of the rows.
            encoder: A key of everything that encodes them.
        """
        source, processes = key(encoder, images.content_key), self.accelerator.num_processes
        index = self._file(source).with_suffix(".json")
        keys = read_index(index, source)
        own = slice(self.accelerator.process_index, None, processes)
        if self._on_any(keys is None or not all(shards.is_valid(self._file(name), name) for name in keys[own])):
            keys = self._write_images(images, encoder)
            if self.accelerator.is_main_process:
                index.parent.mkdir(parents=True, exist_ok=True)
                write_index(index, source, keys)
        assert keys is not None
        return [load_file(self._file(name)) for name in keys]

    def report(self, stored: Sequence[dict[str, Tensor]]) -> list[str]:
        """The captions of shards, after messages about the rows that were converted or skipped.

        Raises:
            ValueError: If all rows were skipped.
        """
        medium, notes = self.teacher.medium, defaultdict[str, list[str]](list)
        for shard in stored:
            for note, names in _from_bytes(shard["notes"]).items():
                notes[note] += names
        for note in sorted(notes, key=lambda note: note != SKIPPED):
            count = len(notes[note])
            converted = f"{counted(count, medium.noun, medium.plural)} {agree(count, note)}"
            self.accelerator.print(f"{converted}: {first_names(notes[note])}")
        captions = [caption for shard in stored for caption in _from_bytes(shard["captions"])]
        if not captions:
            reason = f"; {notes[SKIPPED][0]}" if notes[SKIPPED] and medium.name != "image" else ""
            raise ValueError(
                f"data.images must have at least one readable {medium.noun} with a caption, got none{reason}"
            )
        return captions

    def _write_images(self, images: Images, encoder: str) -> list[str]:
        """Write this process's part of the missing shards; returns the keys of all shards."""
        keys, medium = [], self.teacher.medium
        bar = tqdm(desc=medium.plural, unit=medium.noun, disable=not self.accelerator.is_main_process, delay=1)
        for number, block in enumerate(images.blocks(SHARD)):
            shard = key(encoder, block.identity)
            keys.append(shard)
            own = number % self.accelerator.num_processes == self.accelerator.process_index
            if own and not shards.is_valid(self._file(shard), shard):
                self._write(self._file(shard), shard, self._encode(block.read(), bar))
        bar.close()
        self.accelerator.wait_for_everyone()
        return keys

    def _encode(self, rows: Sequence[Row], bar: tqdm) -> dict[str, Tensor]:
        size = batch_size(self.teacher.medium)
        parts: list[dict[str, Tensor]] = []
        captions, notes = [], defaultdict[str, list[str]](list)
        with ThreadPoolExecutor() as pool:  # decoders release the interpreter lock
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                read = list(pool.map(self.read, part))
                usable = [(row, each) for row, each in zip(part, read, strict=True) if not isinstance(each, str)]
                captions += [row.caption or "" for row, _ in usable]
                for row, (_, own_notes) in usable:
                    for note in own_notes:
                        notes[note].append(row.name)
                if skipped := [reason for reason in read if isinstance(reason, str)]:
                    notes[SKIPPED] += skipped
                if usable:
                    parts.append(self.encode_batch([row for row, _ in usable], [values for _, (values, _) in usable]))
                bar.update(len(part))
        encoded = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else {})}
        x = encoded.pop("x", torch.zeros(0, *self.teacher.shape))
        return {"x": x, **encoded, "captions": _to_bytes(captions), "notes": _to_bytes(notes)}

    def read(self, row: Row) -> tuple[list[Tensor], Sequence[str]] | str:
        """What is encoded of a row, its sample, and notes on it; or why the row cannot be used."""
        try:
            reading = row.read(self.teacher.medium, self.teacher.prompted)
        except ValueError as error:
            return str(error)
        return [reading.values], reading.notes

    def encode_batch(self, rows: Sequence[Row], read: Sequence[list[Tensor]]) -> dict[str, Tensor]:
        """The tensors of a shard for a batch of rows, of which `read` has what `self.read` returned; "x" is latents."""
        return {"x": self._latents([row.name for row in rows], [values[0] for values in read])}

    def _latents(self, names: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """The latents of a batch of samples, checked."""
        medium = self.teacher.medium
        with torch.no_grad():
            x = self.teacher.encode(torch.stack(list(samples))).cpu()
        if tuple(x.shape[1:]) != tuple(self.teacher.shape):
            raise ValueError(
                f"the teacher encodes each {medium.noun} as {tuple(x.shape[1:])}, but its network takes "
                f"{tuple(self.teacher.shape)}; {medium.plural} have {medium.shape[0]} channels"
            )
        if wrong := non_finite_rows({"x": x}):
            raise ValueError(
                f"the latent of the {medium.noun} {printable(names[wrong[0]])} (of {len(wrong)} such {medium.plural}) "
                f"has NaN or infinite values; set teacher.precision to float32, got {precision_of(self.teacher)}, or "
                f"remove the {medium.noun}"
            )
        return x

    # --- files and their keys -----------------------------------------------------------------------------------------

    def encoder_key(self, method: str) -> str:
        """A key of everything that the teacher's `method`, "condition" or "encode", computes with."""
        return encoder_key(self.teacher, self.contents, method, __name__)

    def _file(self, name: str) -> Path:
        return self.cache / name[:2] / f"{name[:32]}.safetensors"

    def _write(self, file: Path, name: str, rows: Condition) -> None:
        dtype = self.teacher.origin[1] if self.teacher.origin else torch.float32
        shards.write(file, name, {part: shards.compact(value, dtype) for part, value in rows.items()})
        self.written += 1

    def _on_any(self, condition: bool) -> bool:
        """Whether `condition` is true on any process."""
        flag = torch.tensor([float(condition)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())


def batch_size(medium: Medium) -> int:
    """How many samples are encoded together, by their size."""
    return min(BATCH, max(1, VALUES // math.prod(medium.shape)))


def write_index(index: Path, source: str, keys: Sequence[str]) -> None:
    """Write the keys of all shards of a source of images, for `read_index`."""
    write_sealed_json(index, {"key": source, "shards": list(keys)}, concurrent=True)


def read_index(index: Path, source: str) -> list[str] | None:
    """The keys of all shards of a source of images; None if it has not been encoded completely.

    Args:
        index: The file with the keys.
        source: The key of the encoder and the images.
    """
    try:
        stored = read_sealed_json(index)
        return list(stored["shards"]) if stored["key"] == source else None
    except (OSError, Damaged, KeyError, TypeError):
        return None


def _to_bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(stored: Tensor) -> Any:
    return json.loads(bytes(stored.numpy()))
