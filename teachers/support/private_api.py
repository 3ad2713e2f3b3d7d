"""All private APIs of dependencies that this project uses, one function each.

A new version of a library may change them without notice; `tests/teachers/support/test_private_api.py` then fails and
names the function. `torch._foreach_*` are the exception: they are called directly, because they run in every training
step, where a wrapper costs time, and because torch's own optimizers depend on them.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor, nn


def safe_softmax(scores: "Tensor", dim: int) -> "Tensor":
    """`torch._safe_softmax`: softmax that is 0, not NaN, for rows in which every score is -inf.

    Fused attention kernels treat fully masked rows like this. The public `torch.softmax` returns NaN for them.

    Args:
        scores: Scores, any shape.
        dim: The dimension that sums to 1.

    Returns:
        Probabilities, shape of `scores`.
    """
    import torch

    return torch._safe_softmax(scores, dim)


def softmax_derivative(direction: "Tensor", probabilities: "Tensor", dim: int) -> "Tensor":
    """`aten._softmax_backward_data`: p (d - sum(p d)), in one kernel.

    It is the derivative of softmax along `direction`. The Jacobian is symmetric, so forward and backward derivatives
    are equal. There is no public function; the formula in separate operations needs more memory and time.

    Args:
        direction: Derivative of the scores, (..., N).
        probabilities: softmax(scores, dim), shape of `direction`.
        dim: The dimension of the softmax.

    Returns:
        The derivative of the probabilities, shape of `direction`.
    """
    import torch

    derivative: Tensor = torch.ops.aten._softmax_backward_data(direction, probabilities, dim, direction.dtype)
    return derivative


def fused_adamw(
    parameters: "list[Tensor]",
    gradients: "list[Tensor]",
    first_moments: "list[Tensor]",
    second_moments: "list[Tensor]",
    steps: "list[Tensor]",
    **options: Any,
) -> None:
    """`torch._fused_adamw_`: one AdamW step of many tensors in one kernel, in place.

    The public `torch.optim.AdamW(fused=True)` calls it, but collects the lists of tensors again in every step.

    Args:
        parameters: The parameters.
        gradients: Their gradients.
        first_moments: The moving averages of the gradients.
        second_moments: The moving averages of the squared gradients.
        steps: The number of this step for each parameter, as float32 scalars.
        options: lr, beta1, beta2, weight_decay, eps, amsgrad, maximize, grad_scale and found_inf.
    """
    import torch

    torch._fused_adamw_(parameters, gradients, first_moments, second_moments, [], steps, **options)


def compiler_is_loaded() -> bool:
    """Whether `torch._dynamo` is imported: without it nothing is compiled, and importing it takes seconds."""
    return "torch._dynamo" in sys.modules


def raise_recompile_limit(limit: int) -> None:
    """`torch._dynamo.config.recompile_limit`: allow at least `limit` compiled variants of one function.

    torch.compile stops compiling a function silently beyond the limit. `torch.compiler.config` does not contain it.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, limit)


def reset_accelerate() -> None:
    """`AcceleratorState._reset_state` and `GradientState._reset_state`: forget the settings of earlier `Accelerator`s.

    accelerate keeps the first precision of a process. There is no public function that resets it without ending the
    process group.
    """
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()


def set_active_adapters(layer: Any, names: list[str]) -> None:
    """peft's `_active_adapter` of a layer: which adapters it applies.

    The layer keeps the list itself, so changing the list switches the adapter of every layer that holds it. The public
    `set_adapter` also changes which parameters require gradients, and must be called for each layer.

    Args:
        layer: A layer of peft.
        names: Names of the active adapters; empty for none.
    """
    layer._active_adapter = names


def supports_gradient_checkpointing(network: "nn.Module") -> bool:
    """diffusers' `_supports_gradient_checkpointing`: whether `enable_gradient_checkpointing` works.

    The alternative is to call that function and catch its ValueError, which it also raises for invalid arguments.
    """
    return bool(getattr(network, "_supports_gradient_checkpointing", False))


def checkpointing_function(network: "nn.Module") -> Callable[..., Any] | None:
    """diffusers' `_gradient_checkpointing_func`, which calls a block with activation checkpointing; None if it is off.

    `enable_gradient_checkpointing` sets it, and there is no public way to read it.
    """
    enabled = bool(getattr(network, "gradient_checkpointing", False))
    return getattr(network, "_gradient_checkpointing_func", None) if enabled else None


def disable_gradient_checkpointing(network: "nn.Module") -> None:
    """Make `supports_gradient_checkpointing` False for one network and its copies, for a class that declares it."""
    network._supports_gradient_checkpointing = False  # type: ignore[assignment]


def required_packages(kind: type[Any]) -> Sequence[str]:
    """`_backends` of diffusers and transformers: the packages besides PyTorch that a class needs and that are missing.

    Both replace such a class by one of the metaclass `DummyObject` that raises an error of several lines when it is
    used. Empty for other classes.
    """
    needed = getattr(kind, "_backends", ()) if type(kind).__name__ == "DummyObject" else ()
    return tuple(name for name in needed if name != "torch")


def inherit_declarations(network: "nn.Module", source: "nn.Module") -> None:
    """Make a diffusers network declare what `source` does to the other functions of this file, in place.

    For a `ModelMixin` that consists of networks of one class, which has no declarations of its own.
    """
    names = ("_keep_in_fp32_modules", "_no_split_modules", "_repeated_blocks", "_supports_gradient_checkpointing")
    for name in names:
        setattr(network, name, getattr(source, name, None))


def kept_in_float32(network: "nn.Module") -> Sequence[str]:
    """diffusers' `_keep_in_fp32_modules`: parts of the names of parameters that stay in float32 in half precision.

    The public `ModelMixin.dtype` leaves them out, but says nothing about which parameter it takes the dtype from.
    """
    return tuple(getattr(network, "_keep_in_fp32_modules", None) or ())


def repeated_blocks(network: "nn.Module") -> Sequence[str]:
    """diffusers' `_repeated_blocks`: class names of the blocks that a network repeats, empty if it has none.

    The public `compile_repeated_blocks` compiles them, but raises an error for networks without any.
    """
    return tuple(getattr(network, "_repeated_blocks", None) or ())


def unsplittable_blocks(network: "nn.Module") -> Sequence[str]:
    """`_no_split_modules` of diffusers and transformers: class names of the blocks that stay on one device.

    They are the units of FSDP2 sharding. There is no public attribute.
    """
    return tuple(getattr(network, "_no_split_modules", None) or ())


@cache
def undispatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """A Python function of `torch.nn.functional` without its own dispatch to `__torch_function__`.

    A `TorchFunctionMode` that is active inside then receives the functions that it calls, not the function itself.
    The functions begin with `if has_torch_function(...): return handle_torch_function(...)`, and there is no public
    way to skip that check.
    """
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**function.__globals__, **dict.fromkeys(checks, lambda *tensors: False)}
    copied = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def lora_components(pipeline: Any) -> Sequence[str]:
    """The names of the components that a diffusers pipeline loads LoRA files into."""
    found: Sequence[str] = getattr(pipeline, "_lora_loadable_modules", ())
    return found
