"""What methods with a fake score share: its training, the noise levels, the student's samples, the discriminator.

The fake score is a network that learns the score of the student's own distribution by denoising the student's samples.
DMD and SiD compare it with the teacher's score, each in a loss of its own. Optional additions are a GAN loss on
features of the fake score and several sampling steps, both from DMD2 (Yin et al. 2024, arXiv 2405.14867). Equation
numbers in brackets are those of DMD (Yin et al. 2023, arXiv 2311.18828), section numbers are DMD2's.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data.batch import Batch
from distill.methods.base import Distiller, Logs
from distill.methods.discriminator import Discriminator, NoisySample, approximate_r1, frozen
from distill.methods.fake_score_options import FakeScoreOptions
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.karras import KarrasGrid
from teachers.core.sampling import sample
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, expand, to_velocity
from teachers.families.embedded_guidance import EmbeddedGuidance
from teachers.families.output_guidance import OutputGuidance
from teachers.networks.storage import without_autocast

KARRAS = KarrasGrid()  # of noise_levels=karras
PROMPT_DROPOUT = 0.1  # probability of the null condition in the training of a guided fake score


class FakeScoreDistiller(Distiller, ABC):
    """A method whose student trains on the difference between the teacher's score and a fake score.

    A subclass defines `student_phase`. See `distill.methods.base.Distiller` for the arguments.

    Attributes:
        times: The angles of the student's sampling steps, in radians.
        fake_score: The network that learns the student's score.
        discriminator: The discriminator; None without a GAN loss.
    """

    Options: ClassVar[type[Any]] = FakeScoreOptions
    PHASES = ("fake_score", "student")
    options: FakeScoreOptions

    def __init__(
        self, teacher: Teacher, guidance: float, options: FakeScoreOptions, student: Denoiser | None = None
    ) -> None:
        super().__init__(teacher, guidance, options, student)
        embedded = teacher.embeds_guidance or isinstance(teacher, EmbeddedGuidance | OutputGuidance)
        if options.fake_score_guidance != 1.0 and embedded:
            raise ValueError(
                f"method.fake_score_guidance must be 1, got {options.fake_score_guidance:g}: the guidance of a "
                f"{type(teacher).__name__} is not a combination of two velocities"
            )
        self.times = self.angles(options.timesteps)
        self.fake_score = teacher.student()  # mu_fake starts as the teacher (DMD, section 3.2)
        if options.fake_score_alignment:  # adapters have random weights at first, which must agree to be interpolated
            self.fake_score.load_state_dict(self.student.state_dict())
        self.discriminator = self._discriminator() if options.gan_weight else None

    @classmethod
    def needs_latents(cls, options: FakeScoreOptions) -> bool:
        return options.gan_weight > 0

    def phases(self, step: int) -> tuple[str, ...]:
        return ("fake_score",) * self.options.fake_score_updates + ("student",)

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        discriminator = [self.discriminator] if self.discriminator else []
        return {"fake_score": [self.fake_score, *discriminator], "student": [self.student]}

    def sampling_schedules(self) -> list[list[float]]:
        return [self.times]

    def preview_models(self) -> Mapping[str, Denoiser]:
        return {"fake score": self.fake_score}

    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        return self.fake_score_phase(batch) if phase == "fake_score" else self.student_phase(batch)

    def averages(self) -> Sequence[tuple[Denoiser, float]]:
        """Implicit distribution alignment: fake <- lambda fake + (1 - lambda) student, after each student update.

        Source: Ge et al. 2025, "SenseFlow", arXiv 2506.00523. The fake score then follows the student
        between its own updates. Adapters are interpolated matrix by matrix.
        """
        alignment = self.options.fake_score_alignment
        return [(self.fake_score, 1 - alignment)] if alignment else []

    @abstractmethod
    def student_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The student's loss and the values to log; see `Distiller.forward`."""

    # --- samples and noise levels -------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Tensor:
        """x = G(z), (B, ...): the student's output after a random number of its steps; see `rollout`."""
        return self.rollout(batch)[0]

    def rollout(self, batch: Batch) -> tuple[Tensor, int]:
        """The student's output (B, ...) after a random number of its steps, and the index of the last one in `times`.

        The number is the same for the whole batch. The input of the last step is the student's own earlier output, not
        noisy data ("backward simulation", 4.5).
        """
        last = batch.rng.pick(len(self.times))
        noise = batch.rng.normal(*self.teacher.shape)
        x = sample(self.student, noise, self.times[: last + 1], batch.cond, lambda: batch.rng.normal(*noise.shape[1:]))
        return x, last

    def noise_level(self, batch: Batch, limits: tuple[float, float] | None = None) -> Tensor:
        """Random angles (B,) in radians, uniform in timesteps (DMD, section 3.2) or on Karras' grid.

        Args:
            batch: Supplies the random numbers.
            limits: The part of the noise levels that is used, within [0, 1]; default: `noise_range`.
        """
        low, high = self.options.noise_range if limits is None else limits
        fraction = low + (high - low) * batch.rng.uniform().double()
        path = self.student.path
        if self.options.noise_levels == "timesteps":
            return path.angle(fraction * (path.num_train_timesteps - 1)).float()
        return torch.atan(KARRAS.levels(fraction) / path.sigma_data).clamp(path.t_min, path.t_max).float()

    def noise_fraction(self, angle: float) -> float:
        """The position in [0, 1] of an angle, in radians, among the noise levels: the inverse of `noise_level`."""
        path = self.student.path
        if self.options.noise_levels == "timesteps":
            last = path.num_train_timesteps - 1
            return min(1.0, path.timestep(torch.tensor([angle], dtype=torch.float64)).item() / last)
        sigma = path.sigma_data * torch.tensor(angle, dtype=torch.float64).tan()
        return KARRAS.fraction(sigma.clamp(KARRAS.sigma_min, KARRAS.sigma_max)).item()

    # --- the fake score -----------------------------------------------------------------------------------------------

    def fake_velocity(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The fake score's velocity, the shape of x_t, at its guidance scale."""
        fake = self.fake_score.velocity(x_t, t, cond)
        if self.options.fake_score_guidance == 1.0 or not self.teacher.guided:
            return fake
        null = self.fake_score.velocity(x_t, t, self.teacher.null_condition(cond))
        return null + self.options.fake_score_guidance * (fake - null)

    def trained_velocity(self, batch: Batch, x_t: Tensor, t: Tensor) -> Tensor:
        """The fake score's velocity whose error trains it.

        By default it has no guidance; for a guided fake score some rows are null, which trains its unconditional
        branch.
        """
        return self.fake_score.velocity(x_t, t, self._drop_prompts(batch))

    def fake_score_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The fake score's denoising loss on the student's samples [6], plus the discriminator's loss (4.3)."""
        with torch.no_grad():
            x = self.generate(batch)
        t = self.noise_level(batch)
        noise = batch.rng.normal(*x.shape[1:])
        velocity = self.trained_velocity(batch, add_noise(x, noise, t), t)
        error = (velocity - to_velocity(x, noise, t)).square().flatten(1).mean(1)
        # The weight in [6]: the squared velocity error is the squared x0 error with EDM's weight
        # 1 / sigma^2 + 1 / sigma_d^2.
        # The velocity error is the epsilon error divided by cos t, or the x0 error divided by sin t.
        if self.options.fake_score_loss == "epsilon":
            error = torch.cos(t).square() * error
        elif self.options.fake_score_loss == "sample":
            error = torch.sin(t).square() * error
        loss = error.mean()
        logs = {"loss": loss.detach()}
        if self.discriminator is not None:
            adversarial, details = self.discriminator_loss(batch, x)
            loss = loss + self.options.discriminator_weight * adversarial
            logs |= details
        return loss, logs

    def _drop_prompts(self, batch: Batch) -> Condition:
        """The batch's condition; for a guided fake score some rows are null."""
        if self.options.fake_score_guidance == 1.0 or not self.teacher.guided:
            return batch.cond
        drop, null = batch.rng.uniform() < PROMPT_DROPOUT, self.teacher.null_condition(batch.cond)
        return {key: torch.where(expand(drop, value), null[key], value) for key, value in batch.cond.items()}

    # --- the discriminator --------------------------------------------------------------------------------------------

    def add_adversarial(self, batch: Batch, x: Tensor, loss: Tensor, logs: Logs) -> Tensor:
        """`loss` plus the student's GAN loss -log D(F(x, t)) (4.3), if there is one; it is also written to `logs`."""
        if self.discriminator is None:
            return loss
        with frozen(self.fake_score, self.discriminator):
            adversarial = F.softplus(-self.noisy_logits(batch, x)[0]).mean()
        logs["adversarial"] = adversarial.detach()
        return loss + self.options.gan_weight * adversarial

    def discriminator_loss(self, batch: Batch, x: Tensor) -> tuple[Tensor, Logs]:
        """The discriminator's loss -log D(real) - log(1 - D(x)) (4.3) with the optional R1 penalty on real samples."""
        assert self.discriminator is not None and batch.latents is not None
        # R1's difference of logits needs the real ones without autocast. The fake ones have the same precision then, or
        # the discriminator could learn the rounding.
        with without_autocast(x.device) if self.options.r1_weight else nullcontext():
            fake, _ = self.noisy_logits(batch, x)
            real, noisy = self.noisy_logits(batch, batch.latents)
        loss = F.softplus(fake).mean() + F.softplus(-real).mean()
        logs = {"real_logit": real.mean().detach(), "fake_logit": fake.mean().detach()}
        if self.options.r1_weight:
            noise = batch.rng.normal(*x.shape[1:])
            penalty = approximate_r1(self.discriminator, self._features(), real, noisy, noise)
            loss = loss + self.options.r1_weight * penalty
            logs["r1"] = penalty.detach()
        return loss, logs | {"discriminator": loss.detach()}

    def noisy_logits(self, batch: Batch, x: Tensor) -> tuple[Tensor, NoisySample]:
        """The discriminator's logits (B,) at noisy copies of x (B, ...), and these copies with angle and condition."""
        assert self.discriminator is not None
        t = self.noise_level(batch, self.options.gan_noise_range)
        noisy = add_noise(x, batch.rng.normal(*x.shape[1:]), t), t, batch.cond
        return self.discriminator(self._features(), *noisy), noisy

    def _features(self) -> Denoiser:
        if self.options.gan_features == "fake_score":
            return self.fake_score
        if self.teacher.offloaded is not None:
            raise ValueError("memory.offload_teacher must be false with method.gan_features=teacher")
        return self.teacher.denoiser

    def _example(self) -> NoisySample:
        device = self._device()
        t = torch.full((1,), self.times[0], device=device)
        cond = self.teacher.null_row() if self.teacher.guided else self.teacher.meta_condition()
        return torch.zeros(1, *self.teacher.shape, device=device), t, cond

    def _device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _discriminator(self) -> Discriminator:
        layer, stream = self.teacher.feature_layer, self.teacher.stream
        return Discriminator(self._features(), self._example(), layer, stream=stream)
