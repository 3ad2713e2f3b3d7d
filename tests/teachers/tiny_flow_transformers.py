"""Builders of tiny random pipelines of the families that are `FlowTransformer`s."""

from collections.abc import Callable

from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tests.teachers.tiny_hunyuan import qwen_sizes, qwen_tokenizer
from tests.teachers.tiny_pipelines import WIDTH, autoencoder

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


# Published models with these architectures: (family, function of a tokenizer that builds the pipeline, size).
BUILDERS: dict[str, tuple[str, Callable, dict[str, float]]] = {
    "Z-Image": ("z_image", lambda _: z_image(), SIDES),
}
