"""`Edm`: the noise schedule of Karras et al. 2022 (arXiv 2206.00364), X = X0 + sigma z, with its preconditioning.

An EDM network receives c_in X and c_noise = log(sigma) / 4 (table 1). With sigma = sigma_data tan t, c_in X is the x_t
of TrigFlow itself, and the output F of D = c_skip X + c_out F is -v, or v where c_out is negative.
"""

import math

import torch
from torch import Tensor

from teachers.core.karras import KarrasGrid
from teachers.core.noise_path import NoisePath


class Edm(NoisePath):
    """A variance-exploding schedule whose network is preconditioned. Its timesteps are places on the solver's grid.

    The timesteps 0 to num_train_timesteps - 1 have the noise levels of a solver with as many steps, so they are uniform
    in sigma^(1 / rho) (equation 5). The network receives `network_time` instead.

    Args:
        sigma_min: The smallest noise level.
        sigma_max: The largest noise level, at which sampling begins.
        num_train_timesteps: Number of timesteps.
        sigma_data: Standard deviation of native data, a constant of the preconditioning.
        rho: Exponent of the grid; None: the grid is geometric.
    """

    slow_time = True
    preconditioned = True

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        num_train_timesteps: int = 1000,
        sigma_data: float = 0.5,
        rho: float | None = 7.0,
    ) -> None:
        self.sigma_min, self.sigma_max, self.grid = sigma_min, sigma_max, KarrasGrid(sigma_min, sigma_max, rho)
        self.num_train_timesteps, self.sigma_data = num_train_timesteps, sigma_data
        self.t_min, self.t_max = (math.atan(sigma / sigma_data) for sigma in (sigma_min, sigma_max))

    def _sigma(self, t: Tensor) -> Tensor:
        """Noise levels at angles, at most sigma_max."""
        return self.sigma_data * torch.tan(t.double().clamp(0, self.t_max))

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.grid.levels(timestep.double() / (self.num_train_timesteps - 1))
        return torch.ones_like(sigma), sigma

    def timestep(self, t: Tensor) -> Tensor:
        return self.grid.fraction(self._sigma(t.clamp_min(self.t_min))) * (self.num_train_timesteps - 1)

    def network_time(self, t: Tensor) -> Tensor:
        return self._sigma(t.clamp_min(self.t_min)).log() / 4

    def of_network_time(self, timesteps: Tensor) -> Tensor:
        return self.timestep(torch.atan((4 * timesteps.double()).exp() / self.sigma_data))

    def native(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self._sigma(t)
        return torch.ones_like(sigma), sigma

    def input_norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def start_scale(self, t: Tensor) -> Tensor:
        """What divides noise: diffusers' schedulers begin at sqrt(sigma^2 + 1) z, and c_in = 1 / scale(t)."""
        return self.scale(t) / torch.sqrt(self._sigma(t) ** 2 + 1)

    def solver_times(self, num_steps: int) -> list[float]:
        """Return the angles of num_steps noise levels from sigma_max to sigma_min on the grid, then 0."""
        sigma = self.grid.levels(torch.linspace(1, 0, num_steps, dtype=torch.float64))
        return [*torch.atan(sigma / self.sigma_data).tolist(), 0.0]
