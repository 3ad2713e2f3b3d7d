"""Distribution Matching Distillation: DMD (Yin et al. 2023, arXiv 2311.18828), two time scales from DMD2 (2405.14867).

A one-step student G is pushed along the difference of two scores at a noisy copy of its own sample: the teacher's
(real) and that of a fake-score network, which learns the student's distribution by denoising it. Paper equations are in
brackets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distill.distiller import Batch, Distiller, Logs
from distill.sampling import sample
from teachers.denoiser import Condition, Denoiser
from teachers.teacher import Teacher
from teachers.trigflow import add_noise, to_velocity


@dataclass
class DMDOptions:
    fake_score_updates: int = 2  # updates of the fake score for one of the student (two time scales, DMD2 section 4.2)
    noise_range: tuple[float, float] = (0.02, 0.98)  # of the native schedule's timesteps, drawn uniformly
    conditioning_timestep: int | None = None  # native timestep that the student is told; None means the last, t_max
    fake_score_loss: Literal["velocity", "epsilon"] = "velocity"
    fake_score_guidance: float = 1.0
    regression_weight: float = 0.0  # of DMD's regression on teacher pairs [7]; DMD2 drops it
    regression_pairs: int = 2000
    regression_teacher_steps: int = 20


class DMD(Distiller):
    """One step, from pure noise. Needs prompts only."""

    Options = DMDOptions
    turn_names = ("fake_score", "student")
    options: DMDOptions

    def __init__(self, teacher: Teacher, guidance: float, options: DMDOptions) -> None:
        super().__init__(teacher, guidance, options)
        if options.fake_score_updates < 1:
            raise ValueError(
                f"method.fake_score_updates is {options.fake_score_updates}; the fake score needs 1 at least"
            )
        low, high = options.noise_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"method.noise_range is {options.noise_range}; it has to rise within [0, 1]")
        self.start = self.starting_angle(options.conditioning_timestep)
        self.fake_score = teacher.student()  # mu_fake starts as the teacher [section 3.2]

    def turns(self, step: int) -> tuple[str, ...]:
        return ("fake_score",) * self.options.fake_score_updates + ("student",)

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        return {"fake_score": [self.fake_score], "student": [self.student]}

    def candidate_times(self) -> list[list[float]]:
        return [[self.start]]

    def pictured(self) -> Mapping[str, Denoiser]:
        return {"fake score": self.fake_score}

    def pairs(self) -> tuple[int, int]:
        wanted = self.options.regression_pairs if self.options.regression_weight else 0
        return wanted, self.options.regression_teacher_steps

    def forward(self, turn: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        return self.fake_score_turn(batch) if turn == "fake_score" else self.student_turn(batch)

    def generate(self, batch: Batch) -> Tensor:
        """x = G(z), (B, C, H, W)."""
        noise = batch.draws.normal(*self.teacher.shape)
        return sample(self.student, noise, [self.start], batch.cond, batch.draws.normal)

    def noise_level(self, batch: Batch) -> Tensor:
        """t ~ U(T_min, T_max) in native timesteps [2], as angles (B,)."""
        low, high = self.options.noise_range
        path = self.student.path
        return path.angle(
            (low + (high - low) * batch.draws.uniform().double()) * (path.num_train_timesteps - 1)
        ).float()

    def student_turn(self, batch: Batch) -> tuple[Tensor, Logs]:
        x = self.generate(batch)
        t = self.noise_level(batch)
        x_t = add_noise(x.detach(), batch.draws.normal(*x.shape[1:]), t)  # q_t(x_t | x) [1]
        gradient, spread = self.gradient(x.detach(), x_t, t, batch.cond)
        # [7]: the gradient of 0.5 |x - stop(x - gradient)|^2 with respect to x is `gradient`.
        loss = 0.5 * (x - (x.detach() - gradient)).square().mean()
        logs = {"dmd_gradient": gradient.abs().mean(), "real_residual": spread.mean(), "loss": loss.detach()}
        if self.options.regression_weight and batch.pairs is not None:
            noise, endpoint = batch.pairs
            made = sample(self.student, noise, [self.start], batch.cond, batch.draws.normal)
            regression = (made - endpoint).square().mean()  # [9] with a plain distance in latents
            loss = loss + self.options.regression_weight * regression
            logs["regression"] = regression.detach()
        return loss, logs

    @torch.no_grad()
    def gradient(self, x: Tensor, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """(x0_fake - x0_real) / mean|x - x0_real|, per sample (B, C, H, W), and the denominator (B,).

        [7] and [8] with each score s = (cos t x0 - x_t) / sin^2 t: the difference of scores is that of denoised samples
        times cos t / sin^2 t, and the paper's weight w_t = (sin^2 t / cos t) CS / |x - x0_real|_1 cancels that factor.
        (The paper prints w_t with an alpha_t that leaves a factor cos t; no public code has it, nor have we.)
        """
        real = self.teacher.velocity(x_t, t, cond, self.guidance)
        fake = self.fake_score.velocity(x_t, t, cond)
        if self.options.fake_score_guidance != 1.0 and self.teacher.guided:
            without = self.fake_score.velocity(x_t, t, self.teacher.unconditional(cond))
            fake = without + self.options.fake_score_guidance * (fake - without)
        sin, cos = (f(t).reshape(-1, *[1] * (x.ndim - 1)) for f in (torch.sin, torch.cos))
        x0_real = cos * x_t - sin * real
        spread = (x - x0_real).abs().flatten(1).mean(1).clamp_min(1e-5)
        return sin * (real - fake) / spread.reshape(sin.shape), spread

    def fake_score_turn(self, batch: Batch) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            x = self.generate(batch)
        t = self.noise_level(batch)
        noise = batch.draws.normal(*x.shape[1:])
        x_t = add_noise(x, noise, t)
        velocity = self.fake_score.velocity(x_t, t, batch.cond)
        error = (velocity - to_velocity(x, noise, t)).square().flatten(1).mean(1)
        # [6] weighs the denoising loss; a velocity error is an epsilon error divided by cos t.
        loss = (error * (torch.cos(t).square() if self.options.fake_score_loss == "epsilon" else 1)).mean()
        return loss, {"loss": loss.detach()}
