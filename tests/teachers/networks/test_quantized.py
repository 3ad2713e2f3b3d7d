"""Quantized weights of a frozen base: their values, gradients, size, and which layers have them."""

import copy

import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from torch import nn
from torch.autograd import forward_ad

from teachers.networks.adapters import Adapted, LoraBase
from teachers.networks.quantized import BLOCK, QuantizedLinear, quantize
from teachers.networks.storage import plain_layer, store
from teachers.networks.time_layers import find_time_embeddings
from teachers.pocket.parts import make_unet

FORMS = ["int8", "nf4"]


def linear(rows: int = 96, columns: int = 128) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows).requires_grad_(False)


def test_int8_rounds_each_weight_to_a_multiple_of_its_rows_scale():
    layer = linear()
    weight = QuantizedLinear(layer, "int8").weight
    scale = layer.weight.abs().amax(1, keepdim=True) / 127
    assert torch.allclose(weight, (layer.weight / scale).round() * scale)
    assert (weight - layer.weight).abs().max() <= 0.5001 * scale.max()


def test_nf4_takes_the_nearest_level_of_its_block():
    layer = linear()
    blocks = layer.weight.reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    levels = get_4bit_type("nf4", "cpu")
    nearest = levels[(blocks[..., None] / largest[..., None] - levels).abs().argmin(-1)] * largest
    assert torch.allclose(QuantizedLinear(layer, "nf4").weight, nearest.reshape(layer.weight.shape), atol=1e-6)


def test_a_row_of_zeros_stays_zero():
    layer = linear()
    layer.weight.data[3] = 0
    for form in FORMS:
        assert not QuantizedLinear(layer, form).weight[3].any()


@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_are_those_of_the_dequantized_weight(form):
    layer = QuantizedLinear(linear(), form)
    plain = plain_layer(layer)
    assert type(plain) is nn.Linear and torch.equal(plain.weight, layer.weight)
    x = torch.randn(3, 128, requires_grad=True)
    assert torch.equal(layer(x), plain(x))
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (layer(x), plain(x))]
    assert torch.allclose(*gradients, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
        assert half.dtype == torch.bfloat16 and torch.equal(half, plain(x))
        assert torch.autograd.grad(half.float().sum(), x)[0].dtype == torch.float32
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x.detach(), torch.ones_like(x)))).tangent
    assert torch.allclose(tangent, torch.ones_like(x) @ plain.weight.T, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_backward_keeps_no_dequantized_weight(form):
    layer, kept = QuantizedLinear(linear(), form), []
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda _: None):
        layer(x)
    assert torch.Size((96, 128)) not in kept


@pytest.mark.parametrize(("form", "part"), [("int8", 0.26), ("nf4", 0.145)])
def test_size_of_a_float32_weight_is_a_fourth_or_a_seventh_on_the_meta_device_too(form, part):
    real = QuantizedLinear(linear(), form)
    planned = QuantizedLinear(nn.Linear(128, 96, device="meta"), form)
    assert [b.shape for b in planned.buffers()] == [b.shape for b in real.buffers()]
    assert [b.dtype for b in planned.buffers()] == [b.dtype for b in real.buffers()]
    assert sum(b.nbytes for b in real.buffers()) < part * linear().weight.nbytes
    assert planned(torch.empty(3, 128, device="meta")).shape == (3, 96)


def test_layers_of_the_time_embedding_and_small_layers_keep_their_weights():
    network = make_unet().requires_grad_(False)
    network.odd, network.small = nn.Linear(BLOCK + 2, 96), nn.Linear(BLOCK, 2)
    time_layers = [m for e in find_time_embeddings(network) for m in e.owner.modules() if isinstance(m, nn.Linear)]
    before = copy.deepcopy(network)
    quantize(network, "none")
    assert not any(isinstance(m, QuantizedLinear) for m in network.modules())
    quantize(network, "nf4")
    quantized = [name for name, m in network.named_modules() if isinstance(m, QuantizedLinear)]
    assert len(quantized) > 30 and len(time_layers) == 2
    assert all(type(layer) is nn.Linear for layer in (*time_layers, network.odd, network.small))
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert torch.equal(layer.weight, before.get_submodule(name).weight)
    quantize(network, "nf4")  # once more has no effect
    assert quantized == [name for name, m in network.named_modules() if isinstance(m, QuantizedLinear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_a_merged_copy_of_an_adapted_quantized_base_computes_the_same(dtype):
    network = make_unet().requires_grad_(False)
    nn.Module.to(network, dtype)  # diffusers' own method prints a warning
    quantize(network, "nf4")
    store(network)
    student = Adapted(LoraBase(network, 4, find_time_embeddings(network)), new_adapter=True)
    for pair in student.low_rank.values():
        nn.init.normal_(pair["B"].weight, std=0.1)
    merged = student.merged_copy()
    assert not any(isinstance(m, QuantizedLinear) for m in merged.modules())
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 64)
    one, two = (n(*inputs).sample for n in (student, merged))
    assert torch.allclose(one, two, atol=1e-5)
    assert (one - network(*inputs).sample).abs().max() > 1e-2
