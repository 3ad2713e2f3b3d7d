"""Quantized weights of a frozen base that LoRA adapters share (`memory.quantize`).

- int8: one scale for each row of the weight, 8 bits a weight (the weight's part of LLM.int8, Dettmers et al. 2022,
  arXiv 2208.07339, section 2).
- nf4: NormalFloat with one scale for each block of 64 weights, 4.5 bits a weight (QLoRA, Dettmers et al. 2023,
  arXiv 2305.14314, section 3), from bitsandbytes.

Only linear layers are quantized, which have nearly all weights of a transformer, if their rows are whole blocks. The
layers of the time embedding keep their precision, because students learn changes of them. As in
`teachers.networks.storage`, a layer computes in the precision of its input or of autocast, and backward dequantizes the
weight again instead of saving it.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.storage import STORED, autocasting, dtype_parameter
from teachers.networks.time_layers import find_time_embeddings

Quantization = Literal["none", "int8", "nf4"]
BLOCK = 64  # weights that share a scale in nf4
MIN_WEIGHTS = 4096  # smaller layers keep their weights, which are a negligible part of a network


class _Product(torch.autograd.Function):
    """`QuantizedLinear.product`, which dequantizes the weight in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "QuantizedLinear") -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] @ ctx.layer.dequantized(gradients[0].dtype), None


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantized weight and a float32 bias.

    Args:
        layer: The layer with the weight; its bias is shared.
        form: "int8" or "nf4".

    Attributes:
        packed: The quantized weight: int8 of the weight's shape, or two nf4 values in each uint8, (N / 2, 1).
        scales: float32, (rows, 1) in int8, or one for each block of `BLOCK` weights in nf4.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, form: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.form = layer.in_features, layer.out_features, form
        packed, scales = (_int8 if form == "int8" else _nf4)(layer.weight.detach())
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", layer.bias)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantized weight, float32, (out_features, in_features)."""
        return self.dequantized(torch.float32)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight in a precision, (out_features, in_features)."""
        shape = torch.Size((self.out_features, self.in_features))
        if self.packed.is_meta:
            return torch.empty(shape, dtype=dtype, device="meta")
        if self.form == "int8":
            return (self.packed * self.scales).to(dtype)
        from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

        code = get_4bit_type("nf4", self.packed.device, blocksize=BLOCK)
        state = QuantState(self.scales, shape, code, BLOCK, "nf4", torch.float32)
        weight: Tensor = dequantize_4bit(self.packed, state)
        return weight.to(dtype)

    def product(self, x: Tensor) -> Tensor:
        """The layer's output (..., out_features) for x (..., in_features), without a gradient."""
        dtype = torch.get_autocast_dtype(x.device.type) if autocasting(x.device) else x.dtype
        return F.linear(x, self.dequantized(dtype), self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad:
            out: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
            return out
        return self.product(input)


def quantize(network: nn.Module, form: Quantization) -> None:
    """Quantize the linear layers of a frozen network in place, other than those of its time embedding.

    Args:
        network: The network.
        form: "int8" or "nf4"; "none" changes nothing.

    Raises:
        ValueError: If bitsandbytes is needed but not installed.
    """
    if form == "none":
        return
    if form == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ValueError('memory.quantize=nf4 needs bitsandbytes: pip install -e ".[eight_bit]"') from error
    time_layers = {id(part) for found in find_time_embeddings(network) for part in found.owner.modules()}
    first = dtype_parameter(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            # exactly these classes: the projection of `nn.MultiheadAttention` has its weight read without a call
            if not isinstance(child, nn.Linear) or type(child) not in (nn.Linear, STORED[nn.Linear]):
                continue
            wanted = id(child) not in time_layers and child.weight is not first
            if wanted and child.weight.numel() >= MIN_WEIGHTS and child.in_features % BLOCK == 0:
                setattr(module, name, QuantizedLinear(child, form))


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight in int8, and the scale of each row."""
    rows = weight.float()
    scales = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (rows / scales).round().to(torch.int8), scales


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight in nf4, and the scale of each block."""
    if weight.is_meta:
        blocks = -(-weight.numel() // BLOCK)
        packed = torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8, device="meta")
        return packed, torch.empty(blocks, dtype=torch.float32, device="meta")
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax
