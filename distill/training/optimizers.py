"""AdamW for the networks that train, in 32 or 8 bits, and its learning rate's course.

Eight bits (Dettmers et al. 2021, arXiv 2110.02861) through bitsandbytes: the two moments of every tensor of 4,096
numbers or more take 2 bytes a number instead of 8.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distill.config.recipe import OptimizerRecipe
from teachers.support.private_api import fused_adamw

SMALL = 4096  # numbers of a tensor below which bitsandbytes keeps its moments in 32 bits
BLOCK = 256  # numbers that share one scale of each moment


def adamw(parameters: list[nn.Parameter], rate: OptimizerRecipe, eight_bit: bool = False) -> torch.optim.Optimizer:
    """AdamW that leaves a step out where its `found_inf` is not zero. ValueError where bitsandbytes is missing."""
    settings: dict[str, Any] = {
        "lr": rate.lr, "betas": rate.betas, "eps": rate.eps, "weight_decay": rate.weight_decay
    }  # fmt: skip
    if not eight_bit:
        return Fused(parameters, **settings, fused=True)
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


class Fused(torch.optim.AdamW):
    """PyTorch's fused AdamW, bit for bit, without gathering the same lists of tensors anew at every step.

    What its kernel takes is remembered, and parameters of one step count share it meanwhile. Whatever is out of the
    ordinary (a first step, a parameter without a gradient, sharded tensors, a closure) goes PyTorch's own way. The
    hooks that PyTorch calls around a step are left out.
    """

    _known: list[tuple[list[Tensor], ...]] | None = None  # for each count: parameters, both moments, the count for each

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        usual = closure is None and len(self.param_groups) == 1
        if usual and all(parameter.grad is not None for parameter in group["params"]):
            self._known = self._known or self._gather(group["params"])
            if self._known is not None:
                return self._fused(group)
        self._apart()
        return super().step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # else PyTorch wraps it for its profiler: 0.2 ms a step on a CPU

    def _fused(self, group: dict[str, Any]) -> None:
        scale, skip = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        assert self._known is not None
        for parameters, firsts, seconds, counts in self._known:
            counts[0] += 1
            fused_adamw(
                parameters, [p.grad for p in parameters if p.grad is not None], firsts, seconds, counts,
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False, grad_scale=scale, found_inf=skip,
            )  # fmt: skip
            if skip is not None:
                counts[0] -= skip

    def _gather(self, parameters: list[Tensor]) -> list[tuple[list[Tensor], ...]] | None:
        states = [self.state.get(p, {}) for p in parameters]
        if not all(states) or any(type(state["exp_avg"]) is not Tensor for state in states):
            return None
        if len({(p.device, p.dtype) for p in parameters}) > 1:
            return None
        rows: dict[float, list[tuple[Tensor, dict[str, Tensor]]]] = {}
        counts = torch.stack([state["step"] for state in states]).tolist()  # the device is waited for once
        for count, parameter, state in zip(counts, parameters, states, strict=True):
            rows.setdefault(count, []).append((parameter, state))
            state["step"] = rows[count][0][1]["step"]
        return [
            ([p for p, _ in alike], *([s[name] for _, s in alike] for name in ("exp_avg", "exp_avg_sq", "step")))
            for alike in rows.values()
        ]

    def _apart(self) -> None:
        """A step count for each parameter, as PyTorch has it."""
        if self._known is not None:
            for state in self.state.values():
                state["step"] = state["step"].clone()
        self._known = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        self._apart()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._known = None


def moments(parameter: nn.Parameter, eight_bit: bool) -> int:
    """Bytes of AdamW's two moments of `parameter`."""
    count = parameter.numel()
    return 8 * count if not eight_bit or count < SMALL else 2 * (count + 4 * math.ceil(count / BLOCK))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: OptimizerRecipe, step: int, steps: int) -> None:
    """Set the learning rate of `step` out of `steps`: linear warm-up, then constant or a cosine to zero."""
    warm = min(1.0, (step + 1) / (rate.warmup + 1))
    factor = warm if rate.schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate.lr * factor
