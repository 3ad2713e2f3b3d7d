"""Samples of the user's own prompts during training: evaluation.validation_prompts of a recipe.

Every model draws every prompt from the same noise, at full size. The samples of a prompt are one labelled sheet, with
its prompt above it, a column for each model and a row for each seed.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import Recipe
from distill.config.run_files import CACHE, VALIDATION
from distill.data import shards
from distill.data.conditions import cut_prompts, encode_prompts
from distill.methods.base import Distiller
from distill.methods.compiling import eager
from distill.training.decoding import chunk_size, decode_samples
from distill.training.jsonl_log import warn_if_unwritable
from distill.training.tracked_samples import log_media
from distill.training.trackers import log_image, pixels
from eval.pipelines.jobs import steps_text
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.sampling import sample, teacher_endpoint
from teachers.core.teacher import Teacher
from teachers.loading.contents import Contents, teacher_key
from teachers.support.files import atomic_write
from teachers.support.text import printable

LEAST = 128  # pixels of a cell's shorter side: smaller samples are enlarged by a whole number, so that labels fit
MARGIN, FONT = 6, 14  # pixels
INK, PAPER = (20, 20, 20), (255, 255, 255)


class Validation:
    """Draws the samples of evaluation.validation_prompts.

    Args:
        recipe: The run's recipe.
        teacher: The run's teacher; its text encoders are loaded for the prompts and unloaded again.
        contents: What the teacher computes with, for the key of its samples.
        device: The device of the networks.
        writes: Whether this process writes files and logs; with sharded networks every process samples.
    """

    def __init__(
        self, recipe: Recipe, teacher: Teacher, contents: Contents, device: torch.device, writes: bool
    ) -> None:
        self.teacher, self.device, self.writes = teacher, device, writes
        self.folder = recipe.folder / VALIDATION
        self.prompts, self.seeds = list(recipe.evaluation.validation_prompts), recipe.evaluation.validation_seeds
        with torch.no_grad():
            self.cond = {k: v.to(device) for k, v in encode_prompts(teacher, self.prompts).items()}
        if writes and (warning := cut_prompts(teacher, self.prompts)):
            tqdm.write(warning)
        teacher.unload_encoders()
        self.noise = torch.stack([self._noise(seed) for _ in self.prompts for seed in self.seeds])
        self.chunk = min(8, chunk_size(teacher.medium))
        steps, guidance = recipe.train.evaluate_teacher_steps, recipe.teacher.guidance
        name = teacher_key(teacher, contents, ("validation", self.prompts, self.seeds, steps, guidance), __name__)
        file = recipe.folder / CACHE / "validation.safetensors"
        with eager():
            made = shards.cached(file, name, lambda: {"x0": self._teacher_samples(steps, guidance)})
        self.teacher_x0 = made["x0"]

    def _noise(self, seed: int) -> Tensor:
        return torch.randn(self.teacher.shape, generator=torch.Generator().manual_seed(seed))

    def _parts(self) -> list[tuple[Tensor, Condition]]:
        """Noise (B, ...) and conditions of all samples in batches."""
        rows = torch.arange(len(self.noise)).split(self.chunk)
        of_prompt = [row // len(self.seeds) for row in rows]
        return [
            (self.noise[row].to(self.device), {k: v[index.to(v.device)] for k, v in self.cond.items()})
            for row, index in zip(rows, of_prompt, strict=True)
        ]

    @torch.no_grad()
    def _teacher_samples(self, steps: int, guidance: float) -> Tensor:
        parts = [teacher_endpoint(self.teacher, noise, cond, steps, guidance) for noise, cond in self._parts()]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def _student_samples(self, student: Denoiser, times: Sequence[float]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        parts = []
        with eager():
            for noise, cond in self._parts():
                more = partial(_randn, noise.shape, generator, self.device)
                parts.append(sample(student, noise, times, cond, more).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def _decoded(self, x0: Tensor) -> Tensor:
        rows = [decode_samples(self.teacher, part.to(self.device)).cpu() for part in x0.split(self.chunk)]
        return torch.cat(rows)

    def has(self, step: int) -> bool:
        """Whether the samples of a step were drawn before."""
        return (self.folder / f"{step:08d}" / f"{len(self.prompts) - 1:02d}.png").is_file()

    def draw(self, distiller: Distiller, ema: Denoiser, step: int, trackers: Sequence[Any]) -> None:
        """Draw all samples; write and log them on the process that writes. Every process that evaluates calls it.

        Args:
            distiller: The method, for its numbers of steps and its fake score.
            ema: The student's EMA.
            step: The training step.
            trackers: accelerate's trackers.
        """
        times = distiller.sampling_schedules()[0]
        x0 = {"teacher": self.teacher_x0}
        for n in distiller.step_counts(times):
            x0[f"student, {steps_text(n)}"] = self._student_samples(ema, times[:n])
        for name, denoiser in distiller.preview_models().items():
            x0[name] = self._student_samples(denoiser, times[:1])
        if not self.writes:
            return
        samples = {name: self._decoded(value) for name, value in x0.items()}
        with warn_if_unwritable(f"the validation samples of step {step}"):
            self._write(samples, step, trackers)

    def _write(self, samples: Mapping[str, Tensor], step: int, trackers: Sequence[Any]) -> None:
        folder, medium, count = self.folder / f"{step:08d}", self.teacher.medium, len(self.seeds)
        folder.mkdir(parents=True, exist_ok=True)
        for number, prompt in enumerate(self.prompts):
            rows = {name: value[number * count : (number + 1) * count] for name, value in samples.items()}
            stills = {name: [pixels(medium.still(item)) for item in value] for name, value in rows.items()}
            sheet = label_sheet(stills, prompt, [f"step {step:,}, seed {seed}" for seed in self.seeds])
            with atomic_write(folder / f"{number:02d}.png") as temporary:
                sheet.save(temporary, format="PNG")
            picture = torch.from_numpy(np.array(sheet)).permute(2, 0, 1) / 255
            log_image(trackers, f"validation/{number:02d}", picture, step, printable(prompt))
            log_media(trackers, f"validation/{number:02d}", rows, step, medium)
            if medium.name != "image":
                for index, (name, value) in enumerate(rows.items()):
                    file = folder / f"{number:02d}-{index}-{name.replace(', ', '-').replace(' ', '-')}"
                    medium.save(value, file.with_suffix(".webp" if medium.name == "video" else ".wav"))


def _randn(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator).to(device)


def label_sheet(columns: Mapping[str, Sequence[Any]], caption: str, rows: Sequence[str]) -> Image.Image:
    """One labelled picture of the samples of a prompt.

    Args:
        columns: Pictures (H, W, 3) in bytes by the name of their model; all of one size.
        caption: The text above them.
        rows: The label of each row.

    Returns:
        The sheet. Pictures have their own size, or a whole multiple of it if they are small.
    """
    font = ImageFont.load_default(FONT)
    height, width = next(iter(columns.values()))[0].shape[:2]
    scale = max(1, math.ceil(LEAST / min(height, width)))
    cell = (width * scale, height * scale)
    line = FONT + MARGIN
    total = MARGIN + len(columns) * (cell[0] + MARGIN)
    words = wrapped(printable(caption), font, total - 2 * MARGIN)
    top = MARGIN + line * len(words)
    sheet = Image.new("RGB", (total, top + line + len(rows) * (cell[1] + line + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(words):
        draw.text((MARGIN, MARGIN + number * line), text, INK, font)
    for column, (name, pictures) in enumerate(columns.items()):
        x = MARGIN + column * (cell[0] + MARGIN)
        draw.text((x, top), _shortened(name, font, cell[0]), INK, font)
        for row, picture in enumerate(pictures):
            y = top + line + row * (cell[1] + line + MARGIN)
            sheet.paste(Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST), (x, y))
    for row, label in enumerate(rows):
        draw.text((MARGIN, top + line + row * (cell[1] + line + MARGIN) + cell[1] + 2), label, INK, font)
    return sheet


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """A text in lines of at most `width` pixels; words that are longer are cut."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width or not lines[-1]:
            lines[-1] = candidate
        else:
            lines.append(word)
    return [_shortened(line, font, width) for line in lines]


def _shortened(text: str, font: Any, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip(".") + "." if len(text) > 2 else ""
    return text
