"""Continuous-time consistency distillation: sCD (Lu & Song 2024, "Simplifying, Stabilizing and Scaling Continuous-Time
Consistency Models", arXiv 2410.11081). Paper equations are in brackets; here data has unit variance (sigma_d = 1).

The student is a consistency function f(x_t, t) = cos t x_t - sin t F(x_t, t) [5] that should be constant along the
teacher's probability-flow ODE: its total derivative df/dt along the teacher's velocity is driven to zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distill.distiller import Batch, Distiller, Logs
from distill.tangent import tangent
from teachers.denoiser import BEND
from teachers.few_step import soften_clock
from teachers.teacher import Teacher
from teachers.trigflow import HALF_PI, add_noise


@dataclass
class SCMOptions:
    proposal: tuple[float, float] = (
        0.3,
        1.4,
    )  # log tan t ~ N(mean, std^2); sigma_d = 1 here: add log 2 to means quoted for 0.5
    ceiling: float = 1.2  # radians; where an epsilon student's output is read near the end of time (`Denoiser.ceiling`)
    tangent_warmup: int = 200  # H: steps over which the tangent's unstable half is switched on [section 4.2]
    tangent_offset: float = 1.0  # c in g / (|g| + c), |g| the L2 norm over a whole sample (SANA's and rCM's meaning)
    tangent: Literal["auto", "jvp", "finite_difference"] = "auto"
    learned_weighting: bool = False  # the adaptive log-variance weighting w_phi(t) [section 4.2, EDM2]
    adaptation_steps: int = 200  # first steps, in which the copied teacher gets used to a gentle clock; 0 leaves it out
    time_scale: float = 8.0  # the gentle clock: the network is told time_scale * t instead of its native timestep
    second_times: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # candidates for the second step's angle, radians


class LogVariance(nn.Module):
    """w_phi(t): a linear layer on Fourier features of the angle, zero at first."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0.25, 4, features))
        self.linear = nn.Linear(2 * features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.get_buffer("frequencies")
        return self.linear(torch.cat([phase.sin(), phase.cos()], dim=1))[:, 0]


class SCM(Distiller):
    """One or two steps. Needs latents (real, or the teacher's) with their captions."""

    Options = SCMOptions
    needs_latents = True
    options: SCMOptions

    def __init__(self, teacher: Teacher, guidance: float, options: SCMOptions) -> None:
        super().__init__(teacher, guidance, options)
        if options.adaptation_steps < 0 or options.tangent_warmup < 1:
            raise ValueError("method.adaptation_steps has to be at least 0, and method.tangent_warmup at least 1")
        if any(not 0 < time < HALF_PI for time in options.second_times) or not options.second_times:
            raise ValueError(f"method.second_times are {options.second_times}; each has to be an angle in (0, pi/2)")
        if options.ceiling <= BEND or options.time_scale <= 0 or options.proposal[1] <= 0:
            raise ValueError(
                f"method.ceiling has to be above {BEND} rad, method.time_scale and the proposal's spread positive"
            )
        self.tangent = tangent(options.tangent)
        self.log_variance = LogVariance() if options.learned_weighting else None
        if options.adaptation_steps:
            soften_clock(self.student, options.time_scale)
            self.student.ceiling = options.ceiling

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        return {"student": [self.student] + ([self.log_variance] if self.log_variance else [])}

    def candidate_times(self) -> list[list[float]]:
        path, student = self.student.path, self.student
        usable = [
            a
            for a in self.options.second_times
            if path.t_min < a < path.t_max and student.reading(torch.tensor(a)) == a
        ]
        return [[path.t_max, angle] for angle in usable] or [[path.t_max]]

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        return tuple(range(1, len(times) + 1))

    def noise_level(self, batch: Batch) -> Tensor:
        """t = arctan(e^tau), tau ~ N(P_mean, P_std^2) [section 4.1], kept within the teacher's schedule."""
        mean, std = self.options.proposal
        tau = mean + std * math.sqrt(2) * torch.erfinv((2 * batch.draws.uniform() - 1).clamp(-0.9999, 0.9999))
        return torch.atan(torch.exp(tau)).clamp(self.student.path.t_min, self.student.path.t_max)

    def forward(self, turn: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        assert batch.latents is not None
        x0, z = batch.latents, batch.draws.normal(*batch.latents.shape[1:])
        if step < self.options.adaptation_steps:
            return self.adapt(batch, x0, z)
        t = self.noise_level(batch)
        x_t = add_noise(x0, z, t)
        warm = min(1.0, (step - self.options.adaptation_steps + 1) / self.options.tangent_warmup)
        g, frozen = self.target(batch, x_t, t, warm)
        norm = g.flatten(1).norm(dim=1)
        finite = torch.isfinite(norm)
        shape = (-1, *[1] * (x0.ndim - 1))
        g = torch.where(finite.reshape(shape), g / (norm + self.options.tangent_offset).reshape(shape), 0.0)
        # [8]: |F - stop(F) - g|^2: the step that turns f, along the trajectory, towards a constant.
        velocity = self.student.velocity(x_t, t, batch.cond)
        error = (velocity - velocity.detach() - g).square().flatten(1).sum(1)
        error = (
            error / self.student.gain(t).square()
        )  # counted in what the network outputs, so that no end of time rules
        logs = {
            "tangent_norm": torch.where(finite, norm, 0.0).mean(),
            "masked_samples": (~finite).float().sum(),
            "tangent_agreement": (velocity.detach() - frozen).abs().mean(),
        }
        if self.log_variance is None:
            loss = torch.where(finite, error, 0.0).mean()
        else:
            weight = self.log_variance(t)
            loss = torch.where(finite, weight.exp() / x0[0].numel() * error - weight, 0.0).mean()
        return loss, logs | {"loss": loss.detach()}

    @torch.no_grad()
    def target(self, batch: Batch, x_t: Tensor, t: Tensor, warm: float) -> tuple[Tensor, Tensor]:
        """g = cos t df/dt, (B, C, H, W), and the student's own velocity F at the same points, in float32.

        df/dt = -cos t (F - dx/dt) - sin t (x_t + dF/dt) [6], dx/dt the teacher's velocity; `warm` in (0, 1] scales the
        second half [section 4.2]. The prior weight 1 / tan t [section 4.2] times sin t is the cos t in front. The
        tangent is taken along cos t sin t (dx/dt, 1), which cannot overflow [section 4.2, JVP rearrangement].
        """
        drift = self.teacher.velocity(x_t, t, batch.cond, self.guidance)
        sin, cos = (f(t).reshape(-1, *[1] * (x_t.ndim - 1)) for f in (torch.sin, torch.cos))
        along = sin * cos
        velocity, slope = self.tangent(
            lambda x, time: self.student.velocity(x, time, batch.cond), (x_t, t), (along * drift, along.flatten())
        )
        return -(cos**2) * (velocity - drift) - warm * (along * x_t + slope), velocity

    def adapt(self, batch: Batch, x0: Tensor, z: Tensor) -> tuple[Tensor, Logs]:
        """Regress the student on its gentle clock onto the teacher's guided velocity, at noise levels of every size."""
        low, high = self.student.path.t_min, self.student.path.t_max
        t = low + (high - low) * batch.draws.uniform()
        x_t = add_noise(x0, z, t)
        with torch.no_grad():
            wanted = self.teacher.velocity(x_t, t, batch.cond, self.guidance)
        error = (self.student.velocity(x_t, t, batch.cond) - wanted).square().flatten(1).mean(1)
        error = error / self.student.gain(t).square()
        return error.mean(), {"adaptation_loss": error.mean().detach()}
