"""Evaluation during training: a held-out Frechet distance to the teacher's samples, and a grid of samples.

Losses do not show whether a distillation works: the fake score's loss falls even when samples collapse. The student is
sampled from fixed held-out noise and the training prompts. The teacher's samples, from the same prompts and other
noise, are made once and stored in the run's cache.
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
from distill.training.run_folder import JsonlLog, warn_if_unwritable
from eval.features.extractors import Extractor, extractor
from eval.metrics.fid import frechet_from_statistics, statistics
from teachers.core.denoiser import Denoiser
from teachers.core.sampling import sample, teacher_endpoint
from teachers.core.teacher import Teacher
from teachers.support.files import atomic_write

CHUNK = 50  # samples of one batch
GRID = 8  # images in a row of the grid
FORMAT = 2  # of the cached results of the teacher


class Monitor:
    """Evaluates a student during training.

    Args:
        recipe: The run's recipe.
        teacher: The run's teacher.
        data: The run's data; conditions come from its prompts.
        features: Name of a feature extractor of `eval.features.extractors`.
        device: The device of the networks.
        writes: Whether this process writes files and messages. With sharded networks every process has a monitor,
            because all of them take part in sampling, but only one writes.
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
        self.noise = torch.randn(self.count, *teacher.shape, generator=self._generator(recipe, "student"))
        steps, guidance = recipe.train.evaluate_teacher_steps, recipe.teacher.guidance
        key = f"{FORMAT} {recipe.teacher} {features} {self.count} {steps} {recipe.seed} {data.captions}"
        with eager():
            self.teacher_results = cached(
                recipe.folder / "cache" / "teacher.safetensors",
                key,
                lambda: self._sample_teacher(steps, guidance, self._generator(recipe, "teacher")),
            )

    @torch.no_grad()
    def _sample_teacher(self, steps: int, guidance: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Feature statistics of the teacher's samples, and its images from the student's first noise rows."""
        noise = torch.randn(self.noise.shape, generator=generator)
        features = []
        for rows in tqdm(torch.arange(self.count).split(CHUNK), desc="the teacher's samples"):
            endpoints = teacher_endpoint(self.teacher, noise[rows].to(self.device), self._cond(rows), steps, guidance)
            features.append(self.extract(decode_images(self.teacher, endpoints)).cpu())
        same_noise = self.noise[: GRID * 2].to(self.device)
        cond = self._cond(torch.arange(len(same_noise)))
        images = decode_images(self.teacher, teacher_endpoint(self.teacher, same_noise, cond, steps, guidance))
        mean, covariance = statistics(torch.cat(features))
        return {"mean": mean, "covariance": covariance, "images": images.cpu()}

    @staticmethod
    def _generator(recipe: Recipe, purpose: str) -> torch.Generator:
        return BatchRandom((recipe.seed, "held out", purpose), 0, 1, 1, torch.device("cpu")).generator

    def _randn(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).to(self.device)

    @torch.no_grad()
    def images(self, student: Denoiser, times: Sequence[float], count: int) -> Tensor:
        """The student's samples from the held-out prompts and noise.

        Args:
            student: The student, or its EMA.
            times: Decreasing angles of its steps, in radians.
            count: Number of samples.

        Returns:
            Images (count, 3, H, W) in [0, 1].
        """
        images = []
        generator = torch.Generator().manual_seed(0)
        for rows in torch.arange(count).split(CHUNK):
            noise = self.noise[rows].to(self.device)
            more_noise = partial(self._randn, noise.shape, generator)
            with eager():  # compiling for another batch size than the run's takes longer than it saves
                latents = sample(student, noise, times, self._cond(rows), more_noise)
                images.append(decode_images(self.teacher, latents))
        return torch.cat(images)

    @torch.no_grad()
    def distance(self, student: Denoiser, times: Sequence[float]) -> float:
        """Frechet distance between the features of the student's held-out samples and of the teacher's samples."""
        images = self.images(student, times, self.count)
        mean, covariance = statistics(torch.cat([self.extract(part).cpu() for part in images.split(CHUNK)]))
        target = self.teacher_results
        return frechet_from_statistics(mean, covariance, target["mean"], target["covariance"])

    def grid(self, step: int, rows: Mapping[str, tuple[Denoiser, Sequence[float]]]) -> Tensor:
        """Save a grid of samples: the teacher's in the first row, then one row for each denoiser, from the same noise.

        Args:
            step: The training step, which becomes the file's name.
            rows: A denoiser and its sampling angles for each row, by name.

        Returns:
            The grid as one image (3, H, W) in [0, 1].
        """
        count = min(GRID, self.count)
        images = [self.teacher_results["images"][:count]]
        images += [self.images(denoiser, times, count).cpu() for denoiser, times in rows.values()]
        grid = torch.cat([torch.cat(list(row), dim=2) for row in images], dim=1).clamp(0, 1)
        if not self.writes:
            return grid
        path = self.folder / "samples" / f"{step:08d}.png"
        scale = max(1, math.ceil(64 / self.teacher.image_size[0]))
        array = (grid * 255).round().byte().permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        with warn_if_unwritable(f"the grid of samples of step {step}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                Image.fromarray(array.numpy()).save(temporary, format="PNG")
            with atomic_write(path.parent / "rows.json") as temporary:
                temporary.write_text(json.dumps(["teacher", *rows]))
        return grid

    def evaluate(
        self,
        history: JsonlLog,
        distiller: Distiller,
        ema: Denoiser,
        step: int,
        seconds: float,
        trackers: Sequence[Any],
    ) -> None:
        """Evaluate the EMA: Frechet distances for each number of steps, and a grid of samples.

        Every process with a monitor calls it. The process that writes appends a record to `history`, prints a message
        and logs to the trackers.

        Args:
            history: The file of held-out distances.
            distiller: The method.
            ema: The student's EMA.
            step: The training step.
            seconds: Training time so far.
            trackers: accelerate's trackers.
        """
        times = distiller.sampling_schedules()[0]
        counts = distiller.step_counts(times)
        distances = {f"{n}": self.distance(ema, times[:n]) for n in counts}
        rows = {f"student, {n} steps": (ema, times[:n]) for n in counts}
        rows |= {name: (denoiser, times[:1]) for name, denoiser in distiller.preview_models().items()}
        grid = self.grid(step, rows)
        if not self.writes:
            return
        history.append({"step": step, "seconds": round(seconds, 2), "held_out_frechet": distances})
        tqdm.write(
            f"step {step}: held-out Frechet distance to the teacher "
            + ", ".join(f"{d:.3f} ({n} steps)" for n, d in distances.items())
        )
        with warn_if_unwritable(f"the trackers' record of step {step}"):
            for tracker in trackers:
                tracker.log({f"held_out_frechet/{n}": d for n, d in distances.items()}, step=step)
                if tracker.name == "tensorboard":
                    tracker.writer.add_image("samples", grid, step)

    def select_schedule(self, distiller: Distiller, ema: Denoiser) -> list[float]:
        """The sampling schedule of the method with the smallest held-out distance.

        Args:
            distiller: The method, which has the candidates.
            ema: The student's EMA.

        Returns:
            Decreasing angles in radians.
        """
        candidates = distiller.sampling_schedules()
        if len(candidates) == 1:
            return candidates[0]
        bar = tqdm(candidates, desc="choosing the second step's time", disable=not self.writes)
        scored = [(self.distance(ema, times), times) for times in bar]
        for distance, times in scored if self.writes else []:
            print(f"times {', '.join(f'{t:.3f}' for t in times)} rad: held-out Frechet distance {distance:.3f}")
        return min(scored)[1]


def choose_features(recipe: Recipe) -> str:
    """The feature extractor of a recipe.

    "auto" means the pocket classifier for the pocket teacher, else pooled pixels, which detect little but need no
    weights and work for images of any kind.
    """
    if recipe.evaluation.features != "auto":
        return recipe.evaluation.features
    return "pocket" if recipe.teacher.path == "pocket" else "pixels"


def decode_images(teacher: Teacher, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] from unit-variance latents (B, ...), as pipelines decode them."""
    return (teacher.decode(latents) / 2 + 0.5).clamp(0, 1)
