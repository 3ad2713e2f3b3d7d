"""Held-out evaluation of a student: the Frechet distance of its samples to the teacher's, and their diversity.

The student is sampled from fixed held-out noise and the training prompts. The teacher's samples, from the same prompts
and other noise, are made once and stored in the run's cache.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from distill.config.recipe import Recipe
from distill.config.run_files import CACHE
from distill.data import shards
from distill.data.batch_random import BatchRandom
from distill.data.dataset import Dataset
from distill.methods.base import Distiller
from distill.methods.compiling import eager
from distill.training.decoding import chunk_size, decode_samples
from distill.training.diversity import NOISES, SAMPLES, compared, relative_variation, variation
from distill.training.previews import columns, preview
from eval.features.extractors import Extractor
from eval.features.media_extractors import extractor_for
from eval.metrics.fid import frechet_from_statistics, statistics
from teachers.core.denoiser import Denoiser
from teachers.core.few_step import initial_x_t
from teachers.core.sampling import sample, teacher_endpoint
from teachers.core.teacher import Teacher
from teachers.core.trigflow import to_x0
from teachers.loading.contents import teacher_key
from teachers.support.keys import key


def teacher_samples_key(recipe: Recipe, teacher: Teacher, data: Dataset, features: Extractor) -> str:
    """A key of everything that the features of the teacher's samples depend on; see `HeldOut` for the arguments."""
    contents = teacher.contents() if data.teacher is None else data.teacher
    prompts = [data.captions[i] for i in data.prompt[data.held_out_rows(recipe.train.evaluate_samples)].tolist()]
    if data.sources is not None:
        prompts.append(data.sources)
    options = (recipe.teacher.guidance, recipe.train.evaluate_teacher_steps, recipe.seed)
    return teacher_key(teacher, contents, (prompts, options, features.name, features.weights), __name__, decode_samples)


class HeldOut:
    """Compares a student's samples with the teacher's, on noise and prompts that stay the same during training.

    Args:
        recipe: The run's recipe.
        teacher: The run's teacher.
        data: The run's data; conditions come from its prompts.
        features: Name of a feature extractor for the teacher's medium (`eval.features.media_extractors`).
        device: The device of the networks.
        writes: Whether this process writes files and messages. With sharded networks every process evaluates, because
            all of them take part in sampling, but only one writes.

    Attributes:
        key: A key of the teacher's samples. Only distances with the same key can be compared.
        noise_floor: The expected distance between two sets of the teacher's samples, approximately.
        candidates: The schedules that `select_schedule` compared, with their distances (None if not finite).
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
        self.candidates: list[tuple[list[float], float | None]] = []
        self.teacher, self.device = teacher, device
        self.count = recipe.train.evaluate_samples
        self._cond = data.held_out(self.count)
        self.extract: Extractor = extractor_for(features, teacher.medium, device)
        self.chunk = chunk_size(teacher.medium)
        self.noise = torch.randn(self.count, *teacher.shape, generator=self._generator(recipe, "student"))
        steps, guidance = recipe.train.evaluate_teacher_steps, recipe.teacher.guidance
        name, cache = teacher_samples_key(recipe, teacher, data, self.extract), recipe.folder / CACHE
        self.key = name[:12]
        with eager():
            self.teacher_results = shards.cached(
                cache / "teacher.safetensors",
                name,
                lambda: self._sample_teacher(steps, guidance, self._generator(recipe, "teacher")),
            )
            self.teacher_diversity = shards.cached(
                cache / "diversity.safetensors",
                key("diversity", name),
                lambda: self._teacher_diversity(steps, guidance),
            )
        self.noise_floor = 2 * self.teacher_results["covariance"].trace().item() / self.count

    def diversity(self, distiller: Distiller, student: Denoiser) -> tuple[float, float]:
        """How much samples from the same prompt vary with the noise, relative to the teacher's from the same noise.

        Args:
            distiller: The method, for the numbers of steps.
            student: The student, or its EMA.

        Returns:
            The student's ratio, the largest of all its numbers of steps, and the ratio of the teacher's x0 after one
            evaluation, from which a student starts. 0 for samples that are not finite.
        """
        times, target = distiller.sampling_schedules()[0], self.teacher_diversity["samples"]
        prompts, medium = torch.arange(min(SAMPLES, self.count)) // NOISES, self.teacher.medium
        samples = [
            torch.cat([compared(part, medium) for part in self.batches(student, times[:n], prompts)])
            for n in distiller.step_counts(times)
        ]
        ratios = [relative_variation(variation(part).cpu(), target) for part in samples]
        return max(ratios), relative_variation(self.teacher_diversity["first"], target)

    @torch.no_grad()
    def batches(self, student: Denoiser, times: Sequence[float], prompts: Tensor) -> Iterator[Tensor]:
        """The student's samples from held-out prompts and the first rows of the noise, in batches.

        Args:
            student: The student, or its EMA.
            times: Decreasing angles of its steps, in radians.
            prompts: The number of the held-out prompt of each sample, (N,).

        Yields:
            Samples (B, *medium.shape) in the judged range, such as images in [0, 1].
        """
        generator = torch.Generator().manual_seed(0)
        for rows in torch.arange(len(prompts)).split(self.chunk):
            noise = self.noise[rows].to(self.device)
            more_noise = partial(self._randn, noise.shape, generator)
            with eager():  # compiling for another batch size than the run's takes longer than it saves
                latents = sample(student, noise, times, self._cond(prompts[rows]), more_noise)
                samples = decode_samples(self.teacher, latents)
            yield samples

    @torch.no_grad()
    def distance(self, student: Denoiser, times: Sequence[float]) -> float:
        """Frechet distance between the features of the student's held-out samples and of the teacher's samples."""
        features, finite = [], True
        for part in self.batches(student, times, torch.arange(self.count)):  # all: sharded networks need every process
            finite &= bool(part.isfinite().all())
            features.append(self.extract(part).cpu())
        if not finite:
            return math.inf
        mean, covariance = statistics(torch.cat(features))
        target = self.teacher_results
        return frechet_from_statistics(mean, covariance, target["mean"], target["covariance"])

    def distances(self, distiller: Distiller, student: Denoiser) -> dict[str, float | None]:
        """The held-out Frechet distances by number of steps, as `history.jsonl` has them: None if not finite."""
        times = distiller.sampling_schedules()[0]
        found = {f"{n}": self.distance(student, times[:n]) for n in distiller.step_counts(times)}
        return {n: d if math.isfinite(d) else None for n, d in found.items()}

    def select_schedule(self, distiller: Distiller, ema: Denoiser) -> list[float]:
        """The sampling schedule of the method, as it is exported, with the smallest held-out distance.

        Args:
            distiller: The method, which has the candidates.
            ema: The student's EMA.

        Returns:
            Decreasing angles in radians.
        """
        candidates = self.teacher.native_candidates(ema, distiller.sampling_schedules())
        if len(candidates) == 1:
            return candidates[0]
        bar = tqdm(candidates, desc="choosing the second step's time", disable=not self.writes)
        scored = [(self.distance(ema, times), times) for times in bar]
        for distance, times in scored if self.writes else []:
            print(f"times {', '.join(f'{t:.3f}' for t in times)} rad: held-out Frechet distance {distance:.3f}")
        self.candidates = [(times, distance if math.isfinite(distance) else None) for distance, times in scored]
        return min(scored)[1]

    def shown_prompts(self) -> Tensor:
        """The numbers of the held-out prompts in previews, spread evenly: captions of a data set can be sorted."""
        count = min(columns(self.teacher.medium), self.count)
        return torch.arange(count) * (self.count // count)

    @torch.no_grad()
    def _teacher_diversity(self, steps: int, guidance: float) -> dict[str, Tensor]:
        """Variation over noise of the teacher's samples, and of its x0 after one evaluation at the largest angle."""
        samples, first, medium = [], [], self.teacher.medium
        for rows in torch.arange(min(SAMPLES, self.count)).split(self.chunk):
            noise, cond = self.noise[rows].to(self.device), self._cond(rows // NOISES)
            endpoints = teacher_endpoint(self.teacher, noise, cond, steps, guidance)
            samples.append(compared(decode_samples(self.teacher, endpoints), medium))
            t = torch.full((len(noise),), self.teacher.denoiser.path.t_max, device=self.device)
            x_t = initial_x_t(self.teacher.denoiser, noise, t[0].item())
            x0 = to_x0(x_t, self.teacher.velocity(x_t, t, cond, guidance), t)
            first.append(compared(decode_samples(self.teacher, x0), medium))
        return {"samples": variation(torch.cat(samples)).cpu(), "first": variation(torch.cat(first)).cpu()}

    @torch.no_grad()
    def _sample_teacher(self, steps: int, guidance: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Feature statistics of the teacher's samples, and previews of those from the student's first noise rows."""
        noise = torch.randn(self.noise.shape, generator=generator)
        features = []
        for rows in tqdm(torch.arange(self.count).split(self.chunk), desc="the teacher's samples"):
            endpoints = teacher_endpoint(self.teacher, noise[rows].to(self.device), self._cond(rows), steps, guidance)
            features.append(self.extract(decode_samples(self.teacher, endpoints)).cpu())
        shown = []
        prompts = self.shown_prompts()
        for rows in torch.arange(len(prompts)).split(self.chunk):
            same_noise, cond = self.noise[rows].to(self.device), self._cond(prompts[rows])
            endpoints = teacher_endpoint(self.teacher, same_noise, cond, steps, guidance)
            shown.append(preview(decode_samples(self.teacher, endpoints), self.teacher.medium).cpu())
        mean, covariance = statistics(torch.cat(features))
        return {"mean": mean, "covariance": covariance, "images": torch.cat(shown)}

    @staticmethod
    def _generator(recipe: Recipe, purpose: str) -> torch.Generator:
        return BatchRandom((recipe.seed, "held out", purpose), 0, 1, 1, torch.device("cpu")).generator

    def _randn(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).to(self.device)
