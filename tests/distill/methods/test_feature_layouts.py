"""Features of networks whose blocks return several streams, channels before positions, or frames in the batch."""

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, UNet1DModel, UNetMotionModel, WanTransformer3DModel

from distill.methods.discriminator import Discriminator, features, has_channels_first, middle_block, tokens
from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import Flow
from teachers.networks.checkpointing import checkpoint_activations

WIDTH = 16


def unet_1d():
    return UNet1DModel(
        sample_size=128,
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 32),
        extra_in_channels=64,
        use_timestep_embedding=False,
        time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D",
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
    )


def unet_motion():
    return UNetMotionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
    )


def text(rows):
    return {"encoder_hidden_states": torch.randn(rows, 5, WIDTH, generator=torch.Generator().manual_seed(1))}


def wan():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 32}
    return WanTransformer3DModel(in_channels=4, out_channels=4, text_dim=WIDTH, rope_max_seq_len=32, **sizes)


def cogvideox():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "time_embed_dim": 8}
    grid = {"sample_width": 4, "sample_height": 4, "sample_frames": 9, "max_text_seq_length": 5}
    return CogVideoXTransformer3DModel(in_channels=4, out_channels=4, text_embed_dim=WIDTH, **sizes, **grid)


def motion_call(network, x, timestep, cond):
    frames = {key: value.repeat_interleave(x.shape[2], 0) for key, value in cond.items()}
    return network(x, timestep, **frames, return_dict=False)[0]


def cogvideox_call(network, x, timestep, cond):
    return network(x.transpose(1, 2), timestep=timestep, **cond, return_dict=False)[0].transpose(1, 2)


def unet_1d_call(network, x, timestep, cond):
    return network(x, timestep, return_dict=False)[0]


# Network, how it is called, shape of a sample, the stream of the sample, features (tokens, channels).
NETWORKS = {
    "UNet1D": (unet_1d, unet_1d_call, (2, 128), -1, (64, 32)),
    "UNetMotion": (unet_motion, motion_call, (4, 3, 8, 8), -1, (3 * 16, 16)),
    "Wan": (wan, None, (4, 3, 4, 8), -1, (3 * 2 * 4, 24)),
    "CogVideoX": (cogvideox, cogvideox_call, (4, 3, 4, 4), 0, (3 * 2 * 2, 16)),
}


def denoiser_of(name):
    torch.manual_seed(0)
    build, call, shape, stream, expected = NETWORKS[name]
    call = {} if call is None else {"call": call}
    return Denoiser(build().eval(), Flow(), "flow_prediction", **call), shape, stream, expected


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_features_are_tokens_of_the_sample(name):
    """One row for each sample; tokens are positions and channels are channels; samples do not mix."""
    denoiser, shape, stream, expected = denoiser_of(name)
    x, t = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2)), torch.tensor([0.5, 1.0])
    with torch.no_grad():
        found = features(denoiser, x, t, text(2), stream=stream)
        changed = features(denoiser, torch.cat([x[:1], x[1:] + 1]), t, text(2), stream=stream)
        assert found.shape == (2, *expected)
        assert torch.allclose(found[0], changed[0], atol=1e-5)
        moved = (found[1] - changed[1]).abs().amax(1)
        assert (moved > 1e-4).all()  # every token of the sample that changed
        head = Discriminator(denoiser, (x[:1], t[:1], text(1)), stream=stream)
        assert head(denoiser, x, t, text(2)).shape == (2,)


def features_of_a_complete_pass(denoiser, x, t, cond, stream):
    outputs = []
    hook = middle_block(denoiser.network).register_forward_hook(lambda module, args, output: outputs.append(output))
    denoiser.velocity(x, t, cond)
    hook.remove()
    return tokens(outputs[0], len(x), stream, has_channels_first(denoiser.network))


def gradients(value, network):
    network.zero_grad(set_to_none=True)
    value.square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.slow
def test_features_and_their_gradients_need_the_layers_before_them_only(name, checkpointed):
    denoiser, shape, stream, _ = denoiser_of(name)
    x, t = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2)), torch.tensor([0.5, 1.0])
    complete = features_of_a_complete_pass(denoiser, x, t, text(2), stream)
    expected = gradients(complete, denoiser.network)
    if checkpointed:
        assert checkpoint_activations(denoiser.network, required=False) == (name != "UNet1D")
    calls = []
    for module in denoiser.network.modules():
        module.register_forward_pre_hook(lambda module, args: calls.append(module))
    found = features(denoiser, x, t, text(2), stream=stream)
    evaluated = set(calls)
    assert torch.equal(found, complete) and calls[-1] in middle_block(denoiser.network).modules()
    actual = gradients(found, denoiser.network)
    assert actual.keys() == expected.keys()
    assert all(torch.allclose(actual[key], expected[key], rtol=1e-4, atol=1e-6) for key in expected)
    denoiser.velocity(x, t, text(2))
    assert set(calls) > evaluated  # a later forward pass is complete again


def test_rows_of_frames_are_joined_in_order():
    value = torch.arange(2 * 3 * 4 * 5).reshape(6, 4, 5).float()  # two samples of three frames, 4 tokens each
    assert torch.equal(tokens(value, 2), value.reshape(2, 12, 5))
    maps = value.mT.reshape(6, 5, 2, 2)
    assert torch.equal(tokens(maps, 2), value.reshape(2, 12, 5))
    assert torch.equal(tokens(value, 6, channels_first=True), value.mT)
    assert torch.equal(tokens((value, -value), 6, stream=0), value) and torch.equal(tokens((value, -value)), -value)
    with pytest.raises(ValueError, match="must have a multiple of 4 rows"):
        tokens(value, 4)
