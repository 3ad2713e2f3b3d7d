"""AdamW for the networks that train, in 32 or 8 bits, and its learning rate's course.

Eight bits (Dettmers et al. 2021, arXiv 2110.02861) through bitsandbytes: the two moments of every tensor of 4,096
numbers or more take 2 bytes a number instead of 8.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distill.recipe import OptimizerRecipe

SMALL = 4096  # numbers of a tensor below which bitsandbytes keeps its moments in 32 bits
BLOCK = 256  # numbers that share one scale of each moment


def adamw(parameters: list[nn.Parameter], rate: OptimizerRecipe, eight_bit: bool = False) -> torch.optim.Optimizer:
    """AdamW that leaves a step out where its `found_inf` is not zero. ValueError where bitsandbytes is missing."""
    settings: dict[str, Any] = {
        "lr": rate.lr, "betas": rate.betas, "eps": rate.eps, "weight_decay": rate.weight_decay
    }  # fmt: skip
    if not eight_bit:
        return torch.optim.AdamW(parameters, **settings, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError('memory.eight_bit needs bitsandbytes: pip install -e ".[eight_bit]"') from error

    class Guarded(AdamW8bit):
        """The fused AdamW asks `found_inf` on the device; here the host has to wait for it."""

        found_inf: Tensor | None = None

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            return None if self.found_inf is not None and bool(self.found_inf) else super().step(closure)

    made: torch.optim.Optimizer = Guarded(parameters, **settings, min_8bit_size=SMALL)
    return made


def moments(parameter: nn.Parameter, eight_bit: bool) -> int:
    """Bytes of AdamW's two moments of `parameter`."""
    count = parameter.numel()
    return 8 * count if not eight_bit or count < SMALL else 2 * (count + 4 * math.ceil(count / BLOCK))


def schedule(rate: OptimizerRecipe, step: int, steps: int) -> float:
    """The learning rate's factor at `step`: linear warm-up, then constant or a cosine to zero."""
    warm = min(1.0, (step + 1) / (rate.warmup + 1))
    return warm if rate.schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * step / steps))
