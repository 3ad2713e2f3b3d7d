"""AdamW for the trained networks, with moments of 32 or 8 bits, and learning-rate schedules.

8-bit moments (Dettmers et al. 2021, arXiv 2110.02861) come from bitsandbytes: the two moments of a tensor of at least
4,096 elements take 2 bytes for each element instead of 8.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distill.config.sections import OptimizerRecipe
from teachers.support.private_api import fused_adamw

MIN_8BIT_SIZE = 4096  # elements of a tensor below which bitsandbytes keeps its moments in 32 bits
BLOCK_SIZE = 256  # elements that share one scale for each 8-bit moment
CACHED_LIMIT = 10**8  # parameters; above this the kernel's time dominates and PyTorch's own step is as fast


def adamw(
    parameters: list[nn.Parameter],
    rate: OptimizerRecipe,
    eight_bit: bool = False,
    cached_limit: int = CACHED_LIMIT,
) -> torch.optim.Optimizer:
    """AdamW that skips a step if its attribute `found_inf` is not zero.

    Args:
        parameters: The parameters of one phase.
        rate: Learning rate, betas, epsilon and weight decay.
        eight_bit: Store the moments in 8 bits.
        cached_limit: Number of parameters from which on PyTorch's own AdamW is used instead of `CachedAdamW`.

    Returns:
        The optimizer. With 32 bits its step is bitwise the same above and below `cached_limit`.

    Raises:
        ValueError: If bitsandbytes is needed but not installed.
    """
    settings: dict[str, Any] = {
        "lr": rate.lr, "betas": rate.betas, "eps": rate.eps, "weight_decay": rate.weight_decay
    }  # fmt: skip
    if not eight_bit:
        cached = sum(parameter.numel() for parameter in parameters) < cached_limit
        return (CachedAdamW if cached else torch.optim.AdamW)(parameters, **settings, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError('memory.eight_bit needs bitsandbytes: pip install -e ".[eight_bit]"') from error

    class SkippingAdamW8bit(AdamW8bit):
        """Skips steps as the fused AdamW does. The host has to read `found_inf` here, which waits for the device."""

        found_inf: Tensor | None = None

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            return None if self.found_inf is not None and bool(self.found_inf) else super().step(closure)

    optimizer: torch.optim.Optimizer = SkippingAdamW8bit(parameters, **settings, min_8bit_size=MIN_8BIT_SIZE)
    return optimizer


class CachedAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, bitwise the same, without collecting its lists of tensors again in every step.

    The kernel's arguments are cached, and parameters with the same step count share one count tensor while they are.
    All other cases use PyTorch's own step: a first step, a parameter without gradient, sharded tensors, several
    parameter groups, a closure. The optimizer hooks that PyTorch calls around a step are not called. This saves time
    for small networks only.
    """

    _cache: list[tuple[list[Tensor], ...]] | None = None  # for each step count: parameters, two moments, step counts

    @property
    def is_cached(self) -> bool:
        """Whether the next step uses cached arguments."""
        return self._cache is not None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; see `torch.optim.AdamW.step`."""
        group = self.param_groups[0]
        supported = closure is None and len(self.param_groups) == 1
        if supported and all(parameter.grad is not None for parameter in group["params"]):
            self._cache = self._cache or self._collect(group["params"])
            if self._cache is not None:
                return self._cached_step(group)
        self._clear_cache()
        return super().step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # else PyTorch wraps it for its profiler: 0.2 ms a step on a CPU

    def _cached_step(self, group: dict[str, Any]) -> None:
        grad_scale, found_inf = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        assert self._cache is not None
        for parameters, exp_avgs, exp_avg_sqs, counts in self._cache:
            counts[0] += 1
            fused_adamw(
                parameters, [p.grad for p in parameters if p.grad is not None], exp_avgs, exp_avg_sqs, counts,
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False, grad_scale=grad_scale, found_inf=found_inf,
            )  # fmt: skip
            if found_inf is not None:
                counts[0] -= found_inf

    def _collect(self, parameters: list[Tensor]) -> list[tuple[list[Tensor], ...]] | None:
        states = [self.state.get(p, {}) for p in parameters]
        if not all(states) or any(type(state["exp_avg"]) is not Tensor for state in states):
            return None
        if len({(p.device, p.dtype) for p in parameters}) > 1:
            return None
        groups: dict[float, list[tuple[Tensor, dict[str, Tensor]]]] = {}
        counts = torch.stack([state["step"] for state in states]).tolist()  # the only wait for the device
        for count, parameter, state in zip(counts, parameters, states, strict=True):
            groups.setdefault(count, []).append((parameter, state))
            state["step"] = groups[count][0][1]["step"]
        return [
            ([p for p, _ in group], *([s[name] for _, s in group] for name in ("exp_avg", "exp_avg_sq", "step")))
            for group in groups.values()
        ]

    def _clear_cache(self) -> None:
        """Give each parameter its own step count again, as PyTorch's step expects."""
        if self._cache is not None:
            for state in self.state.values():
                state["step"] = state["step"].clone()
        self._cache = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset gradients; see `torch.optim.AdamW.zero_grad`."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state, with a step count for each parameter."""
        self._clear_cache()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of `torch.optim.AdamW`."""
        super().load_state_dict(state_dict)
        self._cache = None


def moment_bytes(parameter: nn.Parameter, eight_bit: bool) -> int:
    """Bytes of AdamW's two moments of `parameter`."""
    count = parameter.numel()
    if not eight_bit or count < MIN_8BIT_SIZE:
        return 8 * count
    return 2 * (count + 4 * math.ceil(count / BLOCK_SIZE))


def learning_rate(rate: OptimizerRecipe, step: int, steps: int) -> float:
    """The learning rate of one step: linear warm-up, then constant or a cosine that falls to zero.

    Args:
        rate: The learning rate, `warmup` steps and the schedule.
        step: The step, from 0.
        steps: Number of steps of the run.
    """
    warmup = min(1.0, (step + 1) / (rate.warmup + 1))
    return rate.lr * (warmup if rate.schedule == "constant" else warmup * 0.5 * (1 + math.cos(math.pi * step / steps)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: OptimizerRecipe, step: int, steps: int) -> None:
    """Set the `learning_rate` of one step in `optimizer`, which is changed in place."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(rate, step, steps)


def changed_rate(optimizer: torch.optim.Optimizer, rate: OptimizerRecipe, step: int, steps: int) -> str | None:
    """What changed if a resumed optimizer's last learning rate is not that of this schedule at the same step.

    Args:
        optimizer: The optimizer with the state of its checkpoint.
        rate: The learning rate, `warmup` steps and the schedule.
        step: The number of steps before the resumption.
        steps: Number of steps of the run.

    Returns:
        "from A to B", or None if the difference is less than 5% of the largest learning rate.
    """
    before = float(optimizer.param_groups[0]["lr"])
    now = learning_rate(rate, max(step - 1, 0), steps)
    return f"from {before:.3g} to {now:.3g}" if abs(now - before) > 0.05 * rate.lr else None
