"""Distribution Matching Distillation: DMD (Yin et al. 2023, arXiv 2311.18828) and DMD2 (Yin et al. 2024, 2405.14867).

A student G of one or a few steps is trained with the difference of two scores at a noisy copy of its own sample: the
teacher's (real) score and the score of a fake-score network, which learns the student's distribution by denoising its
samples (`distill.methods.fake_score`). Optional additions: a regression loss on teacher pairs (DMD), a GAN loss on the
fake score's features and several sampling steps (DMD2), and guidance at noise levels of its own (Decoupled DMD, Liu et
al. 2025, 2511.22677). Equation numbers in brackets are DMD's, section numbers are DMD2's.
"""

import torch
from torch import Tensor

from distill.data.batch import Batch
from distill.methods.base import Logs
from distill.methods.dmd_options import DMDOptions
from distill.methods.fake_score import FakeScoreDistiller
from eval.metrics.perceptual import Lpips, fetch_weights
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.sampling import sample
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, expand, to_x0
from teachers.families.embedded_guidance import EmbeddedGuidance
from teachers.media import Image


class DMD(FakeScoreDistiller):
    """Distribution Matching Distillation: a student of one step, or of as many as `timesteps`.

    Needs prompts only; with a GAN loss also images. See the module's docstring for sources, and
    `distill.methods.base.Distiller` for the arguments.
    """

    Options = DMDOptions
    options: DMDOptions

    def __init__(self, teacher: Teacher, guidance: float, options: DMDOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        # alpha in equations 4 and 8 of Decoupled DMD; its part alpha - 1 is weighted.
        weight = options.guidance_weight
        self.loss_guidance = guidance if weight == 1.0 else 1.0 + weight * (guidance - 1.0)
        if options.guidance_noise != "shared":
            self._check_guidance_noise()
        self.lpips = Lpips(self._device()) if self._wants_lpips() else None

    @classmethod
    def check_run(cls, options: DMDOptions, guidance: float) -> None:
        if options.guidance_noise != "shared" and guidance <= 1:
            raise ValueError(
                f"teacher.guidance must be above 1 with method.guidance_noise={options.guidance_noise}, got {guidance}"
            )
        if _uses_lpips(options):
            fetch_weights("vgg")

    def _check_guidance_noise(self) -> None:
        own, low = self.options.guidance_noise, self.options.guidance_noise_range[0]
        if not self.teacher.guided or self.teacher.embeds_guidance or isinstance(self.teacher, EmbeddedGuidance):
            raise ValueError(
                f"method.guidance_noise must be shared, got {own}: the guidance of a {type(self.teacher).__name__} "
                "cannot be separated from its score"
            )
        lowest = self.noise_fraction(self.times[-1])
        if own == "remaining" and len(self.times) > 1 and lowest <= low:
            raise ValueError(
                f"method.guidance_noise_range must begin below {lowest:.3g}, the noise level of the last of "
                f"method.timesteps, got {low}"
            )

    @classmethod
    def pairs(cls, options: DMDOptions) -> tuple[int, int]:
        return (options.regression_pairs if options.regression_weight else 0), options.regression_teacher_steps

    def student_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The student's loss: distribution matching [7], plus the optional GAN (4.3) and regression [9] losses."""
        x, last = self.rollout(batch)
        t = self.noise_level(batch)
        x_t = add_noise(x.detach(), batch.rng.normal(*x.shape[1:]), t)  # q_t(x_t | x) [3]
        gradient, residual = self.gradient(x.detach(), x_t, t, batch.cond)
        if self.options.guidance_noise != "shared":
            gradient = gradient + self.guidance_gradient(batch, x.detach(), last)
        # [7]: the gradient of 0.5 |x - stopgrad(x - gradient)|^2 with respect to x is `gradient`.
        loss = 0.5 * (x - (x.detach() - gradient)).square().mean()
        logs = {"dmd_gradient": gradient.abs().mean(), "real_residual": residual.mean(), "loss": loss.detach()}
        loss = self.add_adversarial(batch, x, loss, logs)
        if self.options.regression_weight:
            regression = self.regression(batch)
            loss = loss + self.options.regression_weight * regression
            logs["regression"] = regression.detach()
        return loss, logs

    @torch.no_grad()
    def gradient(self, x: Tensor, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """The distribution matching gradient w (x0_fake - x0_real) with respect to the student's sample.

        x0_real is guided, unless guidance has noise of its own (`guidance_gradient`).

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
        shared = self.options.guidance_noise == "shared"
        real = self.teacher.velocity(x_t, t, cond, self.loss_guidance if shared else 1.0)
        return self._weigh(real - self.fake_velocity(x_t, t, cond), x, x_t, t, real)

    @torch.no_grad()
    def guidance_gradient(self, batch: Batch, x: Tensor, last: int) -> Tensor:
        """The gradient w (x0_real - x0_guided) of guidance alone, at noise of its own ("CFG augmentation").

        This is the second term of equation 8 in Decoupled DMD (arXiv 2511.22677). Guidance at a noise level enhances
        what that level decides, and what levels above the student's input decide is resolved already (section 4.1; the
        paper writes tau > t, because its time runs from noise to data). The first term, distribution matching, keeps
        `noise_range` and is not guided. Each term has the weight of its own noise level.

        Args:
            batch: Supplies the random numbers and the conditions.
            x: The student's samples (B, ...).
            last: The index in `times` of the step that made them.

        Returns:
            The gradient, the shape of x.
        """
        low, high = self.options.guidance_noise_range
        if self.options.guidance_noise == "remaining" and last > 0:  # nothing is resolved in pure noise
            high = min(high, self.noise_fraction(self.times[last]))
        t = self.noise_level(batch, (low, high))
        x_t = add_noise(x, batch.rng.normal(*x.shape[1:]), t)
        guided, plain = (self.teacher.velocity(x_t, t, batch.cond, scale) for scale in (self.loss_guidance, 1.0))
        return self._weigh(guided - plain, x, x_t, t, guided)[0]

    def _weigh(self, difference: Tensor, x: Tensor, x_t: Tensor, t: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted difference of denoised samples for a difference of velocities, and mean |x - x0_real|, (B,)."""
        residual = (x - to_x0(x_t, real, t)).abs().flatten(1).mean(1).clamp_min(1e-5)
        sin = expand(torch.sin(t), x)
        gradient = sin * difference
        if self.options.weighting == "dmd":
            gradient = gradient / expand(residual, x)
        elif self.options.weighting == "karras":
            gradient = gradient / sin.square().clamp_min(1e-4)
        return gradient, residual

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

    def _wants_lpips(self) -> bool:
        lpips = _uses_lpips(self.options)
        if lpips and self.teacher.medium_class is not Image:
            raise ValueError(
                f"method.regression_distance must be latent for a teacher of {self.teacher.medium.plural}, got 'lpips'"
            )
        return lpips


def _uses_lpips(options: DMDOptions) -> bool:
    return options.regression_weight > 0 and options.regression_distance == "lpips"
