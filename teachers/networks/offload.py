"""Offloading: a frozen network in host memory that is copied to the device for each call."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Offload:
    """Moves the weights of a frozen network to host memory; `on_device` copies them back for one call.

    Args:
        network: The frozen network. Its tensors are replaced in place.
        device: Where the network runs.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        pinned = device.type == "cuda"  # copies from pinned memory do not block the host
        tensors = [*network.parameters(), *network.buffers()]
        self._host = [(x, x.data.cpu().pin_memory() if pinned else x.data.cpu()) for x in tensors]
        self._to_host()
        self._uses = 0  # contexts that are active now

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """A context in which the network is on the device. Contexts can be nested; only the outermost one copies.

        No autograd graph may be used after it ends, because backward would use the weights in host memory.
        """
        if not self._uses:
            for tensor, host in self._host:
                tensor.data = host.to(self.device, non_blocking=True)
        self._uses += 1
        try:
            yield
        finally:
            self._uses -= 1
            if not self._uses:
                self._to_host()

    def _to_host(self) -> None:
        for tensor, host in self._host:  # nothing is copied, because the network is frozen
            tensor.data = host
