"""Builders of tiny random pipelines of the families that are `FlowTransformer`s."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    ZImageOmniPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    GemmaConfig,
    GemmaModel,
    GlmConfig,
    GlmModel,
    Mistral3Model,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.teachers.tiny_flows import (
    DYNAMIC,
    mistral3,
    patch_autoencoder,
    qwen3_vl,
    qwen3_vl_processor,
    qwen_autoencoder,
    words_tokenizer,
)
from tests.teachers.tiny_hunyuan import qwen_sizes, qwen_tokenizer
from tests.teachers.tiny_pipelines import WIDTH, autoencoder, eight_fold, gemma, t5

SIDES = {"height": 16, "width": 32}


def z_image(shift: float = 3.0, kind=ZImagePipeline, more: Mapping[str, Any] = {}, **changes) -> ZImagePipeline:
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(**qwen_sizes(tokenizer, 3), head_dim=16, bos_token_id=0, eos_token_id=0)
    sizes = {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    sizes |= {"cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [640, 16, 16]}
    network = ZImageTransformer2DModel(**(sizes | changes))
    for parameter in (network.x_pad_token, network.cap_pad_token):
        parameter.data.normal_()
    vae = autoencoder(scaling_factor=0.36, shift_factor=0.11)
    return kind(FlowMatchEulerDiscreteScheduler(shift=shift), vae, Qwen3Model(config), tokenizer, network, **more)


def z_image_omni(**changes) -> ZImageOmniPipeline:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    images = Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=4, patch_size=4))
    more = {"siglip": images, "siglip_processor": Siglip2ImageProcessor(patch_size=4, max_num_patches=4)}
    return z_image(kind=ZImageOmniPipeline, more=more, **({"siglip_feat_dim": 16} | changes))


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


def ovis_image(**changes) -> OvisImagePipeline:
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(**qwen_sizes(tokenizer, 1), head_dim=16, bos_token_id=0, eos_token_id=0)
    sizes = {"in_channels": 16, "out_channels": 16, "num_layers": 2, "num_single_layers": 1}
    sizes |= {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": WIDTH}
    network = OvisImageTransformer2DModel(**(sizes | {"axes_dims_rope": (4, 6, 6)} | changes))
    vae = autoencoder(scaling_factor=0.36, shift_factor=0.11)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return OvisImagePipeline(scheduler, vae, Qwen3Model(config), tokenizer, network)


def cogview4(scheduler: FlowMatchEulerDiscreteScheduler | None = None, **changes) -> CogView4Pipeline:
    _, tokenizer = t5()
    tokenizer.padding_side = "left"
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    encoder = GlmModel(GlmConfig(vocab_size=len(tokenizer), **sizes))
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"text_embed_dim": WIDTH, "time_embed_dim": 32, "condition_dim": 8, "sample_size": 8}
    network = CogView4Transformer2DModel(**(sizes | {"rope_axes_dim": (16, 16)} | changes))
    shift = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 8, "time_shift_type": "linear"}
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **shift)
    return CogView4Pipeline(tokenizer, encoder, autoencoder(scaling_factor=0.36), network, scheduler)


def krea2(**options) -> Krea2Pipeline:
    tokenizer, options = words_tokenizer(), {"text_encoder_select_layers": (0, 2), "is_distilled": False} | options
    sizes = {"in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 32, "timestep_embed_dim": 32, "text_hidden_dim": WIDTH}
    sizes |= {"num_text_layers": 2, "text_num_attention_heads": 2, "text_num_key_value_heads": 1}
    sizes |= {"text_intermediate_size": 32, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
    network = Krea2Transformer2DModel(**(sizes | {"axes_dims_rope": (4, 6, 6)}))
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    return Krea2Pipeline(
        scheduler, qwen_autoencoder(), Qwen3VLModel(qwen3_vl(tokenizer)), tokenizer, network, **options
    )


def nucleus_moe_image(**changes) -> NucleusMoEImagePipeline:
    """With two blocks of experts and slow features of time, which the network rounds in half precision.

    Its text is the output of the first of eight layers.
    """
    tokenizer, chat = words_tokenizer(), "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    processor = qwen3_vl_processor(tokenizer, chat)
    sizes = {"in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "mlp_ratio": 6.0}
    sizes |= {"dense_moe_strategy": "leave_first_block_dense", "num_experts": 4, "moe_intermediate_dim": 16}
    network = NucleusMoEImageTransformer2DModel(**(sizes | {"capacity_factors": 2.0} | changes))
    features = network.time_text_embed.timestep_embedder.linear_1.weight.data.unflatten(1, (2, -1))
    features[:, :, :4] = 0  # the fastest cosines and sines
    for module in network.modules():
        for name in ("gate_up_proj", "down_proj"):
            if hasattr(module, name):  # not initialised in a new network
                getattr(module, name).data.normal_(std=0.2)
    encoder = Qwen3VLForConditionalGeneration(qwen3_vl(tokenizer, layers=8))
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    return NucleusMoEImagePipeline(network, scheduler, qwen_autoencoder(), encoder, processor)


def ernie_image(**changes) -> ErnieImagePipeline:
    config, tokenizer = mistral3(layers=2)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 32, "in_channels": 16}
    sizes |= {"out_channels": 16, "text_in_dim": WIDTH, "rope_axes_dim": (4, 6, 6)}
    network = ErnieImageTransformer2DModel(**(sizes | changes))
    for layer in (network.adaLN_modulation[-1], network.final_linear):
        layer.reset_parameters()  # zero in a new network
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ErnieImagePipeline(network, patch_autoencoder(), Mistral3Model(config), tokenizer, scheduler)


# Published models with these architectures: (family, function of a tokenizer that builds the pipeline, size).
BUILDERS: dict[str, tuple[str, Callable, dict[str, float]]] = {
    "Z-Image": ("z_image", lambda _: z_image(), SIDES),
    "Z-Image Omni": ("z_image_omni", lambda _: z_image_omni(), SIDES),
    "Lumina-Image 2.0": ("lumina2", lambda _: lumina2(), {"height": 64, "width": 128}),
    "Lumina-Next": ("lumina", lambda _: lumina(), {"height": 64, "width": 128}),
    "AuraFlow": ("auraflow", lambda _: auraflow(), SIDES),
    "Chroma": ("chroma", lambda _: chroma(), SIDES),
    "Ovis-Image": ("ovis_image", lambda _: ovis_image(), SIDES),
    "CogView4": ("cogview4", lambda _: cogview4(), SIDES),
    "Krea 2": ("krea2", lambda _: krea2(), SIDES),
    "NucleusMoE-Image": ("nucleus_moe_image", lambda _: nucleus_moe_image(), SIDES),
    "ERNIE-Image": ("ernie_image", lambda _: ernie_image(), SIDES),
}
