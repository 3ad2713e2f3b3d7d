"""Continuous-time consistency models: sCD and sCT (Lu & Song 2024, "Simplifying, Stabilizing and Scaling
Continuous-Time Consistency Models", arXiv 2410.11081). Paper equations are in brackets; here data has unit variance
(sigma_d = 1).

The student is a consistency function f(x_t, t) = cos t x_t - sin t F(x_t, t) [5] that should be constant along a
probability-flow ODE: its total derivative df/dt along the trajectory is driven to zero. The trajectory's slope dx/dt is
the teacher's velocity (distillation, sCD) or cos t z - sin t x0 of the sample at hand (training from data, sCT).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distill.data.batch import Batch
from distill.methods.base import Distiller, Logs
from distill.methods.jvp import tangent
from teachers.core.denoiser import SOFT_WIDTH, Condition, Denoiser
from teachers.core.teacher import Teacher
from teachers.core.trigflow import HALF_PI, add_noise, expand, to_velocity

EDGE = 1e-4  # radians; more than a finite difference's step


@dataclass
class SCMOptions:
    drift: Literal["teacher", "data"] = "teacher"  # dx/dt: the teacher's velocity (sCD), or the sample's own (sCT)
    guidances: tuple[float, ...] = ()  # train at scales drawn from these, which the student is told; none: one, fixed
    proposal: tuple[float, float] = (0.3, 1.4)  # log tan t ~ N(mean, std^2); add log 2 to means quoted for sigma_d 0.5
    tangent: Literal["auto", "jvp", "jvp_flash", "finite_difference"] = "auto"
    tangent_warmup: int = 200  # H: steps over which the tangent's unstable half is switched on (section 4.2)
    tangent_offset: float = 1.0  # c in g / (|g| + c), |g| the L2 norm over a whole sample (SANA's and rCM's meaning)
    learned_weighting: bool = False  # the adaptive log-variance weighting w_phi(t) (section 4.2, from EDM2)
    adaptation_steps: int = 200  # first steps, in which the student gets used to clock and ceiling; 0: neither
    time_scale: float = 8.0  # the gentle clock: the network is told time_scale * t instead of its native timestep
    max_angle: float = (
        1.2  # radians; where an epsilon student's output is read near the end of time (`Denoiser.max_angle`)
    )
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
        return self.linear(torch.cat([phase.sin(), phase.cos()], dim=1)).flatten()


class SCM(Distiller):
    """One or two steps. Needs latents (real, or the teacher's) with their captions."""

    Options = SCMOptions
    options: SCMOptions

    def __init__(self, teacher: Teacher, guidance: float, options: SCMOptions, student: Denoiser | None = None) -> None:
        super().__init__(teacher, guidance, options, student)
        self._check()
        self.tangent, self._why = tangent(options.tangent, next(self.student.parameters()).device)
        self.log_variance = LogVariance() if options.learned_weighting else None
        if options.guidances:
            teacher.embed_guidance(self.student, guidance)
        if options.adaptation_steps:
            teacher.refit_time_embedding(self.student, options.time_scale)
            self.student.max_angle = options.max_angle

    def _check(self) -> None:
        options, guidances = self.options, self.options.guidances
        if options.adaptation_steps < 0 or options.tangent_warmup < 1:
            raise ValueError("method.adaptation_steps has to be at least 0, and method.tangent_warmup at least 1")
        if any(not 0 < time < HALF_PI for time in options.second_times) or not options.second_times:
            raise ValueError(f"method.second_times are {options.second_times}; each has to be an angle in (0, pi/2)")
        if options.max_angle <= SOFT_WIDTH or options.time_scale <= 0 or options.proposal[1] <= 0:
            raise ValueError(
                f"method.max_angle has to be above {SOFT_WIDTH} rad, method.time_scale and the proposal's spread positive"
            )
        if options.drift == "data" and (guidances or (self.guidance != 1.0 and self.teacher.guided)):
            raise ValueError(
                f"method.drift is 'data' (sCT), which sees no guided teacher, but teacher.guidance is {self.guidance} "
                f"and method.guidances {list(guidances)}; set 1.0 and none, or method.drift=teacher"
            )
        if guidances and not min(guidances) <= self.guidance <= max(guidances):
            raise ValueError(
                f"teacher.guidance {self.guidance}, at which the student is judged, has to lie within "
                f"method.guidances {list(guidances)}"
            )

    @classmethod
    def needs_latents(cls, options: SCMOptions) -> bool:
        return True

    def notes(self) -> Sequence[str]:
        return (self._why,)

    def networks(self) -> Mapping[str, Sequence[nn.Module]]:
        return {"student": [self.student] + ([self.log_variance] if self.log_variance else [])}

    def candidate_times(self) -> list[list[float]]:
        path, student = self.student.path, self.student
        usable = [
            a
            for a in self.options.second_times
            if path.t_min < a < path.t_max and student.output_angle(torch.tensor(a)) == a
        ]
        return [[path.t_max, angle] for angle in usable] or [[path.t_max]]

    def step_counts(self, times: Sequence[float]) -> tuple[int, ...]:
        return tuple(range(1, len(times) + 1))

    def noise_level(self, batch: Batch) -> Tensor:
        """t = arctan(e^tau), tau ~ N(P_mean, P_std^2) (section 4.2), kept just within the teacher's schedule.

        At its very ends the schedule's table stops, and a derivative in time would see the stop.
        """
        mean, std = self.options.proposal
        tau = mean + std * math.sqrt(2) * torch.erfinv((2 * batch.rng.uniform() - 1).clamp(-0.9999, 0.9999))
        return torch.atan(torch.exp(tau)).clamp(self.student.path.t_min + EDGE, self.student.path.t_max - EDGE)

    def forward(self, phase: str, batch: Batch, step: int) -> tuple[Tensor, Logs]:
        assert batch.latents is not None
        x0, z = batch.latents, batch.rng.normal(*batch.latents.shape[1:])
        adapting = step < self.options.adaptation_steps
        t = self._everywhere(batch) if adapting else self.noise_level(batch)
        x_t = add_noise(x0, z, t)
        guidance, cond = self._guidance(batch)
        with torch.no_grad():  # dx/dt: the teacher's velocity (sCD), or in its stead an unbiased sample of it (sCT)
            drift = (
                self.teacher.velocity(x_t, t, batch.cond, guidance)
                if self.options.drift == "teacher"
                else to_velocity(x0, z, t)
            )
        if adapting:
            return self.adapt(x_t, t, drift, cond)
        warm = min(1.0, (step - self.options.adaptation_steps + 1) / self.options.tangent_warmup)
        g, frozen = self.target(x_t, t, drift, cond, warm)
        norm = g.flatten(1).norm(dim=1)
        finite = torch.isfinite(norm) & torch.isfinite(frozen.flatten(1).sum(1))
        g = torch.where(expand(finite, g), g / expand(norm + self.options.tangent_offset, g), 0.0)
        # [8]: |F - stop(F) - g|^2: the step that turns f, along the trajectory, towards a constant.
        velocity = self.student.velocity(x_t, t, cond)
        velocity = torch.where(expand(finite, g), velocity, 0.0)  # before it is used: 0 times NaN is NaN in backward
        error = (velocity - velocity.detach() - g).square().flatten(1).sum(1)
        error = (
            error / self.student.velocity_scale(t).square()
        )  # counted in the network's output, so that no end of time rules
        logs = {
            "tangent_norm": torch.where(finite, norm, 0.0).mean(),
            "masked_share": (~finite).float().mean(),  # of the samples, left out because they are not finite
            "tangent_agreement": (velocity.detach() - frozen).abs().mean(),
        }
        if self.log_variance is None:
            loss = torch.where(finite, error, 0.0).mean()
        else:
            weight = self.log_variance(t)
            loss = torch.where(finite, weight.exp() / x0[0].numel() * error - weight, 0.0).mean()
        return loss, logs | {"loss": loss.detach()}

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, drift: Tensor, cond: Condition, warm: float) -> tuple[Tensor, Tensor]:
        """g = cos t df/dt, (B, C, H, W), and the student's own velocity F at the same points, in float32.

        df/dt = -cos t (F - dx/dt) - sin t (x_t + dF/dt) [6], dx/dt the `drift`; `warm` in (0, 1] scales the second half
        (section 4.2). The prior weight 1 / tan t (section 4.2) times sin t is the cos t in front. The tangent is taken
        along cos t sin t (dx/dt, 1), which cannot overflow (section 5.1, JVP rearrangement).
        """
        sin, cos = (expand(f(t), x_t) for f in (torch.sin, torch.cos))
        along = sin * cos
        velocity, slope = self.tangent(
            lambda x, time: self.student.velocity(x, time, cond), (x_t, t), (along * drift, along.flatten())
        )
        return -(cos**2) * (velocity - drift) - warm * (along * x_t + slope), velocity

    def adapt(self, x_t: Tensor, t: Tensor, drift: Tensor, cond: Condition) -> tuple[Tensor, Logs]:
        """Regress the student, on its gentle clock, onto the velocity that it will be differentiated along."""
        error = (self.student.velocity(x_t, t, cond) - drift).square().flatten(1).mean(1)
        loss = (error / self.student.velocity_scale(t).square()).mean()
        return loss, {"adaptation_loss": loss.detach()}

    def _everywhere(self, batch: Batch) -> Tensor:
        """Angles (B,) uniform over the schedule: noise levels of every size."""
        low, high = self.student.path.t_min, self.student.path.t_max
        return low + (high - low) * batch.rng.uniform()

    def _guidance(self, batch: Batch) -> tuple[float | Tensor, Condition]:
        """The teacher's guidance, one scale or one a sample (B,), and the student's condition, which names the scale
        where it varies (Meng et al. 2022, arXiv 2210.03142; SANA-Sprint's embedded guidance)."""
        if not self.options.guidances:
            return self.guidance, batch.cond
        scales = torch.tensor(self.options.guidances, device=batch.rng.device)
        guidance = scales[batch.rng.rows(len(scales))]
        return guidance, {**batch.cond, **self.teacher.guidance_condition(self.student, guidance)}
