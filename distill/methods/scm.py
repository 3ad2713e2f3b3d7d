"""Continuous-time consistency models: sCD and sCT (Lu & Song 2024, "Simplifying, Stabilizing and Scaling
Continuous-Time Consistency Models", arXiv 2410.11081). Paper equations are in brackets; data has unit variance here
(sigma_d = 1).

The student is a consistency function f(x_t, t) = cos t x_t - sin t F(x_t, t) [5]. It should be constant along a
trajectory of the probability-flow ODE: the loss drives its total derivative df/dt along the trajectory to zero. The
slope dx/dt of the trajectory is the teacher's velocity (distillation, sCD) or cos t z - sin t x0 of the training sample
(training from data, sCT).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distill.config.typed import InvalidOption, option
from distill.data.batch import Batch
from distill.methods.base import Logs
from distill.methods.consistency import Consistency, ConsistencyOptions
from distill.methods.jvp import tangent
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.teacher import Teacher
from teachers.core.trigflow import add_noise, expand, to_velocity

TIME_MARGIN = 1e-4  # radians; larger than the step of a finite difference


@dataclass
class SCMOptions(ConsistencyOptions):
    """`method:` in a recipe with `name: scm`."""

    drift: Literal["teacher", "data"] = option(
        "teacher", "The slope dx/dt: the teacher's velocity (sCD), or the training sample's own (sCT)."
    )
    proposal: tuple[float, float] = option(
        (0.3, 1.4),
        "Mean and standard deviation of log tan t. Add log 2 to means that are stated for sigma_d = 0.5.",
        at_least=-100,
        at_most=100,
    )
    tangent: Literal["auto", "jvp", "jvp_flash", "finite_difference"] = option(
        "auto", "How the derivative along the trajectory is computed."
    )
    tangent_precision: Literal["auto", "float32", "tf32", "bf16"] = option(
        "auto", "Precision of the derivative's matrix products. auto: tf32 on CUDA, else float32."
    )
    tangent_warmup: int = option(
        200,
        "Steps over which the unstable part of the tangent is scaled from 0 to 1 (section 4.2).",
        at_least=1,
        at_most=10**9,
    )
    tangent_offset: float = option(
        1.0, "c in the normalised tangent g / (|g| + c), with |g| the L2 norm of one sample.", at_least=0, at_most=1e6
    )
    learned_weighting: bool = option(False, "The adaptive weighting w_phi(t) of noise levels (section 4.2).")

    def check(self) -> None:
        super().check()
        if self.proposal[1] <= 0:
            raise InvalidOption("proposal", f"must have a standard deviation above 0, got {list(self.proposal)}")
        if self.drift == "data" and self.guidances:
            raise InvalidOption("guidances", f"must be empty with {{}}=data, got {list(self.guidances)}", ["drift"])
        if self.tangent == "finite_difference" and self.tangent_precision not in ("auto", "float32"):
            raise InvalidOption(
                "tangent_precision",
                "must be float32 with {}=finite_difference, whose rounding error is too large otherwise, "
                f"got {self.tangent_precision}",
                ["tangent"],
            )


class LogVariance(nn.Module):
    """The adaptive weighting w_phi(t) (section 4.2): a linear layer on Fourier features of the angle, zero at first.

    The loss is e^w |error|^2 / D - w, so e^-w learns the mean squared error at t (EDM2, Karras et al. 2024, arXiv
    2312.02696).

    Args:
        features: Number of frequencies.
    """

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0.25, 4, features))
        self.linear = nn.Linear(2 * features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        """w_phi (B,) at angles t (B,)."""
        phase = t[:, None] * self.get_buffer("frequencies")
        weight: Tensor = self.linear(torch.cat([phase.sin(), phase.cos()], dim=1))
        return weight.flatten()


class SCM(Consistency):
    """A continuous-time consistency model: a student of one or two steps.

    Needs latents (of real images, or of the teacher's samples) with their captions. See the module's docstring for the
    source, and `distill.methods.base.Distiller` for the arguments.
    """

    Options = SCMOptions
    options: SCMOptions

    def __init__(self, teacher: Teacher, guidance: float, options: SCMOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        self._check_guidance()
        self.tangent, self._message = tangent(
            options.tangent, next(self.student.parameters()).device, options.tangent_precision
        )
        self.log_variance = LogVariance() if options.learned_weighting else None

    def _check_guidance(self) -> None:
        if self.options.drift == "data" and self.guidance != 1.0 and self.teacher.guided:
            raise ValueError(
                "teacher.guidance must be 1.0 with method.drift=data (sCT), whose loss does not use the teacher, "
                f"got {self.guidance}"
            )

    def startup_messages(self) -> Sequence[str]:
        return (self._message, *super().startup_messages())

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        return {"student": [self.student] + ([self.log_variance] if self.log_variance else [])}

    def noise_level(self, batch: Batch) -> Tensor:
        """Random angles t = arctan(e^tau) (B,), tau ~ N(P_mean, P_std^2) (section 4.2), in radians.

        They stay `TIME_MARGIN` inside the teacher's schedule: the schedule's table is constant beyond its ends, which
        would change a derivative with respect to time.
        """
        mean, std = self.options.proposal
        tau = mean + std * math.sqrt(2) * torch.erfinv((2 * batch.rng.uniform() - 1).clamp(-0.9999, 0.9999))
        path = self.student.path
        return torch.atan(torch.exp(tau)).clamp(path.t_min + TIME_MARGIN, path.t_max - TIME_MARGIN)

    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        """The consistency loss [8], or the adaptation loss in the first `adaptation_steps` steps."""
        assert batch.latents is not None
        x0, z = batch.latents, batch.rng.normal(*batch.latents.shape[1:])
        adapting = step < self.options.adaptation_steps
        t = self.uniform_angles(batch) if adapting else self.noise_level(batch)
        x_t = add_noise(x0, z, t)
        guidance, cond = self.sample_guidance(batch)
        with torch.no_grad():  # dx/dt: the teacher's velocity (sCD), or an unbiased estimate of it (sCT)
            drift = (
                self.teacher.velocity(x_t, t, batch.cond, guidance)
                if self.options.drift == "teacher"
                else to_velocity(x0, z, t)
            )
        if adapting:
            return self.adapt(x_t, t, drift, cond)
        warmup = min(1.0, (step - self.options.adaptation_steps + 1) / self.options.tangent_warmup)
        g, target_velocity = self.target(x_t, t, drift, cond, warmup)
        norm = g.flatten(1).norm(dim=1)
        finite = torch.isfinite(norm) & torch.isfinite(target_velocity.flatten(1).sum(1))
        g = torch.where(expand(finite, g), g / expand(norm + self.options.tangent_offset, g), 0.0)
        # [8]: |F - stopgrad(F) - g|^2. Its gradient reduces the change of f along the trajectory.
        velocity = self.student.velocity(x_t, t, cond)
        velocity = torch.where(expand(finite, g), velocity, 0.0)  # masked here because 0 * NaN is NaN in backward
        error = (velocity - velocity.detach() - g).square().flatten(1).sum(1)
        error = error / self.error_scale(t).square()
        logs = {
            "tangent_norm": torch.where(finite, norm, 0.0).mean(),
            "masked_share": (~finite).float().mean(),  # fraction of samples that are excluded as not finite
            "tangent_agreement": (velocity.detach() - target_velocity).abs().mean(),
        }
        if self.log_variance is None:
            loss = torch.where(finite, error, 0.0).mean()
        else:
            weight = self.log_variance(t)
            loss = torch.where(finite, weight.exp() / x0[0].numel() * error - weight, 0.0).mean()
        return loss, logs | {"loss": loss.detach()}

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, drift: Tensor, cond: Condition, warmup: float) -> tuple[Tensor, Tensor]:
        """The tangent g = cos t df/dt and the student's velocity F at the same points, in float32.

        df/dt = -cos t (F - dx/dt) - sin t (x_t + dF/dt) [6]. The prior weight 1 / tan t (section 4.2) times sin t gives
        the factor cos t. The derivative of F is taken along cos t sin t (dx/dt, 1), which cannot overflow (section 5.1,
        JVP rearrangement).

        Args:
            x_t: Noisy samples (B, ...).
            t: Angles (B,) in radians.
            drift: dx/dt, the shape of x_t.
            cond: Conditions with B rows.
            warmup: Scale in (0, 1] of the second term of df/dt (tangent warmup, section 4.2).

        Returns:
            g and F, the shape of x_t.
        """
        sin, cos = (expand(f(t), x_t) for f in (torch.sin, torch.cos))
        along = sin * cos
        velocity, slope = self.tangent(
            lambda x, time: self.student.velocity(x, time, cond), (x_t, t), (along * drift, along.flatten())
        )
        return -(cos**2) * (velocity - drift) - warmup * (along * x_t + slope), velocity
