"""A frozen network that lives in host memory and is on the device for the length of a call only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Offload:
    """Takes the weights of the frozen `network` off its device; `on_device` lends them to `device`."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        pinned = device.type == "cuda"  # copies from pinned memory do not hold the host up
        tensors = [*network.parameters(), *network.buffers()]
        self._kept = [(x, x.data.cpu().pin_memory() if pinned else x.data.cpu()) for x in tensors]
        self._take_back()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """A context in which the network is on the device. No graph may outlive it: backward would miss the weights."""
        for tensor, kept in self._kept:
            tensor.data = kept.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self._take_back()

    def _take_back(self) -> None:
        for tensor, kept in self._kept:  # nothing is copied: the network is frozen
            tensor.data = kept
