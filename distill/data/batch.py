"""What a method sees of the data: one micro-batch, and teacher pairs where it asks for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from distill.data.batch_random import BatchRandom
from teachers.core.denoiser import Condition


class Pairs(NamedTuple):
    """Noise and the teacher's ODE endpoint from it, both (B, C, H, W), under the endpoint's own condition."""

    noise: Tensor
    endpoint: Tensor
    cond: Condition


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `latents` (B, C, H, W) of unit variance, or None where the method needs prompts only."""

    cond: Condition
    rng: BatchRandom
    latents: Tensor | None = None
    pairs: Callable[[], Pairs] | None = None  # reads as many pairs as there are rows, where the method asked for them

    def __len__(self) -> int:
        return len(self.rng)
