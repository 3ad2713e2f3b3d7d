"""The exact tangent through PyTorch's transformer layers, whose fused paths have no forward derivative."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.methods.jvp import finite_difference, jvp

CAUSAL = torch.ones(6, 6, dtype=torch.bool).triu(1)
MASKS = {
    "none": {},
    "bool": {"src_mask": CAUSAL},
    "float": {"src_mask": torch.zeros(6, 6, dtype=torch.float64).masked_fill(CAUSAL, -torch.inf)},
    "padding": {"src_key_padding_mask": torch.arange(6).expand(2, 6) > 4},
    "both": {"src_mask": CAUSAL, "src_key_padding_mask": torch.arange(6).expand(2, 6) > 4},
}
MASKS["causal"] = MASKS["float"] | {"is_causal": True}


def check(function: Callable[[Tensor], Tensor], *shape: int) -> None:
    """Compare value and derivative with those of a central difference, in float64."""
    x, direction = torch.randn(2, *shape, dtype=torch.float64)
    before = torch.backends.mha.get_fastpath_enabled()
    value, exact = jvp(function, (x,), (direction,))
    assert torch.backends.mha.get_fastpath_enabled() == before
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected, approximate = finite_difference(function, (x,), (direction,), 1e-6, exact_value=True)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=1e-12)
    assert (exact - approximate).norm() < 1e-7 * approximate.norm()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("norm_first", "activation"), [(True, "gelu"), (False, "relu")])
@pytest.mark.first_is_quick
def test_encoder_layers(norm_first: bool, activation: str, training: bool, mask: str) -> None:
    options = {"dropout": 0.0, "norm_first": norm_first, "activation": activation, "batch_first": True}
    layer = nn.TransformerEncoderLayer(8, 2, 16, **options).double().train(training)
    check(lambda x: layer(x, **MASKS[mask]), 2, 6, 8)
    names = {"src_mask": "mask"}
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).double().train(training)
    check(lambda x: encoder(x, **{names.get(key, key): value for key, value in MASKS[mask].items()}), 2, 6, 8)


@pytest.mark.parametrize("training", [True, False])
def test_sequence_first_layers_and_decoders(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).double().train(training)
    check(layer, 6, 2, 8)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().train(training)
    memory = torch.randn(2, 3, 8, dtype=torch.float64)
    check(lambda x: decoder(x, memory, tgt_mask=CAUSAL), 2, 6, 8)
    check(lambda x: decoder(x, x.flip(1)), 2, 6, 8)
    check(lambda x: decoder(memory, x), 2, 6, 8)
    whole = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True).double().train(training)
    check(lambda x: whole(x, x[:, :3]), 2, 6, 8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(need_weights: bool, training: bool) -> None:
    padding = torch.arange(6).expand(2, 6) > 4
    for bias, more in itertools.product([True, False], repeat=2):
        attention = nn.MultiheadAttention(8, 2, bias=bias, add_bias_kv=more, add_zero_attn=more, batch_first=True)
        attention.double().train(training)
        check(lambda x, a=attention: a(x, x, x, need_weights=need_weights)[0], 2, 6, 8)
        check(lambda x, a=attention: a(x, x * 2, x, padding, need_weights)[0], 2, 6, 8)
        check(lambda x, a=attention: a(x, x[:, :3] * 2, x[:, :3], need_weights=need_weights)[0], 2, 6, 8)
    check(lambda x: attention(x, x, x, need_weights=True, average_attn_weights=False)[1], 2, 6, 8)
    other = nn.MultiheadAttention(8, 2, kdim=4, vdim=5).double().train(training)
    key, value = torch.randn(3, 2, 4).double(), torch.randn(3, 2, 5).double()
    check(lambda x: other(x, key, value, need_weights=need_weights)[0], 6, 2, 8)
    check(lambda x: other(x, key[:, 0], value[:, 0], need_weights=need_weights)[0], 6, 8)


def test_fused_kernels_without_a_rule() -> None:
    """Arguments for which a rule returns None, and functions that are called below `torch.nn.functional`."""
    check(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT), 2, 2, 6, 8)
    check(lambda x: F.rms_norm(x, (8,), x[0, 0]), 2, 6, 8)
    check(lambda x: torch.rms_norm(x, (8,)), 2, 6, 8)
    check(lambda x: F.layer_norm(x, (8,), x[0, 0]), 2, 6, 8)
    check(lambda x: torch.layer_norm(x, (8,)) + torch.native_layer_norm(x, (8,), None, None, 1e-5)[0], 2, 6, 8)
    check(lambda x: torch.group_norm(x, 2), 2, 6, 8)
    check(lambda x: torch.baddbmm(x @ x.mT, x, x.mT) + torch.einsum("bld,bmd->blm", x, x), 2, 6, 8)


def test_recurrent_layers() -> None:
    for layer in (nn.GRU(8, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)):
        layer.double().eval()
        check(lambda x, layer=layer: layer(x)[0], 2, 6, 8)


def test_dropout_is_refused() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="attention dropout must be 0"):
        jvp(layer, (x,), (x,))
    jvp(layer.eval(), (x,), (x,))


def test_float32_in_no_grad_and_under_autocast() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x, direction = torch.randn(2, 2, 6, 8)
    with torch.no_grad():
        _, first = jvp(layer, (x,), (direction,))
    with torch.autocast("cpu", torch.bfloat16):
        _, second = jvp(layer, (x,), (direction,))
    assert torch.equal(first, second)
