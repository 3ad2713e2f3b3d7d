"""The data that a method receives: one micro-batch, with teacher pairs if the method requests them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from distill.data.batch_random import BatchRandom
from teachers.core.denoiser import Condition


class Pairs(NamedTuple):
    """Teacher pairs.

    Attributes:
        noise: Standard normal noise (B, ...).
        endpoint: The endpoint of the teacher's ODE from that noise, unit variance, the shape of `noise`.
        cond: The conditions of the endpoints, B rows.
    """

    noise: Tensor
    endpoint: Tensor
    cond: Condition


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B samples.

    Attributes:
        cond: Conditions, B rows.
        rng: Random numbers of these samples; the only source of randomness for a method.
        latents: Unit-variance latents (B, ...), or None if the method learns from prompts only.
        pairs: Reads B random teacher pairs, if `Distiller.pairs` requests any.
    """

    cond: Condition
    rng: BatchRandom
    latents: Tensor | None = None
    pairs: Callable[[], Pairs] | None = None

    def __len__(self) -> int:
        return len(self.rng)
