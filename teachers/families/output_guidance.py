"""Guidance that pipelines define on the output of a rectified flow's network, where it is no linear combination."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.core.guided import concatenate
from teachers.core.teacher import Teacher
from teachers.core.trigflow import expand
from teachers.families.packing import pack, unpack


class OutputGuidance(Teacher):
    """A rectified flow whose guided output is `combine_outputs`."""

    @abstractmethod
    def combine_outputs(self, with_prompt: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        """The guided output.

        Args:
            with_prompt: The network's output z - X0 with the prompt, (B, *shape).
            without: The output without it.
            scale: The guidance scale, or scales (B, 1, ...).

        Returns:
            The guided output, (B, *shape).
        """

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The velocity with the pipeline's guidance; see `Guided.velocity`."""
        if not isinstance(guidance, Tensor) and guidance == 1.0:
            return super().velocity(x_t, t, cond, 1.0)
        conditions = concatenate(cond, self.null_condition(cond))
        with self._on_device():
            both = self.denoiser.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), conditions).chunk(2)
        data = self.denoiser.path.sigma_data
        c, s = (expand(f(t), x_t).to(x_t.dtype) for f in (torch.cos, torch.sin))
        first, second = (s * x_t + c * v - data * (c * x_t - s * v) for v in both)
        scale = expand(guidance, x_t).to(x_t.dtype) if isinstance(guidance, Tensor) else guidance
        return both[0] + (self.combine_outputs(first, second, scale) - first) / (c + data * s)


class TokenNormGuidance(OutputGuidance):
    """Classifier-free guidance after which each token of 2 x 2 patches has the norm of the one with the prompt.

    Attributes:
        largest_factor: The largest factor by which a token is multiplied.
        norm_offset: Is added to the norms by which tokens are divided.
    """

    largest_factor: ClassVar[float] = float("inf")
    norm_offset: ClassVar[float] = 0.0

    def combine_outputs(self, with_prompt: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        guided = pack(without + scale * (with_prompt - without))
        norms = [torch.norm(tokens, dim=-1, keepdim=True) for tokens in (pack(with_prompt), guided)]
        factor = (norms[0] / (norms[1] + self.norm_offset)).clamp(max=self.largest_factor)
        return unpack(guided * factor, *with_prompt.shape[2:])
