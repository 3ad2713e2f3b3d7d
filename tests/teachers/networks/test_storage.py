"""Half-precision storage of frozen weights, and computation with them on a CPU."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distill.config.registry import TEACHERS, find
from teachers.networks.storage import correct_patch_embedding, plain_layer, store

CPU = torch.device("cpu")


@pytest.mark.slow
def test_autoencoder_of_a_bfloat16_teacher_stays_in_float32(tiny):
    family, folder = tiny("Stable Diffusion 1.5")
    teacher = find(TEACHERS, family).load(str(folder), CPU, torch.bfloat16)
    stored = DiffusionPipeline.from_pretrained(folder).vae.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in teacher.stock.vae.state_dict().items())
    assert teacher.denoiser.network.dtype == torch.bfloat16
    assert teacher.text_pipeline().text_encoder.dtype == torch.bfloat16


@pytest.mark.slow
def test_base_in_half_precision_computes_in_float32(load):
    """Outputs and gradients equal those of the same weights in float32, and outputs under autocast."""
    network = UNet2DConditionModel.from_config(load("Stable Diffusion 1.5").stock.unet.config).requires_grad_(False)
    network.to(torch.bfloat16)
    reference = copy.deepcopy(network).float()
    store(network)
    inputs = torch.randn(2, 4, 8, 8, requires_grad=True), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 32)
    one, two = (n(*inputs).sample for n in (network, reference))
    assert one.dtype == torch.float32 and torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(*(torch.autograd.grad(out.square().sum(), inputs[0])[0] for out in (one, two)), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(network(*inputs).sample, reference(*inputs).sample, atol=2e-2)
    stored = sum(p.nbytes for p in network.parameters())
    assert stored < 0.52 * sum(p.nbytes for p in reference.parameters())


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_stored_convolutions_of_every_rank_have_the_values_and_gradients_of_float32(kind):
    rank = int(kind.__name__[4])
    options = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    network = nn.Sequential(nn.Linear(9, 9), kind(4, 6, 3, **options), kind(6, 2, 1, bias=False))
    network.requires_grad_(False).to(torch.bfloat16)
    reference = copy.deepcopy(network).float()
    store(network)
    assert network[1].weight.dtype == torch.bfloat16 and network[1].bias.dtype == torch.float32
    x = torch.randn(2, 4, *[9] * rank, requires_grad=True)
    one, two = network(x), reference(x)
    assert one.dtype == torch.float32 and torch.allclose(one, two, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (one, two)), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(network(x), one)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
    copied = plain_layer(network[1])
    assert type(copied) is kind and torch.equal(copied(x), reference[1](x))


def test_biases_are_converted_once_under_autocast():
    """A conversion in every call would be a sixth of the kernels of Stable Diffusion's UNet."""
    network = (
        nn.Sequential(nn.Linear(5, 5), nn.Conv2d(4, 6, 3), nn.Flatten(2), nn.Linear(9, 7))
        .requires_grad_(False)
        .bfloat16()
    )
    store(network)
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        first = network(x)
        with ConvertedTensors() as converted:
            assert torch.equal(network(x), first)
        assert x.shape in converted.shapes and not {(6,), (7,)} & {tuple(shape) for shape in converted.shapes}
        network[3].bias.add_(1)
        assert torch.allclose(network(x), first + 1, atol=2e-2)


def test_converted_biases_follow_their_parameters():
    """Also where parameters or their data are replaced; copies and state dicts do not have the converted biases."""
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).requires_grad_(False).bfloat16()
    store(network)
    layer, x = network[1], torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        start = network(x)
        keys, size = set(network.state_dict()), len(pickle.dumps(network))
        copied = copy.deepcopy(network)
        copied[1].bias.fill_(8.0)
        assert torch.equal(network(x), start)
        network.load_state_dict({key: value.clone() for key, value in copied.state_dict().items()}, assign=True)
        assert torch.equal(network(x), copied(x)) and not torch.equal(network(x), start)
        layer.bias.data = torch.full((2,), 16.0)
        assert torch.allclose(network(x), copied(x) + 8, atol=0.13)  # the spacing of bfloat16 at 16 is 0.125
        assert set(network.state_dict()) == keys and len(pickle.dumps(network)) == size
    with torch.autocast("cpu", torch.float16):
        assert network(x).dtype == torch.float16
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer.bias = nn.Parameter(torch.zeros(2), requires_grad=False)
        assert torch.isfinite(network(x)).all()


class ConvertedTensors(TorchDispatchMode):
    """Records the shapes of tensors that are converted to another dtype."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.shapes.append(args[0].shape)
        return function(*args, **kwargs or {})


def test_layers_with_other_padding_are_not_stored():
    layers = [nn.Conv1d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")]
    network = nn.Sequential(nn.Linear(2, 2), *layers).requires_grad_(False).to(torch.bfloat16)
    store(network)
    assert [type(layer) for layer in network[1:]] == [nn.Conv1d, nn.Conv2d]
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_no_float32_weight_is_saved_for_backward():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 64, 3, padding=1), nn.Linear(8, 32))
    store(network.requires_grad_(False).to(torch.bfloat16))
    saved = []
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        network[1:](x)
    assert [x.dtype for x in saved] == [torch.bfloat16] * 2
    assert next(network.parameters()).dtype == torch.float32  # diffusers reads a network's dtype from it


@pytest.mark.parametrize(("channels", "patch"), [(4, 2), (4, 8), (4, 16), (8, 8), (16, 4), (16, 16)])
def test_bfloat16_patch_embeddings_on_a_cpu_are_correct(channels, patch):
    """oneDNN 3.12 silently returns wrong results for some of them on CPUs with AMX."""
    torch.manual_seed(0)
    sample = torch.randn(2, channels, 64, 64).bfloat16()
    weight = torch.randn(24, channels, patch, patch).div(channels**0.5 * patch).bfloat16()
    expected = F.conv2d(sample.float(), weight.float(), stride=patch)
    with correct_patch_embedding(sample, patch):
        found = F.conv2d(sample, weight, stride=patch)
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16), correct_patch_embedding(sample.float(), patch):
        found = F.conv2d(sample.float(), weight.float(), stride=patch)
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_onednn_is_enabled_again_after_an_error():
    enabled = torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), correct_patch_embedding(torch.zeros(1, 4, 32, 32).bfloat16(), 16):
        assert not torch.backends.mkldnn.enabled
        raise KeyError
    assert torch.backends.mkldnn.enabled == enabled
