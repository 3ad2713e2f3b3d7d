"""Distribution Matching Distillation: DMD (Yin et al. 2023, arXiv 2311.18828) and DMD2 (Yin et al. 2024, 2405.14867).

A student G of one or a few steps is trained with the difference of two scores at a noisy copy of its own sample: the
teacher's (real) score and the score of a fake-score network, which learns the student's distribution by denoising its
samples. Optional additions: a regression loss on teacher pairs (DMD), a GAN loss on the fake score's features and
several sampling steps (DMD2). Equation numbers in brackets are DMD's, section numbers are DMD2's.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data.batch import Batch
from distill.methods.base import Distiller, Logs
from distill.methods.discriminator import Discriminator, NoisySample, approximate_r1, frozen
from distill.methods.dmd_options import DMDOptions
from eval.metrics.perceptual import Lpips, fetch_weights
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.sampling import sample
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, expand, to_velocity, to_x0
from teachers.media import Image
from teachers.networks.storage import without_autocast

KARRAS = (0.002, 80.0, 7.0)  # sigma_min, sigma_max, rho (Karras et al. 2022, arXiv 2206.00364, equation 5)

PROMPT_DROPOUT = 0.1  # probability of the null condition in the training of a guided fake score


class DMD(Distiller):
    """Distribution Matching Distillation: a student of one step, or of as many as `timesteps`.

    Needs prompts only; with a GAN loss also images. See the module's docstring for sources, and
    `distill.methods.base.Distiller` for the arguments.
    """

    Options = DMDOptions
    PHASES = ("fake_score", "student")
    options: DMDOptions

    def __init__(self, teacher: Teacher, guidance: float, options: DMDOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        self.times = self.angles(options.timesteps)
        self.fake_score = teacher.student()  # mu_fake starts as the teacher (DMD, section 3.2)
        self.discriminator = self._discriminator() if options.gan_weight else None
        self.lpips = Lpips(self._device()) if self._wants_lpips() else None

    @classmethod
    def needs_latents(cls, options: DMDOptions) -> bool:
        return options.gan_weight > 0

    @classmethod
    def check_run(cls, options: DMDOptions, guidance: float) -> None:
        if _uses_lpips(options):
            fetch_weights("vgg")

    @classmethod
    def pairs(cls, options: DMDOptions) -> tuple[int, int]:
        return (options.regression_pairs if options.regression_weight else 0), options.regression_teacher_steps

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

    def generate(self, batch: Batch) -> Tensor:
        """x = G(z), (B, ...): the student's output after a random number of its steps, the same for the whole batch.

        The input of the last step is the student's own earlier output, not noisy data ("backward simulation", 4.5).
        """
        last = batch.rng.pick(len(self.times))
        noise = batch.rng.normal(*self.teacher.shape)
        return sample(
            self.student, noise, self.times[: last + 1], batch.cond, lambda: batch.rng.normal(*noise.shape[1:])
        )

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
        low, high, rho = KARRAS
        sigma = (low ** (1 / rho) + fraction * (high ** (1 / rho) - low ** (1 / rho))) ** rho
        return torch.atan(sigma / path.sigma_data).clamp(path.t_min, path.t_max).float()

    def student_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The student's loss: distribution matching [7], plus the optional GAN (4.3) and regression [9] losses."""
        x = self.generate(batch)
        t = self.noise_level(batch)
        x_t = add_noise(x.detach(), batch.rng.normal(*x.shape[1:]), t)  # q_t(x_t | x) [3]
        gradient, residual = self.gradient(x.detach(), x_t, t, batch.cond)
        # [7]: the gradient of 0.5 |x - stopgrad(x - gradient)|^2 with respect to x is `gradient`.
        loss = 0.5 * (x - (x.detach() - gradient)).square().mean()
        logs = {"dmd_gradient": gradient.abs().mean(), "real_residual": residual.mean(), "loss": loss.detach()}
        if self.discriminator is not None:
            with frozen(self.fake_score, self.discriminator):
                adversarial = F.softplus(-self.noisy_logits(batch, x)[0]).mean()  # -log D(F(G(z), t)) (4.3)
            loss = loss + self.options.gan_weight * adversarial
            logs["adversarial"] = adversarial.detach()
        if self.options.regression_weight:
            regression = self.regression(batch)
            loss = loss + self.options.regression_weight * regression
            logs["regression"] = regression.detach()
        return loss, logs

    @torch.no_grad()
    def gradient(self, x: Tensor, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """The distribution matching gradient w (x0_fake - x0_real) with respect to the student's sample.

        This is [7] and [8] with the scores s = (cos t x0 - x_t) / sin^2 t: the difference of scores is the difference
        of denoised samples times cos t / sin^2 t, and the paper's weight w_t = (sin^2 t / cos t) CS / |x - x0_real|_1
        cancels that factor. (The paper prints w_t with an alpha_t that leaves a factor cos t; public implementations
        do not have it, and neither does this one.) What remains is w = 1 / mean|x - x0_real| ("dmd") for each sample,
        not over the batch. "uniform" is w = 1, and "karras" is EDM's w = 1 / sigma^2 + 1 / sigma_d^2 = 1 / sin^2 t at
        unit variance.

        Args:
            x: The student's samples (B, ...).
            x_t: Noisy copies of them, the shape of x.
            t: Angles (B,) in radians.
            cond: Conditions with B rows.

        Returns:
            The gradient, the shape of x, and the mean |x - x0_real| of each sample, (B,).
        """
        real = self.teacher.velocity(x_t, t, cond, self.guidance)
        fake = self.fake_score.velocity(x_t, t, cond)
        if self.options.fake_score_guidance != 1.0 and self.teacher.guided:
            null = self.fake_score.velocity(x_t, t, self.teacher.null_condition(cond))
            fake = null + self.options.fake_score_guidance * (fake - null)
        residual = (x - to_x0(x_t, real, t)).abs().flatten(1).mean(1).clamp_min(1e-5)
        sin = expand(torch.sin(t), x)
        difference = sin * (real - fake)  # x0_fake - x0_real
        if self.options.weighting == "dmd":
            difference = difference / expand(residual, x)
        elif self.options.weighting == "karras":
            difference = difference / sin.square().clamp_min(1e-4)
        return difference, residual

    def regression(self, batch: Batch) -> Tensor:
        """The regression loss E l(G(z), y) on pairs of noise z and the teacher's endpoint y [9], a scalar.

        A student of several steps is evaluated at its first step.
        """
        assert batch.pairs is not None
        noise, endpoint, cond = batch.pairs()
        x = sample(self.student, noise, self.times[:1], cond, lambda: noise)
        if self.lpips is None:
            return (x - endpoint).square().mean()
        with torch.no_grad():
            target = self.teacher.decode(endpoint)
        return self.lpips(self.teacher.decode(x), target).mean()

    def fake_score_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The fake score's denoising loss on the student's samples [6], plus the discriminator's loss (4.3)."""
        with torch.no_grad():
            x = self.generate(batch)
        t = self.noise_level(batch)
        noise = batch.rng.normal(*x.shape[1:])
        velocity = self.fake_score.velocity(add_noise(x, noise, t), t, self._drop_prompts(batch))
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

    def _drop_prompts(self, batch: Batch) -> Condition:
        """The batch's condition; for a guided fake score some rows are null, which trains its unconditional branch."""
        if self.options.fake_score_guidance == 1.0 or not self.teacher.guided:
            return batch.cond
        drop, null = batch.rng.uniform() < PROMPT_DROPOUT, self.teacher.null_condition(batch.cond)
        return {key: torch.where(expand(drop, value), null[key], value) for key, value in batch.cond.items()}

    def _features(self) -> Denoiser:
        if self.options.gan_features == "fake_score":
            return self.fake_score
        if self.teacher.offloaded is not None:
            raise ValueError("memory.offload_teacher must be false with method.gan_features=teacher")
        return self.teacher.denoiser

    def _example(self) -> NoisySample:
        device = self._device()
        t = torch.full((1,), self.times[0], device=device)
        return torch.zeros(1, *self.teacher.shape, device=device), t, self.teacher.null_row()

    def _device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _discriminator(self) -> Discriminator:
        layer, stream = self.teacher.feature_layer, self.teacher.stream
        return Discriminator(self._features(), self._example(), layer, stream=stream)

    def _wants_lpips(self) -> bool:
        lpips = _uses_lpips(self.options)
        if lpips and self.teacher.medium_class is not Image:
            raise ValueError(
                f"method.regression_distance must be latent for a teacher of {self.teacher.medium.plural}, got 'lpips'"
            )
        return lpips


def _uses_lpips(options: DMDOptions) -> bool:
    return options.regression_weight > 0 and options.regression_distance == "lpips"
