"""`FixedStart`: rectified flows that are sampled from pure noise where their pipeline's call takes no noise levels."""

import inspect
from collections.abc import Sequence

import torch

from teachers.core.few_step import is_default_schedule, native_levels
from teachers.core.trigflow import Flow
from teachers.families.latent import LatentTeacher


class FixedStart(LatentTeacher):
    """A latent pipeline whose students have one or two steps from pure noise, if its call takes no noise levels."""

    def _fixed_start(self) -> bool:
        """Whether sampling begins at pure noise, because the pipeline's call takes no noise levels."""
        takes_sigmas = "sigmas" in inspect.signature(type(self.stock).__call__).parameters
        return isinstance(self.denoiser.path, Flow) and not takes_sigmas

    def exportable_times(self, times: list[float]) -> list[float]:
        path = self.denoiser.path
        last = path.angle(torch.tensor([path.num_train_timesteps - 1.0], dtype=torch.float64)).item()
        begins_there = self._fixed_start() and times[0] > last - 1e-6
        return [path.t_max, *times[1:]] if begins_there else times

    def check_exportable(self, times: Sequence[float]) -> None:
        if self._fixed_start() and not is_default_schedule(self.denoiser, times):
            most = self.denoiser.path.num_train_timesteps
            found = [round(level * most) for level in native_levels(self.denoiser.path, times)]
            raise ValueError(
                f"a student of {type(self.stock).__name__} must have one or two steps from pure noise, because its "
                f"call takes no noise levels, got the timesteps {found}; begin method.timesteps with {most}"
            )
