"""Frozen weights kept in half precision and used in the precision of whatever meets them.

A bf16 network run in bf16 rounds its activations, its time embedding and, worst, its tangents. A frozen base needs half
precision for storage only: here the matrices of linear and convolution layers stay as they are stored, everything small
is float32, and each layer computes in its input's precision (or in autocast's). In backward the weight is widened again
instead of having been kept wide, so that a float32 step costs one layer's float32 weight at a time.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class _Linear(torch.autograd.Function):
    """F.linear whose frozen weight is widened, not kept wide: (x (..., I), weight (O, I), bias (O,) or None)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


class _Conv2d(torch.autograd.Function):
    """F.conv2d, the same way; `how` is (stride, padding, dilation, groups)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how, ctx.shape = how, x.shape
        return F.conv2d(x, weight.to(x.dtype), bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        return conv2d_input(ctx.shape, weight.to(gradient.dtype), gradient, *ctx.how), None, None, None


def autocasting(device: torch.device) -> bool:
    """Whether autocast is on for `device`; never on the meta device, which knows none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context with autocast off for `device`."""
    return torch.autocast(device.type, enabled=False) if autocasting(device) else nullcontext()


class StoredLinear(nn.Linear):
    """A frozen linear layer: half-precision weight, float32 bias, arithmetic in its input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.requires_grad:
            return super().forward(input)
        if autocasting(input.device):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled() and input.requires_grad:
            out: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return out
        return F.linear(input, self.weight.to(input.dtype), self.bias)


class StoredConv2d(nn.Conv2d):
    """A frozen convolution: half-precision weight, float32 bias, arithmetic in its input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.requires_grad:  # peft makes an adapter's own layers of its base layer's class
            return super().forward(input)
        how: Any = self.stride, self.padding, self.dilation, self.groups
        if autocasting(input.device):
            return F.conv2d(input, self.weight, self.bias, *how)
        if torch.is_grad_enabled() and input.requires_grad:
            out: Tensor = _Conv2d.apply(input, self.weight, self.bias, how)  # type: ignore[no-untyped-call]
            return out
        return F.conv2d(input, self.weight.to(input.dtype), self.bias, *how)


def store(network: nn.Module) -> None:
    """Make the frozen `network` compute as above, in place; what is in float32 is left as it is.

    The layer that owns the first parameter becomes float32 too: diffusers takes a network's dtype from there, and some
    networks cast their time embedding to it.
    """
    halves = set()
    first = next(network.parameters(), None)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) not in (nn.Linear, nn.Conv2d) or child.weight is first:
                continue
            if child.weight.dtype in (torch.float16, torch.bfloat16):
                kept = _like(child, StoredLinear, StoredConv2d)
                kept.weight, kept.bias = child.weight, child.bias
                setattr(module, name, kept.requires_grad_(False))
                halves.add(id(child.weight))
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and id(tensor) not in halves:
            tensor.data = tensor.data.float()


@torch.no_grad()
def plain_layer(layer: Any, change: Tensor | None = None) -> nn.Module:
    """An ordinary float32 copy of `layer`, a linear or a convolution, with `change` added to its weight."""
    usual = _like(layer, nn.Linear, nn.Conv2d)
    weight = layer.weight.float().clone() if change is None else layer.weight.float() + change
    usual.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        usual.bias = nn.Parameter(layer.bias.float().clone(), requires_grad=False)
    return usual


def _like(layer: nn.Module, linear: type[nn.Linear], convolution: type[nn.Conv2d]) -> Any:
    """An empty layer of one of the two classes, in the shape of `layer`."""
    made: nn.Module
    if isinstance(layer, nn.Conv2d):
        shape: Any = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
        more: Any = {
            "dilation": layer.dilation,
            "groups": layer.groups,
            "bias": layer.bias is not None,
            "device": "meta",
        }
        made = convolution(*shape, **more)
    else:
        assert isinstance(layer, nn.Linear)
        made = linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    return made.train(layer.training)
