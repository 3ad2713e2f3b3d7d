"""`Cosine`: TrigFlow's own noise schedule as a model's native one."""

import math

import torch
from torch import Tensor

from teachers.core.noise_path import NoisePath
from teachers.core.trigflow import HALF_PI


class Cosine(NoisePath):
    """TrigFlow's own schedule: X = cos(u) X0 + sin(u) z with u = (pi / 2) timestep / num_train_timesteps.

    It is the schedule of Stable Audio (Evans et al. 2024, arXiv 2407.14358), whose network receives the timestep as a
    number in [0, 1].

    Args:
        sigma_min: The smallest sigma / alpha = tan(u) of the solver before clean data.
        sigma_max: The largest one, at which sampling begins.
        num_train_timesteps: Native timestep of pure noise.
        sigma_data: Standard deviation of native data.
    """

    def __init__(
        self, sigma_min: float, sigma_max: float, num_train_timesteps: int = 1000, sigma_data: float = 1.0
    ) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.num_train_timesteps, self.sigma_data = num_train_timesteps, sigma_data
        self.t_min, self.t_max = 0.0, math.atan(sigma_max / sigma_data)

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        u = timestep.double() * (HALF_PI / self.num_train_timesteps)
        u = u.clamp(0, math.atan(self.sigma_max))
        return torch.cos(u), torch.sin(u)

    def timestep(self, t: Tensor) -> Tensor:
        t = t.double()
        u = t if self.sigma_data == 1 else torch.atan2(self.sigma_data * torch.sin(t), torch.cos(t))
        return u * (self.num_train_timesteps / HALF_PI)

    def solver_times(self, num_steps: int) -> list[float]:
        """Return the angles of num_steps noise levels sigma / alpha from sigma_max to sigma_min, geometric, then 0."""
        ends = math.log(self.sigma_max), math.log(self.sigma_min)
        ratios = torch.linspace(*ends, num_steps, dtype=torch.float64).exp()
        return [*torch.atan(ratios / self.sigma_data).tolist(), 0.0]
