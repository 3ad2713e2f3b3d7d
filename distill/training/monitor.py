"""Whether a distillation works: a held-out Frechet distance to the teacher's samples, and pictures side by side.

Losses do not say (the fake score's falls while samples collapse), so this curve does. The noise is fixed and kept
aside, the prompts are the training's; the teacher's samples from the same prompts and other noise are made once and
kept in the run's cache.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import Recipe
from distill.data.batch_random import BatchRandom
from distill.data.dataset import Dataset, cached
from distill.methods.base import Distiller
from distill.methods.compiling import eager
from distill.training.run_folder import JsonlLog
from eval.features.extractors import Extractor, extractor
from eval.metrics.fid import frechet_from_statistics, statistics
from teachers.core.denoiser import Denoiser
from teachers.core.sampling import sample, teacher_endpoint
from teachers.core.teacher import Teacher

CHUNK = 50
GRID = 8  # pictures a row


class Monitor:
    """Judges a student during training. `features` names an extractor of `eval.features.extractors`.

    Where networks are sharded every process has one, since all have to draw; only the one that `writes` keeps pictures.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: Teacher,
        data: Dataset,
        features: str,
        device: torch.device,
        writes: bool = True,
    ) -> None:
        self.writes = writes
        self.teacher, self.folder, self.device = teacher, recipe.folder, device
        self.count = recipe.train.evaluate_samples
        self._cond = data.held_out(self.count)
        self.extract: Extractor = extractor(features, device)
        self.noise = torch.randn(self.count, *teacher.shape, generator=self._draw(recipe, "student"))
        steps, guidance = recipe.train.evaluate_teacher_steps, recipe.teacher.guidance
        key = f"{recipe.teacher} {features} {self.count} {steps} {recipe.seed} {data.captions}"
        with eager():
            self.teacher_side = cached(
                recipe.folder / "cache" / "teacher.safetensors",
                key,
                lambda: self._teacher(steps, guidance, self._draw(recipe, "teacher")),
            )

    @torch.no_grad()
    def _teacher(self, steps: int, guidance: float, draw: torch.Generator) -> dict[str, Tensor]:
        other = torch.randn(self.noise.shape, generator=draw)
        same = self.noise[: GRID * 2]
        features = []
        for rows in tqdm(torch.arange(self.count).split(CHUNK), desc="the teacher's samples"):
            ends = teacher_endpoint(self.teacher, other[rows].to(self.device), self._cond(rows), steps, guidance)
            features.append(self.extract(images01(self.teacher, ends)).cpu())
        rows = torch.arange(len(same))
        pictures = images01(
            self.teacher, teacher_endpoint(self.teacher, same.to(self.device), self._cond(rows), steps, guidance)
        )
        mean, covariance = statistics(torch.cat(features))
        return {"mean": mean, "covariance": covariance, "pictures": pictures.cpu()}

    @staticmethod
    def _draw(recipe: Recipe, purpose: str) -> torch.Generator:
        return BatchRandom((recipe.seed, "held out", purpose), 0, 1, 1, torch.device("cpu")).generator

    def _noise(self, shape: Sequence[int], draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw).to(self.device)

    @torch.no_grad()
    def images(self, student: Denoiser, times: Sequence[float], count: int) -> Tensor:
        """`count` images (count, 3, H, W) in [0, 1] from the held-out prompts and noise."""
        made = []
        draw = torch.Generator().manual_seed(0)
        for rows in torch.arange(count).split(CHUNK):
            noise = self.noise[rows].to(self.device)
            again = partial(self._noise, noise.shape, draw)
            with eager():  # batches of another size than the run's are not worth compiling for
                made.append(images01(self.teacher, sample(student, noise, times, self._cond(rows), again)))
        return torch.cat(made)

    @torch.no_grad()
    def distance(self, student: Denoiser, times: Sequence[float]) -> float:
        """Frechet distance between the student's held-out samples and the teacher's."""
        images = self.images(student, times, self.count)
        mean, covariance = statistics(torch.cat([self.extract(part).cpu() for part in images.split(CHUNK)]))
        return frechet_from_statistics(mean, covariance, self.teacher_side["mean"], self.teacher_side["covariance"])

    def grid(self, step: int, rows: Mapping[str, tuple[Denoiser, Sequence[float]]]) -> Tensor:
        """Save and return a picture (3, H, W): the teacher on top, then each named denoiser's samples, of one noise."""
        count = min(GRID, self.count)
        lines = [self.teacher_side["pictures"][:count]]
        lines += [self.images(denoiser, times, count).cpu() for denoiser, times in rows.values()]
        picture = torch.cat([torch.cat(list(line), dim=2) for line in lines], dim=1).clamp(0, 1)
        if not self.writes:
            return picture
        path = self.folder / "samples" / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scale = max(1, math.ceil(64 / self.teacher.image_size[0]))
        array = (picture * 255).round().byte().permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        Image.fromarray(array.numpy()).save(path)
        (path.parent / "rows.json").write_text(json.dumps(["teacher", *rows]))
        return picture

    def evaluate(
        self,
        history: JsonlLog,
        distiller: Distiller,
        ema: Denoiser,
        step: int,
        seconds: float,
        trackers: Sequence[Any],
    ) -> None:
        """Held-out Frechet distances at every number of steps, a grid of samples, one line of `history`.

        Every process that has a monitor calls it; the one that writes tells the screen and the `trackers`.
        """
        times = distiller.sampling_schedules()[0]
        counts = distiller.step_counts(times)
        distances = {f"{n}": self.distance(ema, times[:n]) for n in counts}
        rows = {f"student, {n} steps": (ema, times[:n]) for n in counts}
        rows |= {name: (denoiser, times[:1]) for name, denoiser in distiller.preview_models().items()}
        picture = self.grid(step, rows)
        if not self.writes:
            return
        history.append({"step": step, "seconds": round(seconds, 2), "held_out_frechet": distances})
        tqdm.write(
            f"step {step}: held-out Frechet distance to the teacher "
            + ", ".join(f"{d:.3f} ({n} steps)" for n, d in distances.items())
        )
        for tracker in trackers:
            tracker.log({f"held_out_frechet/{n}": d for n, d in distances.items()}, step=step)
            if tracker.name == "tensorboard":
                tracker.writer.add_image("samples", picture, step)

    def best_times(self, distiller: Distiller, ema: Denoiser) -> list[float]:
        """The candidate times with the smallest held-out distance; the first where there is no choice."""
        candidates = distiller.sampling_schedules()
        if len(candidates) == 1:
            return candidates[0]
        asked = tqdm(candidates, desc="choosing the second step's time", disable=not self.writes)
        scored = [(self.distance(ema, times), times) for times in asked]
        for distance, times in scored if self.writes else []:
            print(f"times {', '.join(f'{t:.3f}' for t in times)} rad: held-out Frechet distance {distance:.3f}")
        return min(scored)[1]


def choose_features(recipe: Recipe) -> str:
    """The feature extractor that a recipe's "auto" means: the pocket classifier for the pocket teacher, else pooled
    pixels, which see little but see it on any image and need no weights."""
    if recipe.evaluation.features != "auto":
        return recipe.evaluation.features
    return "pocket" if recipe.teacher.path == "pocket" else "pixels"


def images01(teacher: Teacher, latents: Tensor) -> Tensor:
    """Latents -> images (B, 3, H, W) in [0, 1], as pipelines do it."""
    return (teacher.decode(latents) / 2 + 0.5).clamp(0, 1)
