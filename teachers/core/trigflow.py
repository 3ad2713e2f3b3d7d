"""Canonical time: the one coordinate in which all mathematics of this project happens.

TrigFlow (Lu & Song 2024, arXiv 2410.11081, section 3): with data x0 of unit variance and noise z ~ N(0, I),

    x_t = cos(t) x0 + sin(t) z,       t in [0, pi/2]
    v   = cos(t) z - sin(t) x0        the probability-flow ODE's dx/dt

A `NoisePath` ties the angle t to a foreign model's own schedule X = alpha(timestep) X0 + sigma(timestep) z, where X0
has standard deviation `sigma_data`: tan t = sigma / (alpha sigma_data), X = scale(t) x_t, X0 = sigma_data x0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

HALF_PI = math.pi / 2


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Angles (B,) shaped to multiply a batch `x` of shape (B, ...)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def add_noise(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """x_t = cos(t) x0 + sin(t) z; x0, z (B, ...), t (B,) in radians."""
    t = expand(t, x0)
    return torch.cos(t) * x0 + torch.sin(t) * z


def to_velocity(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """v = cos(t) z - sin(t) x0."""
    t = expand(t, x0)
    return torch.cos(t) * z - torch.sin(t) * x0


def to_x0(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x0 = cos(t) x_t - sin(t) v; with the velocity of a consistency model this is its f(x_t, t)."""
    t = expand(t, x_t)
    return torch.cos(t) * x_t - torch.sin(t) * v


def to_noise(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """z = sin(t) x_t + cos(t) v."""
    t = expand(t, x_t)
    return torch.sin(t) * x_t + torch.cos(t) * v


def rotate(x_t: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The DDIM step from angle t to s: x_s = cos(s - t) x_t + sin(s - t) v. Exact with x0 and z held fixed."""
    angle = expand(s - t, x_t)
    return torch.cos(angle) * x_t + torch.sin(angle) * v


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Sequence[float], order: int = 1
) -> Tensor:
    """Follow the probability-flow ODE through `times` (radians, usually falling): DDIM (1) or a Heun-like second order.

    `velocity(x_t, t)` takes x_t (B, ...) and t (B,). Returns the state at the last time, shape of `x`.
    """
    if order not in (1, 2):
        raise ValueError(f"the order of the solver is 1 or 2, not {order}")
    grid = torch.as_tensor(times, dtype=torch.float64, device=x.device)
    for now, then in pairwise(grid):
        t, s = now.expand(len(x)), then.expand(len(x))
        v = velocity(x, t)
        guess = rotate(x, v, t, s).to(x.dtype)
        if order == 2:
            # A rotation by s - t carries v along with x, so the slope at the far end is turned back before the mean.
            far = velocity(guess, s)
            angle = expand(s - t, x)
            back = torch.sin(angle) * guess + torch.cos(angle) * far
            guess = rotate(x, (v + back) / 2, t, s).to(x.dtype)
        x = guess
    return x


class NoisePath(ABC):
    """A model's native schedule as a curve; final subclasses hold its coefficients in float64.

    Attributes: `sigma_data` (standard deviation of native data), `t_min` and `t_max` (radians, the angles that the
    schedule reaches), `num_train_timesteps` (the native clock's length).
    """

    sigma_data: float
    t_min: float
    t_max: float
    num_train_timesteps: int

    @abstractmethod
    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Native (alpha, sigma), float64, at native timesteps (B,), whole or fractional."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """The native timestep (float64, fractional) at angles t (B,); differentiable, since sCM needs its slope."""

    def angle(self, timestep: Tensor) -> Tensor:
        """The angle t (float64) of native timesteps (B,)."""
        alpha, sigma = self.coefficients(timestep)
        return torch.atan2(sigma, alpha * self.sigma_data)

    def native(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Native (alpha, sigma) at angles t (B,), in float64."""
        return self.coefficients(self.timestep(t))

    def solver_times(self, num_steps: int) -> list[float]:
        """`num_steps` angles spread evenly over native timesteps from the noisiest ("trailing"), then 0 (clean data).

        With `integrate` of first order these are the steps of diffusers' DDIM with "trailing" spacing, but for the last
        one, which some schedulers end at their first noise level instead. Network evaluations: `num_steps`.
        """
        last = self.num_train_timesteps - 1
        native = last - torch.arange(num_steps, dtype=torch.float64) * self.num_train_timesteps / num_steps
        return [*self.angle(native).tolist(), 0.0]

    def scale(self, t: Tensor) -> Tensor:
        """sqrt(alpha^2 sigma_data^2 + sigma^2): native sample = scale(t) x_t. Float64, shape of t."""
        return self.norm(*self.native(t))

    def norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """`scale` from the native coefficients."""
        return torch.sqrt((alpha * self.sigma_data) ** 2 + sigma**2)


class VariancePreserving(NoisePath):
    """A discrete variance-preserving table, made continuous by linear interpolation of log(sigma / alpha)."""

    def __init__(self, alphas_cumprod: Tensor, sigma_data: float = 1.0) -> None:
        table = alphas_cumprod.detach().double().cpu().clone()
        if (
            table.ndim != 1
            or len(table) < 2
            or not bool((table[1:] < table[:-1]).all())
            or table[0] >= 1
            or table[-1] < 0
        ):
            raise ValueError("alphas_cumprod has to be a falling sequence in [0, 1) of at least two noise levels")
        self.alphas_cumprod = table
        # A schedule with zero terminal SNR has its last entry at infinity: cap it where float64 still inverts it.
        self._placed = self.log_ratio = (0.5 * (torch.log1p(-table) - torch.log(table.clamp_min(1e-16)))).contiguous()
        self.sigma_data = sigma_data
        self.num_train_timesteps = len(table)
        ends = self.angle(torch.tensor([0.0, len(table) - 1.0], dtype=torch.float64))
        self.t_min, self.t_max = ends.tolist()

    def _table(self, device: torch.device) -> Tensor:
        """log(sigma / alpha) there, sent once: a copy a call would make the host wait for the device."""
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
        """Without the table: alpha^2 + sigma^2 = 1 and sigma = alpha sigma_data tan(t)."""
        t = t.double().clamp(self.t_min, self.t_max)
        alpha, sigma = torch.cos(t), torch.sin(t)
        if self.sigma_data == 1:
            return alpha, sigma
        norm = torch.sqrt(alpha**2 + (self.sigma_data * sigma) ** 2)
        return alpha / norm, self.sigma_data * sigma / norm

    def norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha) if self.sigma_data == 1 else super().norm(alpha, sigma)


class Flow(NoisePath):
    """Rectified flow: X = (1 - s) X0 + s z, timestep = num_train_timesteps * s.

    A `shift` (Esser et al. 2024, arXiv 2403.03206, section 5.3.2) is the same curve with other steps of the solver.
    """

    def __init__(self, num_train_timesteps: int = 1000, sigma_data: float = 1.0, shift: float = 1.0) -> None:
        self.num_train_timesteps, self.sigma_data, self.shift = num_train_timesteps, sigma_data, shift
        self.t_min, self.t_max = 0.0, HALF_PI

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        s = timestep.double() / self.num_train_timesteps
        return 1 - s, s

    def timestep(self, t: Tensor) -> Tensor:
        t = t.double()
        s = self.sigma_data * torch.sin(t) / (torch.cos(t) + self.sigma_data * torch.sin(t))
        return s * self.num_train_timesteps

    def solver_times(self, num_steps: int) -> list[float]:
        """s = 1, ..., 1 / num_steps in equal steps, each shifted to shift s / (1 + (shift - 1) s), then 0."""
        s = 1 - torch.arange(num_steps, dtype=torch.float64) / num_steps
        s = self.shift * s / (1 + (self.shift - 1) * s)
        return [*self.angle(s * self.num_train_timesteps).tolist(), 0.0]
