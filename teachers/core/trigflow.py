"""TrigFlow, the canonical time coordinate of all methods, and noise schedules expressed in it.

TrigFlow (Lu & Song 2024, arXiv 2410.11081, section 3): for data x0 of unit variance and noise z ~ N(0, I),

    x_t = cos(t) x0 + sin(t) z,       t in [0, pi/2] radians
    v   = cos(t) z - sin(t) x0        dx/dt of the probability-flow ODE

`VariancePreserving` and `Flow` are the usual native schedules; see `teachers.core.noise_path`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from teachers.core.noise_path import NoisePath

HALF_PI = math.pi / 2


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape per-sample values so that they broadcast over a batch.

    Args:
        t: One value for each sample, (B,).
        x: The batch, (B, ...).

    Returns:
        `t` as (B, 1, ..., 1), with as many dimensions as `x`.
    """
    return t.reshape(-1, *[1] * (x.ndim - 1))


def add_noise(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Forward process of TrigFlow: x_t = cos(t) x0 + sin(t) z (arXiv 2410.11081, section 3).

    Args:
        x0: Clean data of unit variance, (B, ...).
        z: Standard normal noise, shape of `x0`.
        t: Angles in radians, (B,).

    Returns:
        Noisy data x_t, shape of `x0`.
    """
    t = expand(t, x0)
    return torch.cos(t) * x0 + torch.sin(t) * z


def to_velocity(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Velocity of the probability-flow ODE: v = cos(t) z - sin(t) x0.

    Args:
        x0: Clean data of unit variance, (B, ...).
        z: Noise, shape of `x0`.
        t: Angles in radians, (B,).

    Returns:
        v = dx/dt, shape of `x0`.
    """
    t = expand(t, x0)
    return torch.cos(t) * z - torch.sin(t) * x0


def to_x0(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Clean data from a velocity: x0 = cos(t) x_t - sin(t) v. For a consistency model this is f(x_t, t).

    Args:
        x_t: Noisy data, (B, ...).
        v: Velocity at x_t, shape of `x_t`.
        t: Angles in radians, (B,).

    Returns:
        x0, shape of `x_t`.
    """
    t = expand(t, x_t)
    return torch.cos(t) * x_t - torch.sin(t) * v


def rotate(x_t: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DDIM step from angle t to s: x_s = cos(s - t) x_t + sin(s - t) v. It is exact if x0 and z stay constant.

    Args:
        x_t: Noisy data at angle t, (B, ...).
        v: Velocity at x_t, shape of `x_t`.
        t: Current angles in radians, (B,).
        s: Target angles in radians, (B,).

    Returns:
        x_s, shape of `x_t`.
    """
    angle = expand(s - t, x_t)
    return torch.cos(angle) * x_t + torch.sin(angle) * v


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Sequence[float], order: int = 1
) -> Tensor:
    """Solve the probability-flow ODE through the angles `times`.

    Args:
        velocity: v(x_t, t) for x_t (B, ...) and t (B,) in float64 radians.
        x: State at `times[0]`, (B, ...).
        times: Angles in radians, usually decreasing.
        order: 1 for DDIM steps (`rotate`), 2 for Heun steps with two evaluations each.

    Returns:
        The state at the last time, shape and dtype of `x`.

    Raises:
        ValueError: If `order` is neither 1 nor 2.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    angles = torch.as_tensor(times, dtype=torch.float64, device=x.device)
    for current, following in pairwise(angles):
        t, s = current.expand(len(x)), following.expand(len(x))
        v = velocity(x, t)
        x_s = rotate(x, v, t, s).to(x.dtype)
        if order == 2:
            # The step rotates v together with x, so the slope at s is rotated back to t before averaging.
            v_s = velocity(x_s, s)
            angle = expand(s - t, x)
            v_back = torch.sin(angle) * x_s + torch.cos(angle) * v_s
            x_s = rotate(x, (v + v_back) / 2, t, s).to(x.dtype)
        x = x_s
    return x


class VariancePreserving(NoisePath):
    """A discrete variance-preserving schedule, made continuous by linear interpolation of log(sigma / alpha).

    Args:
        alphas_cumprod: A scheduler's cumulative products of alpha, decreasing, (num_train_timesteps,).
        sigma_data: Standard deviation of native data.

    Raises:
        ValueError: If `alphas_cumprod` does not decrease or leaves [0, 1).
    """

    def __init__(self, alphas_cumprod: Tensor, sigma_data: float = 1.0) -> None:
        table = alphas_cumprod.detach().double().cpu().clone()
        decreases = table.ndim == 1 and len(table) >= 2 and bool((table[1:] < table[:-1]).all())
        if not decreases or table[0] >= 1 or table[-1] < 0:
            raise ValueError(
                "alphas_cumprod must be a decreasing sequence in [0, 1) with at least two noise levels, "
                f"got shape {tuple(table.shape)}"
            )
        self.alphas_cumprod = table
        # With zero terminal SNR the last entry is infinite; the clamp keeps it invertible in float64.
        self._placed = self.log_ratio = (0.5 * (torch.log1p(-table) - torch.log(table.clamp_min(1e-16)))).contiguous()
        self.sigma_data = sigma_data
        self.num_train_timesteps = len(table)
        ends = self.angle(torch.tensor([0.0, len(table) - 1.0], dtype=torch.float64))
        self.t_min, self.t_max = ends.tolist()

    def _table(self, device: torch.device) -> Tensor:
        """The table of log(sigma / alpha) on `device`; it is copied once, because each copy blocks the host."""
        if self._placed.device != device:
            self._placed = self.log_ratio.to(device)
        return self._placed

    def _log_ratio(self, timestep: Tensor) -> Tensor:
        table = self._table(timestep.device)
        tau = timestep.double().clamp(0, len(table) - 1)
        below = tau.detach().floor().long().clamp(max=len(table) - 2)
        low = table[below]
        return low + (tau - below) * (table[below + 1] - low)

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio = self._log_ratio(timestep)
        return torch.sigmoid(-2 * log_ratio).sqrt(), torch.sigmoid(2 * log_ratio).sqrt()

    def angle(self, timestep: Tensor) -> Tensor:
        return torch.atan(torch.exp(self._log_ratio(timestep)) / self.sigma_data)

    def timestep(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        t = t.double().clamp(self.t_min, self.t_max)
        log_ratio = torch.log(self.sigma_data * torch.tan(t))
        below = (torch.searchsorted(table, log_ratio.detach()) - 1).clamp(0, len(table) - 2)
        low = table[below]
        return below + (log_ratio - low) / (table[below + 1] - low)

    def native(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form without the table, from alpha^2 + sigma^2 = 1 and sigma = alpha sigma_data tan(t)."""
        t = t.double().clamp(self.t_min, self.t_max)
        alpha, sigma = torch.cos(t), torch.sin(t)
        if self.sigma_data == 1:
            return alpha, sigma
        norm = torch.sqrt(alpha**2 + (self.sigma_data * sigma) ** 2)
        return alpha / norm, self.sigma_data * sigma / norm

    def norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha) if self.sigma_data == 1 else super().norm(alpha, sigma)


class Flow(NoisePath):
    """Rectified flow: X = (1 - s) X0 + s z with timestep = num_train_timesteps * s.

    Args:
        num_train_timesteps: Native timestep of pure noise.
        sigma_data: Standard deviation of native data.
        shift: Timestep shift of the solver (Esser et al. 2024, arXiv 2403.03206, section 5.3.2). It changes
            `solver_times` only, as the next one does.
        terminal: The last noise level s of the solver before clean data, to which it stretches the others; None: it
            does not stretch them.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        sigma_data: float = 1.0,
        shift: float = 1.0,
        terminal: float | None = None,
    ) -> None:
        self.num_train_timesteps, self.sigma_data, self.shift = num_train_timesteps, sigma_data, shift
        self.terminal = terminal
        self.t_min, self.t_max = 0.0, HALF_PI

    @property
    def last_timestep(self) -> int:
        return self.num_train_timesteps

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        s = timestep.double() / self.num_train_timesteps
        return 1 - s, s

    def timestep(self, t: Tensor) -> Tensor:
        t = t.double()
        s = self.sigma_data * torch.sin(t) / (torch.cos(t) + self.sigma_data * torch.sin(t))
        return s * self.num_train_timesteps

    def solver_times(self, num_steps: int) -> list[float]:
        """Return the angles of s = 1, ..., 1 / num_steps, each shifted to shift s / (1 + (shift - 1) s), then 0.

        With `terminal` they are then stretched to end at it; one step is at pure noise.
        """
        s = 1 - torch.arange(num_steps, dtype=torch.float64) / num_steps
        s = self.shift * s / (1 + (self.shift - 1) * s)
        if self.terminal and num_steps > 1:
            s = 1 - (1 - s) * (1 - self.terminal) / (1 - s[-1])
        return [*self.angle(s * self.num_train_timesteps).tolist(), 0.0]
