"""Builders of tiny random pipelines of the families that are `FlowTransformer`s."""

from collections.abc import Callable

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import GemmaConfig, GemmaModel, Qwen3Config, Qwen3Model, UMT5Config, UMT5EncoderModel

from tests.teachers.tiny_hunyuan import qwen_sizes, qwen_tokenizer
from tests.teachers.tiny_pipelines import WIDTH, autoencoder, eight_fold, gemma, t5

SIDES = {"height": 16, "width": 32}


def z_image(shift: float = 3.0, **changes) -> ZImagePipeline:
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(**qwen_sizes(tokenizer, 3), head_dim=16, bos_token_id=0, eos_token_id=0)
    sizes = {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    sizes |= {"cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [640, 16, 16]}
    network = ZImageTransformer2DModel(**(sizes | changes))
    for parameter in (network.x_pad_token, network.cap_pad_token):
        parameter.data.normal_()
    vae = autoencoder(scaling_factor=0.36, shift_factor=0.11)
    return ZImagePipeline(FlowMatchEulerDiscreteScheduler(shift=shift), vae, Qwen3Model(config), tokenizer, network)


def lumina2(**changes) -> Lumina2Pipeline:
    encoder, tokenizer = gemma(layers=2)
    sizes = {"in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (4, 6, 6), "axes_lens": (300, 16, 16)}
    network = Lumina2Transformer2DModel(**(sizes | {"sample_size": 8, "cap_feat_dim": WIDTH} | changes))
    vae = eight_fold(scaling_factor=0.36, shift_factor=0.11)
    return Lumina2Pipeline(network, FlowMatchEulerDiscreteScheduler(shift=6.0), vae, encoder, tokenizer)


def lumina(padding_side: str = "left", **changes) -> LuminaPipeline:
    _, tokenizer = gemma(add_bos_token=True, padding_side=padding_side)
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    encoder = GemmaModel(GemmaConfig(vocab_size=len(tokenizer), **sizes, **heads))
    sizes = {"sample_size": 4, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1}
    network = LuminaNextDiT2DModel(**(sizes | {"multiple_of": 8, "cross_attention_dim": WIDTH} | changes))
    for name, parameter in network.named_parameters():
        if name.endswith(("gate", "pad_token")):  # zero in a new network, and without values
            parameter.data.normal_()
    return LuminaPipeline(
        network, FlowMatchEulerDiscreteScheduler(), eight_fold(scaling_factor=0.13), encoder, tokenizer
    )


def auraflow(**changes) -> AuraFlowPipeline:
    _, tokenizer = t5()
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 4}
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **sizes))
    sizes = {"sample_size": 8, "num_mmdit_layers": 2, "num_single_dit_layers": 1, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 32}
    network = AuraFlowTransformer2DModel(**(sizes | {"pos_embed_max_size": 64} | changes))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    return AuraFlowPipeline(tokenizer, encoder, autoencoder(scaling_factor=0.13), network, scheduler)


def chroma(**changes) -> ChromaPipeline:
    encoder, tokenizer = t5()
    sizes = {"in_channels": 16, "num_layers": 2, "num_single_layers": 1, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6)}
    sizes |= {"approximator_num_channels": 64, "approximator_hidden_dim": 32, "approximator_layers": 1}
    network = ChromaTransformer2DModel(**(sizes | changes))
    vae = autoencoder(scaling_factor=0.36, shift_factor=0.11)
    return ChromaPipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), vae, encoder, tokenizer, network)


# Published models with these architectures: (family, function of a tokenizer that builds the pipeline, size).
BUILDERS: dict[str, tuple[str, Callable, dict[str, float]]] = {
    "Z-Image": ("z_image", lambda _: z_image(), SIDES),
    "Lumina-Image 2.0": ("lumina2", lambda _: lumina2(), {"height": 64, "width": 128}),
    "Lumina-Next": ("lumina", lambda _: lumina(), {"height": 64, "width": 128}),
    "AuraFlow": ("auraflow", lambda _: auraflow(), SIDES),
    "Chroma": ("chroma", lambda _: chroma(), SIDES),
}
