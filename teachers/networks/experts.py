"""`Experts`: two networks of one architecture, of which one takes high noise levels and the other low ones."""

from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from teachers.support.private_api import inherit_declarations


class Experts(ModelMixin):  # it supports activation checkpointing as its networks do
    """Calls one of two networks for each sample, by its timestep.

    Args:
        high: The network for timesteps of at least the boundary.
        low: The network for smaller timesteps.
    """

    def __init__(self, high: nn.Module, low: nn.Module) -> None:
        super().__init__()
        self.high, self.low = high, low
        inherit_declarations(self, high)

    @property
    def config(self) -> Any:
        """The config of the network for high noise levels."""
        return self.high.config

    def forward(self, sample: Tensor, timestep: Tensor, boundary: float, **cond: Tensor) -> Tensor:
        """The output of the expert of each sample.

        Args:
            sample: Noisy samples (B, ...).
            timestep: Timesteps (B,).
            boundary: The smallest timestep of `high`.
            cond: Further arguments with B rows.

        Returns:
            The outputs (B, ...), in the order of the samples.
        """
        if timestep.is_meta:
            result: Tensor = self.high(sample, timestep, **cond, return_dict=False)[0]
            return result
        rows = (timestep >= boundary).nonzero().flatten(), (timestep < boundary).nonzero().flatten()
        parts = []
        for network, own in zip((self.high, self.low), rows, strict=True):
            if len(own) == len(sample):  # without copies
                output: Tensor = network(sample, timestep, **cond, return_dict=False)[0]
                return output
            if len(own):
                chosen = {key: value[own] for key, value in cond.items()}
                parts.append(network(sample[own], timestep[own], **chosen, return_dict=False)[0])
        return torch.cat(parts)[torch.cat(rows).argsort()]
