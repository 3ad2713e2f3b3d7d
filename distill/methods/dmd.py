"""Distribution Matching Distillation: DMD (Yin et al. 2023, arXiv 2311.18828) and DMD2 (Yin et al. 2024, 2405.14867).

A student G of one or a few steps is pushed along the difference of two scores at a noisy copy of its own sample: the
teacher's (real) and that of a fake-score network, which learns the student's distribution by denoising it. Around that,
each an option: regression on teacher pairs (DMD), a GAN on the fake score's features and several steps (DMD2). Equation
numbers in brackets are DMD's, section numbers DMD2's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data.batch import Batch
from distill.methods.base import Distiller, Logs
from distill.methods.discriminator import Discriminator, approximate_r1, frozen
from eval.metrics.perceptual import Lpips
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.sampling import sample
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, expand, to_velocity, to_x0

KARRAS = (0.002, 80.0, 7.0)  # sigma_min, sigma_max, rho (Karras et al. 2022, arXiv 2206.00364, equation 5)

DROPPED = 0.1  # share of prompts left out for a guided fake score


@dataclass
class DMDOptions:
    timesteps: tuple[int, ...] = ()  # native timesteps that the student is told, one a step; none: one step, the last
    fake_score_updates: int = 2  # updates of the fake score for one of the student (two time scales, 4.2)
    noise_levels: Literal["timesteps", "karras"] = "timesteps"  # uniform in the teacher's timesteps, or on Karras' grid
    noise_range: tuple[float, float] = (0.02, 0.98)  # of those, from clean (0) to pure noise (1)
    weighting: Literal["dmd", "karras", "uniform"] = "dmd"  # of the gradient, see `DMD.gradient`
    fake_score_loss: Literal["velocity", "epsilon", "sample"] = "velocity"
    fake_score_guidance: float = 1.0
    regression_weight: float = 0.0  # of the regression on teacher pairs [9]; DMD took 0.25, DMD2 drops it
    regression_distance: Literal["lpips", "latent"] = "lpips"  # LPIPS of decoded images, or mean squares of latents
    regression_pairs: int = 2000
    regression_teacher_steps: int = 20
    gan_weight: float = 0.0  # of the student's adversarial loss (4.3; DMD2 took 1e-3 to 5e-3); needs images
    discriminator_weight: float = 0.01  # of the discriminator's loss beside the fake score's
    gan_features: Literal["fake_score", "teacher"] = "fake_score"
    gan_noise_range: tuple[float, float] = (0.0, 1.0)
    r1_weight: float = 0.0  # of the discriminator's gradient penalty on real images


class DMD(Distiller):
    """One step, or as many as `timesteps`. Needs prompts only, with a GAN images too."""

    Options = DMDOptions
    PHASES = ("fake_score", "student")
    options: DMDOptions

    def __init__(self, teacher: Teacher, guidance: float, options: DMDOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        if options.fake_score_updates < 1:
            raise ValueError(
                f"method.fake_score_updates is {options.fake_score_updates}; the fake score needs 1 at least"
            )
        for name in ("noise_range", "gan_noise_range"):
            low, high = getattr(options, name)
            if not 0 <= low < high <= 1:
                raise ValueError(f"method.{name} is {(low, high)}; it has to rise within [0, 1]")
        if options.regression_weight and options.regression_pairs < 1:
            raise ValueError("method.regression_pairs is 0 while method.regression_weight is not; make 1 pair at least")
        if options.r1_weight and not options.gan_weight:
            raise ValueError("method.r1_weight penalises a discriminator, and there is none: set method.gan_weight too")
        self.times = self.angles(options.timesteps)
        self.fake_score = teacher.student()  # mu_fake starts as the teacher (DMD, section 3.2)
        self.discriminator = Discriminator(self._features(), self._example()) if options.gan_weight else None
        self.lpips = Lpips(self._device()) if self._by_lpips() else None

    @classmethod
    def needs_latents(cls, options: DMDOptions) -> bool:
        return options.gan_weight > 0

    @classmethod
    def pairs(cls, options: DMDOptions) -> tuple[int, int]:
        return (options.regression_pairs if options.regression_weight else 0), options.regression_teacher_steps

    def phases(self, step: int) -> tuple[str, ...]:
        return ("fake_score",) * self.options.fake_score_updates + ("student",)

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        judge = [self.discriminator] if self.discriminator else []
        return {"fake_score": [self.fake_score, *judge], "student": [self.student]}

    def candidate_times(self) -> list[list[float]]:
        return [self.times]

    def preview_models(self) -> Mapping[str, Denoiser]:
        return {"fake score": self.fake_score}

    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        return self.fake_score_phase(batch) if phase == "fake_score" else self.student_phase(batch)

    def generate(self, batch: Batch) -> Tensor:
        """x = G(z), (B, C, H, W): the student's answer at one of its steps, drawn for the whole batch.

        Its input there is what it makes itself from pure noise, not noisy data ("backward simulation", 4.5).
        """
        last = batch.rng.pick(len(self.times))
        noise = batch.rng.normal(*self.teacher.shape)
        return sample(
            self.student, noise, self.times[: last + 1], batch.cond, lambda: batch.rng.normal(*noise.shape[1:])
        )

    def noise_level(self, batch: Batch, limits: tuple[float, float] | None = None) -> Tensor:
        """Angles (B,), uniform within `limits` (default: noise_range) of timesteps (DMD, 3.2) or of Karras' grid."""
        low, high = self.options.noise_range if limits is None else limits
        share = low + (high - low) * batch.rng.uniform().double()
        path = self.student.path
        if self.options.noise_levels == "timesteps":
            return path.angle(share * (path.num_train_timesteps - 1)).float()
        least, most, rho = KARRAS
        sigma = (least ** (1 / rho) + share * (most ** (1 / rho) - least ** (1 / rho))) ** rho
        return torch.atan(sigma / path.sigma_data).clamp(path.t_min, path.t_max).float()

    # --- the student --------------------------------------------------------------------------------------------------

    def student_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        x = self.generate(batch)
        t = self.noise_level(batch)
        x_t = add_noise(x.detach(), batch.rng.normal(*x.shape[1:]), t)  # q_t(x_t | x) [3]
        gradient, spread = self.gradient(x.detach(), x_t, t, batch.cond)
        # [7]: the gradient of 0.5 |x - stop(x - gradient)|^2 with respect to x is `gradient`.
        loss = 0.5 * (x - (x.detach() - gradient)).square().mean()
        logs = {"dmd_gradient": gradient.abs().mean(), "real_residual": spread.mean(), "loss": loss.detach()}
        if self.discriminator is not None:
            with frozen(self.fake_score, self.discriminator):
                adversarial = F.softplus(-self.judge(batch, x)[0]).mean()  # -log D(F(G(z), t)) (4.3)
            loss = loss + self.options.gan_weight * adversarial
            logs["adversarial"] = adversarial.detach()
        if self.options.regression_weight:
            regression = self.regression(batch)
            loss = loss + self.options.regression_weight * regression
            logs["regression"] = regression.detach()
        return loss, logs

    @torch.no_grad()
    def gradient(self, x: Tensor, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """w (x0_fake - x0_real), (B, C, H, W), and each sample's mean |x - x0_real|, (B,).

        [7] and [8] with each score s = (cos t x0 - x_t) / sin^2 t: the difference of scores is that of denoised samples
        times cos t / sin^2 t, and the paper's weight w_t = (sin^2 t / cos t) CS / |x - x0_real|_1 cancels that factor.
        (The paper prints w_t with an alpha_t that leaves a factor cos t; no public code has it, nor have we.) What is
        left is w = 1 / mean|x - x0_real| ("dmd"), per sample, never over the batch. "uniform" is w = 1, and "karras"
        EDM's w = 1 / sigma^2 + 1 / sigma_d^2 = 1 / sin^2 t at unit variance.
        """
        real = self.teacher.velocity(x_t, t, cond, self.guidance)
        fake = self.fake_score.velocity(x_t, t, cond)
        if self.options.fake_score_guidance != 1.0 and self.teacher.guided:
            without = self.fake_score.velocity(x_t, t, self.teacher.null_condition(cond))
            fake = without + self.options.fake_score_guidance * (fake - without)
        spread = (x - to_x0(x_t, real, t)).abs().flatten(1).mean(1).clamp_min(1e-5)
        sin = expand(torch.sin(t), x)
        difference = sin * (real - fake)  # x0_fake - x0_real
        if self.options.weighting == "dmd":
            difference = difference / expand(spread, x)
        elif self.options.weighting == "karras":
            difference = difference / sin.square().clamp_min(1e-4)
        return difference, spread

    def regression(self, batch: Batch) -> Tensor:
        """E l(G(z), y) on pairs of noise z and the teacher's endpoint y [9], by the first step of several."""
        assert batch.pairs is not None
        noise, endpoint, cond = batch.pairs()
        made = sample(self.student, noise, self.times[:1], cond, lambda: noise)
        if self.lpips is None:
            return (made - endpoint).square().mean()
        with torch.no_grad():
            wanted = self.teacher.decode(endpoint)
        return self.lpips(self.teacher.decode(made), wanted).mean()

    # --- the fake score and the discriminator -------------------------------------------------------------------------

    def fake_score_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            x = self.generate(batch)
        t = self.noise_level(batch)
        noise = batch.rng.normal(*x.shape[1:])
        velocity = self.fake_score.velocity(add_noise(x, noise, t), t, self._dropped(batch))
        error = (velocity - to_velocity(x, noise, t)).square().flatten(1).mean(1)
        # [6] weighs the denoising loss. A velocity error is EDM's weight (1 / sigma^2 + 1 / sigma_d^2) on x0's, and is
        # epsilon's error over cos t and x0's over sin t.
        if self.options.fake_score_loss == "epsilon":
            error = torch.cos(t).square() * error
        elif self.options.fake_score_loss == "sample":
            error = torch.sin(t).square() * error
        loss = error.mean()
        logs = {"loss": loss.detach()}
        if self.discriminator is not None:
            adversarial, judged = self.discriminate(batch, x)
            loss = loss + self.options.discriminator_weight * adversarial
            logs |= judged
        return loss, logs

    def discriminate(self, batch: Batch, x: Tensor) -> tuple[Tensor, Logs]:
        """The discriminator's loss -log D(real) - log(1 - D(x)) (4.3), with R1 on the real side; and what to log."""
        assert self.discriminator is not None and batch.latents is not None
        fake, _ = self.judge(batch, x)
        real, place = self.judge(batch, batch.latents)
        loss = F.softplus(fake).mean() + F.softplus(-real).mean()
        logs = {"real_logit": real.mean().detach(), "fake_logit": fake.mean().detach()}
        if self.options.r1_weight:
            noise = batch.rng.normal(*x.shape[1:])
            penalty = approximate_r1(self.discriminator, self._features(), place, noise)
            loss = loss + self.options.r1_weight * penalty
            logs["r1"] = penalty.detach()
        return loss, logs | {"discriminator": loss.detach()}

    def judge(self, batch: Batch, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Condition]]:
        """Logits (B,) of noisy copies of x (B, C, H, W), and those copies with their angles and conditions."""
        assert self.discriminator is not None
        t = self.noise_level(batch, self.options.gan_noise_range)
        place = add_noise(x, batch.rng.normal(*x.shape[1:]), t), t, batch.cond
        return self.discriminator(self._features(), *place), place

    def _dropped(self, batch: Batch) -> Condition:
        """The batch's condition; where the fake score is guided, some rows lose their prompt, so that its unguided
        branch follows the student too."""
        if self.options.fake_score_guidance == 1.0 or not self.teacher.guided:
            return batch.cond
        drop, empty = batch.rng.uniform() < DROPPED, self.teacher.null_condition(batch.cond)
        return {key: torch.where(expand(drop, value), empty[key], value) for key, value in batch.cond.items()}

    def _features(self) -> Denoiser:
        if self.options.gan_features == "fake_score":
            return self.fake_score
        if self.teacher.offloaded is not None:
            raise ValueError("method.gan_features=teacher needs the teacher at hand: set memory.offload_teacher=false")
        return self.teacher.denoiser

    def _example(self) -> tuple[Tensor, Tensor, Condition]:
        device = self._device()
        t = torch.full((1,), self.times[0], device=device)
        return torch.zeros(1, *self.teacher.shape, device=device), t, self.teacher.null_row()

    def _device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _by_lpips(self) -> bool:
        return self.options.regression_weight > 0 and self.options.regression_distance == "lpips"
