"""f-distill: DMD for other divergences than the reverse Kullback-Leibler one (Xu et al. 2025, arXiv 2502.15681).

DMD minimises KL(q | p) between the student's distribution q and the teacher's p, which prefers few sharp modes.
f-distill minimises D_f(p | q) = E_q[f(r)] with the density ratio r = p / q of noisy samples. Its gradient is DMD's,
multiplied for each sample by a weight that depends on r only (theorem 1):

    grad D_f = E[ h(r) (s_fake - s_real) dG/dtheta ],    h(r) = f''(r) r^2

Divergences that punish missing modes, such as the forward KL (h = r), weight samples more where the teacher's density
is higher than the student's; the reverse KL has h = 1, which is DMD. The ratio comes from DMD2's discriminator: its
optimal logit at a noisy sample is log r.

The paper also divides r by a running mean for each noise level, and h by its mean over the global batch. Neither is
done here: E_q[r] = 1 holds for every noise level, and the loss stays a mean over samples, whatever the number of
processes. `ratio_limit` bounds what a wrong discriminator can do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.config.typed import InvalidOption, option, redefined
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from teachers.core.denoiser import Condition
from teachers.core.trigflow import expand

Divergence = Literal[
    "reverse_kl", "softened_reverse_kl", "jensen_shannon", "squared_hellinger", "forward_kl", "jeffreys"
]

# h(r) = f''(r) r^2 (table 1) of
WEIGHTS: dict[Divergence, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,  # f = -log r
    "softened_reverse_kl": lambda r: 1 / (1 + r),  # f = (r + 1) log(1/2 + 1/(2 r))
    "jensen_shannon": lambda r: r / (1 + r),  # f = r log r - (r + 1) log((r + 1) / 2)
    "squared_hellinger": lambda r: r.sqrt() / 4,  # f = 1 - sqrt(r)
    "forward_kl": lambda r: r,  # f = r log r
    "jeffreys": lambda r: 1 + r,  # f = (r - 1) log r
}


@dataclass
class FDistillOptions(DMDOptions):
    """`method:` in a recipe with `name: f_distill`."""

    divergence: Divergence = option(
        "jensen_shannon", "The divergence between the teacher's and the student's distribution; reverse_kl: DMD."
    )
    ratio_limit: float = option(
        10.0, "The estimated density ratio is limited to 1 / ratio_limit .. ratio_limit.", at_least=1, at_most=1e6
    )
    gan_weight: float = redefined(
        DMDOptions,
        "gan_weight",
        0.003,
        "Weight of the student's GAN loss, above 0. DMD2 uses 1e-3 to 5e-3. Needs data.images.",
    )

    def check(self) -> None:
        super().check()
        if not self.gan_weight:
            raise InvalidOption("gan_weight", "must be above 0, because the discriminator estimates the ratio, got 0")
        (low, high), (least, most) = self.gan_noise_range, self.noise_range
        if low > least or high < most:
            raise InvalidOption(
                "gan_noise_range",
                f"must include {{}} {list(self.noise_range)}, where the ratio is read, got "
                f"{list(self.gan_noise_range)}",
                ["noise_range"],
            )


class FDistill(DMD):
    """DMD with the gradient of another f-divergence: a student of one step, or of as many as `timesteps`.

    Needs images with captions, from which the discriminator learns the density ratio. See the module's docstring for
    the source, and `distill.methods.base.Distiller` for the arguments.
    """

    Options = FDistillOptions
    options: FDistillOptions

    @torch.no_grad()
    def gradient(self, x: Tensor, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """DMD's gradient times h(r) of each sample (theorem 1); see `DMD.gradient` for arguments and results."""
        gradient, residual = super().gradient(x, x_t, t, cond)
        return expand(self.weight(x_t, t, cond), x) * gradient, residual

    @torch.no_grad()
    def weight(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """h(r) (B,) at noisy samples x_t (B, ...) of angles t (B,), with r = e^logit, limited to `ratio_limit`."""
        assert self.discriminator is not None
        limit = self.options.ratio_limit
        ratio = self.discriminator(self._features(), x_t, t, cond).exp().clamp(1 / limit, limit)
        return WEIGHTS[self.options.divergence](ratio)
