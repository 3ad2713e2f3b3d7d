"""Score identity Distillation: SiD (Zhou et al. 2024, arXiv 2404.04057), with the adversarial term of SiDA (Zhou et al.
2024, arXiv 2410.14919) and the guidance of SiD-LSG (Zhou et al. 2024, arXiv 2406.01561) as options.

The student minimises the Fisher divergence between its noisy distribution and the teacher's,

    L = E |s_real(x_t) - s_student(x_t)|^2,        s(x_t) = (cos t x0(x_t) - x_t) / sin^2 t  (Tweedie)

whose second score is not known. Two estimates of L replace it by the fake score:

    L1 = E |s_real - s_fake|^2
    L2 = E (s_real - s_fake)^T (s_real - grad log q(x_t | x))

L2 follows from the projected score identity E u(x_t)^T s_student(x_t) = E u(x_t)^T grad log q(x_t | x). For an exact
fake score both equal L, but their gradients do not equal that of L, because the fake score that follows the student is
a constant in them. SiD minimises L2 - alpha L1. In denoised samples, s_real - s_fake is (x0_real - x0_fake) cos t /
sin^2 t.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config.typed import option
from distill.data.batch import Batch
from distill.methods.base import Logs
from distill.methods.discriminator import frozen
from distill.methods.fake_score import FakeScoreDistiller
from distill.methods.fake_score_options import FakeScoreOptions
from teachers.core.denoiser import Condition
from teachers.core.trigflow import add_noise, expand, to_x0


@dataclass
class SIDOptions(FakeScoreOptions):
    """`method:` in a recipe with `name: sid`."""

    alpha: float = option(
        1.0,
        "alpha in the loss L2 - alpha L1 of the two estimates of the Fisher divergence. SiD uses 1.0 and 1.2.",
        at_least=-10,
        at_most=10,
    )


class SID(FakeScoreDistiller):
    """Score identity Distillation: a student of one step, or of as many as `timesteps`.

    Needs prompts only; with a GAN loss (SiDA) also images. See the module's docstring for sources, and
    `distill.methods.base.Distiller` for the arguments.

    A guided fake score (SiD-LSG) is trained and evaluated at the same guidance scale, so that the student's
    distribution, not a sharpened copy of it, is compared with the guided teacher's.
    """

    Options = SIDOptions
    options: SIDOptions

    def student_phase(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The student's loss L2 - alpha L1, plus the optional GAN loss."""
        x = self.generate(batch)
        t = self.noise_level(batch)
        losses, gradient, residual = self.gradient(x.detach(), batch.rng.normal(*x.shape[1:]), t, batch.cond)
        loss = losses.mean() + ((x - x.detach()) * gradient).mean()  # the second term is 0
        logs = {"sid_gradient": gradient.abs().mean(), "real_residual": residual.mean(), "loss": loss.detach()}
        return self.add_adversarial(batch, x, loss, logs), logs

    def gradient(self, x: Tensor, noise: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each sample and its gradient with respect to the student's sample.

        The gradient flows through both scores to their input x_t. It is computed here, not in the loop's backward pass:
        the graphs of both networks are then freed before the student's, and an offloaded teacher is still in place.

        Args:
            x: The student's samples (B, ...).
            noise: Standard normal noise, the shape of x.
            t: Angles (B,) in radians.
            cond: Conditions with B rows.

        Returns:
            The loss of each sample, a mean over its elements, (B,); the gradient of the sum over elements, the shape of
            x; and the mean |x - x0_real| of each sample, (B,).
        """
        offloaded = self.teacher.offloaded
        x = x.detach().requires_grad_()
        with (
            torch.enable_grad(),
            frozen(self.fake_score),
            nullcontext() if offloaded is None else offloaded.on_device(),
        ):
            x_t = add_noise(x, noise, t)
            real = to_x0(x_t, self.teacher.velocity(x_t, t, cond, self.guidance), t)
            fake = to_x0(x_t, self.fake_velocity(x_t, t, cond), t)
            residual = (x - real).detach().abs().flatten(1).mean(1).clamp_min(1e-5)
            difference = real - fake
            # L2 - alpha L1 with grad log q(x_t | x) = (cos t x - x_t) / sin^2 t. Its weight omega(t) = (sin^4 t /
            # cos^2 t) D / |x - x0_real|_1 cancels cos^2 t / sin^4 t; what remains is 1 / residual, as in DMD.
            product = difference * ((real - x) - self.options.alpha * difference) / expand(residual, x)
            (gradient,) = torch.autograd.grad(product.sum(), x)
        return product.detach().flatten(1).mean(1), gradient, residual

    def trained_velocity(self, batch: Batch, x_t: Tensor, t: Tensor) -> Tensor:
        return self.fake_velocity(x_t, t, batch.cond)
