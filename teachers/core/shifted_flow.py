"""`ShiftedFlow`: a rectified flow whose network receives the timestep before its shift, as CogView4 does."""

import numpy as np
import torch
from torch import Tensor

from teachers.core.trigflow import Flow


class ShiftedFlow(Flow):
    """Rectified flow: X = (1 - s) X0 + s z, s = shift u / (1 + (shift - 1) u), timestep = num_train_timesteps * u.

    In `Flow` the network receives num_train_timesteps * s, whatever the shift of the solver is.
    """

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        u = timestep.double() / self.num_train_timesteps
        return super().coefficients(self.num_train_timesteps * self.shift * u / (1 + (self.shift - 1) * u))

    def timestep(self, t: Tensor) -> Tensor:
        s = super().timestep(t) / self.num_train_timesteps
        return self.num_train_timesteps * s / (self.shift - (self.shift - 1) * s)

    def solver_times(self, num_steps: int) -> list[float]:
        """Return the angles of the timesteps from the last to 1, evenly spaced and rounded down, then 0."""
        steps = np.linspace(self.num_train_timesteps, 1.0, num_steps).astype(np.int64)
        return [*self.angle(torch.from_numpy(steps)).tolist(), 0.0]
