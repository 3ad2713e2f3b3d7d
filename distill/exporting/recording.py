"""Records what a pipeline does in a call: the noise that it draws, and the samples that its scheduler returns."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SAMPLES = 2  # images of each call
DRAWS = frozenset({torch.randn, torch.randn_like, torch.normal, Tensor.normal_})


class NoiseRecorder(TorchFunctionMode):
    """While active, records the normal noise that torch draws for `SAMPLES` latents, together or one by one.

    Args:
        shape: The shape of one latent; draws of other sizes are not recorded.

    Attributes:
        noises: The recorded noise in order, (SAMPLES, ...) each, on the CPU.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.noises: list[Tensor] = []
        self.rows: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in DRAWS:
            self._record(output.detach())
        return output

    def _record(self, draw: Tensor) -> None:
        values = self.shape.numel()
        if draw.numel() == SAMPLES * values:
            self.noises.append(draw.float().cpu().clone())
        elif draw.numel() == values:  # a pipeline with one generator for each sample
            row = draw[None] if draw.shape == self.shape else draw
            self.rows.append(row.float().cpu().clone())
            if len(self.rows) == SAMPLES:
                self.noises.append(torch.cat(self.rows))
                self.rows = []


@contextmanager
def recorded_steps(scheduler: Any, after: Callable[[Any, Tensor], None] | None = None) -> Iterator[list[Tensor]]:
    """A context that yields a list, to which the samples that `scheduler.step` returns are appended.

    Args:
        scheduler: The scheduler.
        after: Is called with the scheduler and each of these samples.
    """
    steps: list[Tensor] = []
    step = getattr(scheduler, "step", None)
    if step is None:
        yield steps
        return

    @functools.wraps(step)  # pipelines look for arguments such as `generator` in its signature
    def recording(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        steps.append(result[0])
        if after is not None:
            after(scheduler, result[0])
        return result

    scheduler.step = recording
    try:
        yield steps
    finally:
        del scheduler.step
