"""What a student learns from: prompts, images with captions, and the teacher pairs of `distill.pairs`.

`plan` reads and checks every file before any weights load; `prepare` encodes once and keeps the result in the run's
cache. Batches are drawn with replacement by `Draws`, so that there is no position to lose on resume.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, UnidentifiedImageError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from distill.distiller import Batch, Pairs
from distill.draws import Draws
from distill.recipe import DataRecipe, TeacherRecipe
from teachers import pocket
from teachers.denoiser import Condition
from teachers.prompts import read_prompts
from teachers.teacher import Teacher, select

if TYPE_CHECKING:
    from distill.pairs import Store

ENCODE_BATCH = 64


@dataclass(frozen=True)
class Plan:
    """Checked sources: captions, one a row; beside them image files, or the pocket's ready-made latents, or neither."""

    captions: list[str]
    images: list[Path] = field(default_factory=list)
    pocket: bool = False


@dataclass(frozen=True)
class Dataset:
    """`prompt` (N,) points each row at its row of `cond`, with one row a distinct caption; latents (N, C, H, W)."""

    captions: list[str]
    cond: Condition
    prompt: Tensor
    latents: Tensor | None = None
    pairs: "Store | None" = None

    def batch(self, draws: Draws) -> Batch:
        rows = draws.rows(len(self.prompt))
        latents = None if self.latents is None else self.latents[rows]
        return Batch(select(self.cond, self.prompt[rows]), draws, latents, partial(self._read_pairs, draws))

    def _read_pairs(self, draws: Draws) -> Pairs:
        if self.pairs is None:
            raise ValueError("this method asked for no teacher pairs (Distiller.pairs), so there are none to read")
        noise, endpoint, prompt = (x.to(draws.device) for x in self.pairs.rows(draws.rows(len(self.pairs))))
        return Pairs(noise, endpoint, select(self.cond, prompt))

    def held_out(self, count: int) -> Condition:
        """Conditions of `count` prompts, spread evenly over the rows."""
        rows = torch.arange(count, device=self.prompt.device) * max(1, len(self.prompt) // count) % len(self.prompt)
        return select(self.cond, self.prompt[rows])


def plan(recipe: DataRecipe, needs_latents: bool, guided: bool) -> Plan:
    """Read and check everything that the recipe names, without a teacher. ValueError names the culprit."""
    if recipe.images == "pocket":
        draw = torch.Generator().manual_seed(0)
        _, labels = pocket.examples()
        phrasings = [pocket.captions(label) for label in range(10)]
        chosen = torch.randint(1 << 30, (len(labels),), generator=draw).tolist()
        return Plan(
            [phrasings[k][c % len(phrasings[k])] for k, c in zip(labels.tolist(), chosen, strict=True)], pocket=True
        )
    if recipe.images is not None:
        return _image_folder(Path(recipe.images), guided)
    if needs_latents:
        raise ValueError("this method learns from images: give data.images, a folder of images with captions")
    if recipe.prompts is None:
        if guided:
            raise ValueError("this teacher takes prompts: give data.prompts, a text file with one prompt a line")
        return Plan([""])
    return Plan(read_prompts(recipe.prompts))


def _image_folder(folder: Path, guided: bool) -> Plan:
    """Images with captions from metadata.jsonl (file_name, text) or from a .txt of the same name."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder of images {folder}")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".txt" and p.name != "metadata.jsonl")
    if not files:
        raise ValueError(f"the folder {folder} holds no images")
    known: dict[str, str] = {}
    table = folder / "metadata.jsonl"
    for number, line in enumerate(table.read_text().splitlines() if table.is_file() else [], start=1):
        try:
            row = json.loads(line)
            known[row["file_name"]] = row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{table}, line {number}: every line has to read {{"file_name": ..., "text": ...}}'
            ) from error
    captions = []
    for file in files:
        try:
            with Image.open(file) as image:
                image.load()  # decoding is what finds a truncated file
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{file} is not an image that can be read; take it out of the folder or repair it"
            ) from error
        beside = file.with_suffix(".txt")
        caption = known.get(file.name, beside.read_text(encoding="utf-8").strip() if beside.is_file() else None)
        if caption is None and guided:
            raise ValueError(
                f"{file} has no caption; write it to {beside.name} beside it, or list it in metadata.jsonl"
            )
        captions.append(caption or "")
    return Plan(captions, files)


def conditions(plan: Plan, teacher: Teacher) -> tuple[list[str], Condition]:
    """The distinct captions and the teacher's condition with one row for each."""
    distinct = list(dict.fromkeys(plan.captions))
    encoded = [dict(teacher.condition(distinct[i : i + ENCODE_BATCH])) for i in range(0, len(distinct), ENCODE_BATCH)]
    return distinct, {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}


def prepare(plan: Plan, teacher: Teacher, device: torch.device, cache: Path, recipe: TeacherRecipe) -> Dataset:
    """Encode captions, and images (once; kept in `cache`)."""
    distinct, cond = conditions(plan, teacher)
    row = {caption: i for i, caption in enumerate(distinct)}
    prompt = torch.tensor([row[caption] for caption in plan.captions], device=device)
    latents = None
    if plan.pocket:
        latents = pocket.examples()[0].to(device)
    elif plan.images:
        stamp = repr([(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in plan.images])
        stored = cached(
            cache / "latents.safetensors", repr(recipe) + stamp, lambda: {"x": _encode(plan.images, teacher)}
        )
        latents = stored["x"].to(device)
    return Dataset(distinct, cond, prompt, latents)


@torch.no_grad()
def _encode(files: Sequence[Path], teacher: Teacher) -> Tensor:
    from torchvision.transforms.v2 import functional as V  # torchvision is slow to import

    height, width = teacher.image_size

    def load(file: Path) -> Tensor:
        with Image.open(file) as image:
            pixels = V.pil_to_tensor(image.convert("RGB"))
        return V.center_crop(V.resize(pixels, [min(height, width)]), [height, width]).float() / 127.5 - 1

    batches = range(0, len(files), ENCODE_BATCH)
    return torch.cat(
        [
            teacher.encode(torch.stack([load(f) for f in files[i : i + ENCODE_BATCH]])).cpu()
            for i in tqdm(batches, desc="encoding images")
        ]
    )


def cached(path: Path, key: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors at `path` where they were built for this `key`, else `build()`, saved through a temporary name."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    if path.is_file():
        with safe_open(path, framework="pt") as stored:
            if (stored.metadata() or {}).get("key") == digest:
                return load_file(path)
    tensors = build()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata={"key": digest})
    temporary.replace(path)
    return tensors
