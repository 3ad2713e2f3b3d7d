"""`NoisePath`: a model's native noise schedule in the canonical time coordinate of `teachers.core.trigflow`.

It maps the angle t to X = alpha(timestep) X0 + sigma(timestep) z, where X0 has standard deviation `sigma_data`:
tan t = sigma / (alpha sigma_data), X = scale(t) x_t, X0 = sigma_data x0.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class NoisePath(ABC):
    """A model's native noise schedule as a continuous function of the angle t, with float64 coefficients.

    Attributes:
        sigma_data: Standard deviation of native data.
        t_min: Smallest angle of the schedule, in radians.
        t_max: Largest angle of the schedule, in radians.
        num_train_timesteps: Number of native timesteps.
        slow_time: Whether the features of `network_time` are slow enough for consistency training, so that it needs no
            rescaled time.
        preconditioned: Whether the network has EDM's preconditioning. Its few-step schedulers accept every number of
            steps, and front ends know it of few published files only.
    """

    sigma_data: float
    t_min: float
    t_max: float
    num_train_timesteps: int
    slow_time: bool = False
    preconditioned: bool = False

    @property
    def last_timestep(self) -> int:
        """The native timestep with the most noise."""
        return self.num_train_timesteps - 1

    @abstractmethod
    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return native (alpha, sigma), each (B,) in float64, at integer or fractional native timesteps (B,)."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """Return native timesteps (B,), fractional and in float64, at angles t (B,).

        It is differentiable, because sCM needs its derivative.
        """

    def network_time(self, t: Tensor) -> Tensor:
        """Return what networks receive as their timestep, (B,) in float64, at angles t (B,): `timestep` by default."""
        return self.timestep(t)

    def of_network_time(self, timesteps: Tensor) -> Tensor:
        """Return native timesteps (B,), in float64, of what networks receive, (B,): the inverse of `network_time`."""
        return timesteps.double()

    def angle(self, timestep: Tensor) -> Tensor:
        """Return the angles (B,), in radians and float64, of native timesteps (B,)."""
        alpha, sigma = self.coefficients(timestep)
        return torch.atan2(sigma, alpha * self.sigma_data)

    def native(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return native (alpha, sigma), each (B,) in float64, at angles t (B,)."""
        return self.coefficients(self.timestep(t))

    def solver_times(self, num_steps: int) -> list[float]:
        """Return the angles of a solver with `num_steps` network evaluations: evenly spaced timesteps, then 0.

        With `integrate(order=1)` these are the steps of diffusers' DDIM with "trailing" spacing. The last step may
        differ: some schedulers end at their first noise level instead of clean data.

        Args:
            num_steps: Number of network evaluations.

        Returns:
            `num_steps` + 1 decreasing angles in radians; the last one is 0.
        """
        last = self.num_train_timesteps - 1
        native = last - torch.arange(num_steps, dtype=torch.float64) * self.num_train_timesteps / num_steps
        return [*self.angle(native).tolist(), 0.0]

    def scale(self, t: Tensor) -> Tensor:
        """Return sqrt(alpha^2 sigma_data^2 + sigma^2), (B,) in float64, at angles t (B,): X = scale(t) x_t."""
        return self.norm(*self.native(t))

    def norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return `scale` for given native coefficients."""
        return torch.sqrt((alpha * self.sigma_data) ** 2 + sigma**2)

    def input_norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return `input_scale` for given native coefficients."""
        return self.norm(alpha, sigma)

    def input_scale(self, t: Tensor) -> Tensor:
        """Return the factor of x_t in what networks receive, (B,) in float64, at angles t (B,): `scale` by default."""
        return self.input_norm(*self.native(t))

    def start_scale(self, t: Tensor) -> Tensor:
        """Return what a pipeline's first noise is divided by to give x_t, (B,) in float64, at angles t (B,)."""
        return self.scale(t)
