"""The updates of a training loop, which a GPU replays as a CUDA graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.pocket.machine import Machine

Figures = dict[str, Tensor]
Loss = Callable[[torch.Generator], tuple[Tensor, Figures]]
BEFORE_CAPTURE = 5  # updates on a stream of their own, in which libraries choose their kernels


class Updates:
    """Updates of the weights by the gradient of a loss.

    On a GPU, one update of a small network is thousands of short kernels, and to launch them takes longer than to run
    them. The whole update (draws, forward, backward, clipping, AdamW) is captured once as a CUDA graph and replayed.
    Random numbers come from the device's default generator, whose state a replay advances.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        machine: Machine,
        seed: int,
        first: int,
    ) -> None:
        self.loss, self.optimizer, self.parameters = loss, optimizer, parameters
        self.machine, self.seed, self.first = machine, seed, first
        self.graph: torch.cuda.CUDAGraph | None = None
        self.figures: Figures = {}
        if machine.gpu:
            torch.cuda.manual_seed(seed + first)
            self.rng = torch.cuda.default_generators[machine.device.index or 0]

    def make(self, step: int) -> Figures:
        """Make the update of a step, and return its figures, which the next update may overwrite."""
        if not self.machine.gpu:
            return self._update(torch.Generator().manual_seed(self.seed + step))
        if not self.machine.graph:
            return self._update(self.rng)
        if step - self.first < BEFORE_CAPTURE:
            return self._aside()
        if self.graph is None:
            self._capture()
        assert self.graph is not None
        self.graph.replay()
        return self.figures

    def _update(self, rng: torch.Generator) -> Figures:
        self.optimizer.zero_grad(set_to_none=True)
        value, figures = self.loss(rng)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {key: figure.detach() for key, figure in figures.items()}

    def _aside(self) -> Figures:
        stream, current = torch.cuda.Stream(self.machine.device), torch.cuda.current_stream(self.machine.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            figures = self._update(self.rng)
        current.wait_stream(stream)
        return figures

    def _capture(self) -> None:
        """Record an update without making it. Gradients must not exist before, so that the graph owns them."""
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.figures = self._update(self.rng)
