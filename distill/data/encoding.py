"""Encoding prompts and images once, by all processes together, into shards that later runs read instead.

A shard is known by what made it: the encoder's files, its precision, and the shard's own captions or images. So a
second run, whatever its method, does not even load the text encoders; one whose data has grown encodes what is new.
"""

import inspect
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.utils import logging as diffusers_log
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from distill.data import shards
from distill.data.images import BROKEN, Images, Row
from distill.data.shards import SHARD, Table, digest
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher
from teachers.loading.source import TEXT_COMPONENTS, components_hash
from teachers.support.files import atomic_write, sha256_file

BATCH = 64  # prompts or images that are encoded together
FORMAT = 1  # raise it whenever the same inputs would give other shards
NAMED = 5  # unreadable images that are told by name


class Encoder:
    """Fills and reads the shards of one teacher under `cache`. Every process calls every method, in the same order."""

    def __init__(self, teacher: Teacher, cache: Path, engine: Accelerator, name: str) -> None:
        """`name` is the teacher's path in the recipe, which stands for one that has no files of its own."""
        self.teacher, self.cache, self.engine, self.name = teacher, cache, engine, name
        self.made = 0  # shards that this process has filled

    def words(self, captions: Sequence[str]) -> Table:
        """The conditions of `captions`, a row each; and the teacher learns its condition of the empty prompt."""
        if not self.teacher.guided:
            return Table([dict(self.teacher.condition([""]))], self.engine.device)
        maker = self._maker("text", TEXT_COMPONENTS)
        empty = self._file(digest(maker, "empty"))
        if self.engine.is_main_process and not shards.is_valid(empty, digest(maker, "empty")):
            self._write(empty, digest(maker, "empty"), self.teacher.encode_null_condition())
        parts = [captions[i : i + SHARD] for i in range(0, len(captions), SHARD)]
        keys = [digest(maker, list(part)) for part in parts]
        mine = range(self.engine.process_index, len(keys), self.engine.num_processes)
        for number in tqdm(mine, desc="prompts", unit="shard", disable=not self.engine.is_main_process, delay=1):
            if not shards.is_valid(self._file(keys[number]), keys[number]):
                self._write(self._file(keys[number]), keys[number], self._conditions(parts[number]))
        self.engine.wait_for_everyone()
        self.teacher.null_cache = shards.load([empty], self.engine.device).take(torch.zeros(1, dtype=torch.long))
        return shards.load([self._file(key) for key in keys], self.engine.device)

    def _conditions(self, captions: Sequence[str]) -> Condition:
        level = diffusers_log.get_verbosity()
        diffusers_log.set_verbosity_error()  # it prints every batch in which a caption is cut
        parts = [dict(self.teacher.condition(captions[i : i + BATCH])) for i in range(0, len(captions), BATCH)]
        diffusers_log.set_verbosity(level)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def latents(self, images: Images) -> tuple[list[str], Table]:
        """The captions of all images that can be read, and their latents as "x"; the rest is counted and named.

        ValueError where none can be read.
        """
        maker = self._maker("images", ("vae",))
        whole, first = digest(maker, images.mark), self.engine.is_main_process
        ledger = self._file(whole).with_suffix(".json")
        keys = self._known(ledger, whole)
        share = slice(self.engine.process_index, None, self.engine.num_processes)
        if self._any(keys is None or not all(shards.is_valid(self._file(key), key) for key in keys[share])):
            keys = []
            bar = tqdm(desc="images", unit="image", disable=not first, delay=1)
            for number, block in enumerate(images.blocks(SHARD)):
                key = digest(maker, block.identity)
                keys.append(key)
                mine = number % self.engine.num_processes == self.engine.process_index
                if mine and not shards.is_valid(self._file(key), key):
                    self._write(self._file(key), key, self._encode(block.read(), bar))
            bar.close()
            self.engine.wait_for_everyone()
            if first:
                ledger.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(ledger, concurrent=True) as temporary:
                    temporary.write_text(json.dumps({"key": whole, "shards": keys}))
        assert keys is not None
        stored = [load_file(self._file(key)) for key in keys]
        lost = [name for shard in stored for name in _words(shard["broken"])]
        if lost:
            self.engine.print(
                f"{len(lost)} images cannot be read or have no caption, and are left out: {', '.join(lost[:NAMED])}"
                + (", ..." if len(lost) > NAMED else "")
            )
        captions = [caption for shard in stored for caption in _words(shard["captions"])]
        if not captions:
            raise ValueError("the data set holds no image with a caption that can be read; check data.images")
        return captions, Table([{"x": shard["x"]} for shard in stored if len(shard["x"])], self.engine.device)

    def _encode(self, rows: Sequence[Row], bar: tqdm) -> dict[str, Tensor]:
        height, width = self.teacher.image_size
        found: list[Tensor] = []
        kept, lost = [], []
        with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
            for first in range(0, len(rows), BATCH):
                part = rows[first : first + BATCH]
                pixels = list(pool.map(lambda row: _pixels(row, height, width, self.teacher.guided), part))
                kept += [row.caption or "" for row, x in zip(part, pixels, strict=True) if x is not None]
                lost += [row.name for row, x in zip(part, pixels, strict=True) if x is None]
                read = [x for x in pixels if x is not None]
                if read:
                    with torch.no_grad():
                        found.append(self.teacher.encode(torch.stack(read)).cpu())
                bar.update(len(part))
        x = torch.cat(found) if found else torch.zeros(0, *self.teacher.shape)
        return {"x": x, "captions": _bytes(kept), "broken": _bytes(lost)}

    # --- shards and what they are known by ----------------------------------------------------------------------------

    def _maker(self, what: str, components: tuple[str, ...]) -> str:
        """A hash of the encoder: its family's code, its files, its precision, and the size that it is told."""
        origin, kind = self.teacher.origin, type(self.teacher)
        files = components_hash(origin[0], components) if origin else self.name
        size = (self.teacher.shape, self.teacher.image_size)
        return digest(FORMAT, what, kind.__qualname__, _code(kind), files, str(origin and origin[1]), size)

    def _file(self, key: str) -> Path:
        return self.cache / key[:2] / f"{key[:32]}.safetensors"

    def _write(self, file: Path, key: str, rows: Condition) -> None:
        dtype = self.teacher.origin[1] if self.teacher.origin else torch.float32
        shards.write(file, key, {name: shards.halved(value, dtype) for name, value in rows.items()})
        self.made += 1

    def _known(self, ledger: Path, maker: str) -> list[str] | None:
        """The shards that a whole pass over the images has filled; None where there has been none."""
        try:
            stored = json.loads(ledger.read_text())
            return list(stored["shards"]) if stored["key"] == maker else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _any(self, here: bool) -> bool:
        """Whether it is so on any process."""
        flag = torch.tensor([float(here)], device=self.engine.device)
        return bool(self.engine.reduce(flag, "sum").item())


def _code(kind: type) -> str:
    """A hash of the file that says what a family's condition is; its name where there is none (a notebook)."""
    try:
        return sha256_file(Path(inspect.getfile(kind)))
    except (OSError, TypeError):
        return kind.__module__


def _pixels(row: Row, height: int, width: int, captioned: bool) -> Tensor | None:
    """The picture (3, height, width) in [-1, 1], cut from its middle; None where it or its caption cannot be read."""
    from torchvision.transforms.v2 import functional as V  # torchvision is slow to import

    if captioned and row.caption is None:
        return None
    try:
        pixels = V.pil_to_tensor(row.picture())
    except BROKEN:
        return None
    return V.center_crop(V.resize(pixels, [min(height, width)]), [height, width]).float() / 127.5 - 1


def _bytes(words: Sequence[str]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)


def _words(stored: Tensor) -> list[str]:
    return json.loads(bytes(stored.numpy()))
