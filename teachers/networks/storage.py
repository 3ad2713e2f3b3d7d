"""Frozen weights that are stored in half precision and used in the precision of the input.

A bf16 network that runs in bf16 rounds its activations, its time embedding and its tangents; tangents suffer most. A
frozen base needs half precision for storage only. Here the weights of linear and convolution layers stay in half
precision, all small tensors are float32, and each layer computes in the precision of its input or of autocast. Backward
converts the weight again instead of saving a float32 copy, so a step holds one layer's float32 weight at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input
from torch.utils.weak import WeakTensorKeyDictionary

from teachers.support.private_api import kept_in_float32

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Linear(torch.autograd.Function):
    """F.linear with a frozen weight that is converted to the input's dtype in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


# By the number of the input's dimensions with batch and channels: the convolution, and its gradient by the input.
_FUNCTIONS: dict[int, Any] = {
    3: (F.conv1d, conv1d_input),
    4: (F.conv2d, conv2d_input),
    5: (F.conv3d, conv3d_input),
}


class _Convolution(torch.autograd.Function):
    """F.conv1d, conv2d or conv3d as `_Linear`; `options` is (stride, padding, dilation, groups)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options, ctx.shape = options, x.shape
        output: Tensor = _FUNCTIONS[weight.ndim][0](x, weight.to(x.dtype), bias, *options)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        by_input = _FUNCTIONS[weight.ndim][1]
        return by_input(ctx.shape, weight.to(gradient.dtype), gradient, *ctx.options), None, None, None


def autocasting(device: torch.device) -> bool:
    """Whether autocast is enabled for `device`; always False for the meta device, which has no autocast."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is disabled for `device`; on the meta device, the imitation of it in memory plans."""
    if device.type == "meta":
        return _without_imitation()
    return torch.autocast(device.type, enabled=False) if autocasting(device) else nullcontext()


_imitated: ContextVar[bool] = ContextVar("imitated", default=True)


@contextmanager
def _without_imitation() -> Iterator[None]:
    before = _imitated.set(False)
    try:
        yield
    finally:
        _imitated.reset(before)


def imitates_autocast() -> bool:
    """Whether memory plans imitate autocast on the meta device now; False inside `without_autocast`."""
    return _imitated.get()


@contextmanager
def in_float32(modules: Iterable[Any]) -> Iterator[None]:
    """A context in which half-precision parameters and buffers are float32, without loss.

    Args:
        modules: The modules; values of other types are ignored.
    """
    halves = [
        (tensor, tensor.dtype)
        for module in modules
        if isinstance(module, nn.Module)
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.dtype in (torch.float16, torch.bfloat16)
    ]
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def correct_patch_embedding(sample: Tensor, patch_size: int) -> Iterator[None]:
    """A context in which bf16 patch embeddings on a CPU are computed correctly.

    oneDNN 3.12 (torch 2.14) silently returns wrong results for bf16 convolutions on CPUs with AMX if one row of the
    kernel has at least 64 inputs (in_channels * kernel_width), a multiple of 32. The context disables oneDNN for such
    patches. Patches of 2 x 2, as in all published models, are not affected.

    Args:
        sample: Input of the network, (B, C, H, W).
        patch_size: Height and width of a patch, in latent pixels.
    """
    row = sample.shape[1] * patch_size
    bfloat16 = sample.dtype == torch.bfloat16 or autocasting(sample.device)
    if sample.device.type != "cpu" or not bfloat16 or row < 64 or row % 32:
        yield
        return
    enabled = torch.backends.mkldnn.enabled  # mkldnn.flags would also change TF32 and warn
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


# By bias: its state, and the bias in autocast's precision. Not in the layer, so no copy and no file includes it.
_converted = WeakTensorKeyDictionary()


def _autocast_bias(bias: Tensor | None) -> Tensor | None:
    """A frozen bias in autocast's precision, which would otherwise be converted again in every call."""
    # A compiler fuses the conversion, and changes of inference tensors are not counted.
    if bias is None or bias.requires_grad or torch.compiler.is_compiling() or bias.is_inference():
        return bias
    dtype = torch.get_autocast_dtype(bias.device.type)
    state = bias._version, bias.data_ptr(), bias.device, dtype
    kept: tuple[tuple[Any, ...], Tensor] | None = _converted.get(bias)
    if kept is None or kept[0] != state:
        kept = _converted[bias] = state, bias.detach().to(dtype)
    return kept[1]


class StoredLinear(nn.Linear):
    """A frozen linear layer: half-precision weight, float32 bias, computation in the input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.requires_grad:
            return super().forward(input)
        if autocasting(input.device):
            return F.linear(input, self.weight, _autocast_bias(self.bias))
        if torch.is_grad_enabled() and input.requires_grad:
            out: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return out
        return F.linear(input, self.weight.to(input.dtype), self.bias)


class StoredConvolution(nn.Module):
    """A frozen convolution: half-precision weight, float32 bias, computation in the input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        layer: Any = self
        # peft creates an adapter's layers from the base layer's class; "same" and circular padding are rare
        if layer.weight.requires_grad:
            output: Tensor = super().forward(input)  # type: ignore[misc]
            return output
        options: Any = layer.stride, layer.padding, layer.dilation, layer.groups
        convolve = _FUNCTIONS[layer.weight.ndim][0]
        if autocasting(input.device):
            output = convolve(input, layer.weight, _autocast_bias(layer.bias), *options)
        elif torch.is_grad_enabled() and input.requires_grad:
            output = _Convolution.apply(input, layer.weight, layer.bias, options)  # type: ignore[no-untyped-call]
        else:
            output = convolve(input, layer.weight.to(input.dtype), layer.bias, *options)
        return output


class StoredConv1d(StoredConvolution, nn.Conv1d):
    """A frozen nn.Conv1d."""


class StoredConv2d(StoredConvolution, nn.Conv2d):
    """A frozen nn.Conv2d."""


class StoredConv3d(StoredConvolution, nn.Conv3d):
    """A frozen nn.Conv3d."""


STORED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StoredLinear,
    nn.Conv1d: StoredConv1d,
    nn.Conv2d: StoredConv2d,
    nn.Conv3d: StoredConv3d,
}


def dtype_parameter(network: nn.Module) -> nn.Parameter | None:
    """The parameter from which diffusers takes a network's dtype: the first that does not stay in float32 by its name.

    None for a network without parameters.
    """
    kept = kept_in_float32(network)
    named = ((name, p) for name, p in network.named_parameters() if p.is_floating_point())
    return next((p for name, p in named if not any(part in name for part in kept)), None)


def store(network: nn.Module) -> None:
    """Make a frozen half-precision network compute in its input's precision, in place.

    Layers in float32 do not change. The layer with `dtype_parameter` becomes float32 too, because some networks cast
    their time embedding to the dtype that diffusers takes from it.

    Args:
        network: The frozen network.
    """
    stored = set()
    first = dtype_parameter(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if not _is_stored_kind(child) or child.weight is first:
                continue
            if child.weight.dtype in (torch.float16, torch.bfloat16):
                layer = _like(child, STORED[type(child)])
                layer.weight, layer.bias = child.weight, child.bias
                setattr(module, name, layer.requires_grad_(False))
                stored.add(id(child.weight))
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and id(tensor) not in stored:
            tensor.data = tensor.data.float()


@torch.no_grad()
def plain_layer(layer: Any, change: Tensor | None = None) -> nn.Module:
    """Copy a linear layer or convolution as a layer of PyTorch in float32.

    Args:
        layer: The layer.
        change: Is added to the weight, shape of the weight.

    Returns:
        The frozen copy.
    """
    copied = _like(layer, next(kind for kind in STORED if isinstance(layer, kind)))
    weight = layer.weight.float().clone() if change is None else layer.weight.float() + change
    copied.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        copied.bias = nn.Parameter(layer.bias.float().clone(), requires_grad=False)
    return copied


def _is_stored_kind(layer: nn.Module) -> bool:
    """Whether `store` replaces layers of this kind; other padding than zeros, and "same", stay as they are."""
    simple = not isinstance(layer, CONVOLUTIONS) or (
        layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )
    return type(layer) in STORED and simple


def _like(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """A layer of the class `kind` on the meta device, with the shape of `layer`."""
    if isinstance(layer, CONVOLUTIONS):
        shape: Any = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
        more: Any = {
            "dilation": layer.dilation,
            "groups": layer.groups,
            "bias": layer.bias is not None,
            "padding_mode": layer.padding_mode,
            "device": "meta",
        }
        made = kind(*shape, **more)
    else:
        assert isinstance(layer, nn.Linear)
        made = kind(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    return made.train(layer.training)
