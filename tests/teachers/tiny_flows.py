"""Builders of tiny random rectified-flow transformers of images whose size is an argument of the pipeline's call."""

import copy
import functools
from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
)
from transformers import (
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.teachers.tiny_hunyuan import qwen_sizes, qwen_tokenizer
from tests.teachers.tiny_pipelines import WIDTH, autoencoder, clip, t5

# The template of Qwen-Image has as many tokens as with the published tokenizer: its pipeline drops the first 34.
WORDS = [
    "<|im_start|>",
    "<|im_end|>",
    "system",
    "Describe",
    "_the",
    "_image",
    "_by",
    "_detailing",
    "_color",
    ",",
    "_shape",
    "_size",
    "_texture",
    "_quantity",
    "_text",
    "_spatial",
    "_relationships",
    "_of",
    "_objects",
    "_and",
    "_background",
    ":",
    "user",
    "assistant",
]
LIST_CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}{{ part['text'] }}{% endfor %}\n{% endfor %}"
)
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}


def words_tokenizer():
    """A tokenizer of bytes and of the words of Qwen-Image's template."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens([f" {word[1:]}" if word.startswith("_") else word for word in WORDS])
    return tokenizer


def qwen_vl(tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 4]}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": WIDTH}
    text = qwen_sizes(tokenizer, 2) | {"bos_token_id": 0, "eos_token_id": 0, "rope_parameters": rope}
    vision |= {"fullatt_block_indexes": [0]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def qwen_autoencoder() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, 0.2, -0.3, 0.4],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )


def qwen_image() -> QwenImagePipeline:
    tokenizer, vae = words_tokenizer(), qwen_autoencoder()
    network = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=0.02, **DYNAMIC)
    return QwenImagePipeline(scheduler, vae, qwen_vl(tokenizer), tokenizer, network)


def qwen3_vl(tokenizer, layers: int = 2) -> Qwen3VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 4]}
    text = qwen_sizes(tokenizer, layers) | {"bos_token_id": 0, "eos_token_id": 0, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": WIDTH}
    vision |= {"deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(text_config=text | {"head_dim": 16}, vision_config=vision)


def qwen3_vl_processor(tokenizer, chat: str) -> Qwen3VLProcessor:
    tokenizer.add_tokens([f"<|{name}|>" for name in ("image_pad", "video_pad", "vision_start", "vision_end")])
    return Qwen3VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=chat)


def qwen_image_21() -> QwenImage21Pipeline:
    tokenizer = words_tokenizer()
    chat = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
    processor = qwen3_vl_processor(tokenizer, chat)
    encoder = Qwen3VLForConditionalGeneration(qwen3_vl(tokenizer))
    vae = AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, 0.2, -0.3, 0.4],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )
    network = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=0.02, **DYNAMIC)
    return QwenImage21Pipeline(scheduler, vae, encoder, processor, network)


def mistral3(layers: int) -> tuple[Mistral3Config, Qwen2Tokenizer]:
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    text = qwen_sizes(tokenizer, layers) | {"model_type": "mistral", "head_dim": 16}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "head_dim": 8}
    return Mistral3Config(text_config=text, vision_config=vision), tokenizer


def mistral() -> tuple[Mistral3ForConditionalGeneration, PixtralProcessor]:
    """A tiny Mistral 3 with as many layers as Flux.2 reads, and its processor."""
    config, tokenizer = mistral3(layers=30)
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=LIST_CHAT)
    return Mistral3ForConditionalGeneration(config), processor


def qwen3():
    """A tiny Qwen3 with as many layers as Flux.2 klein reads, and its tokenizer."""
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(**qwen_sizes(tokenizer, 27), head_dim=16, bos_token_id=0, eos_token_id=0)
    return Qwen3ForCausalLM(config), tokenizer


def patch_autoencoder() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    return vae


def flux2(kind, encoder, **options):
    network = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=kind is Flux2Pipeline,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return kind(scheduler, patch_autoencoder(), *encoder, network, **options)


def longcat_image() -> LongCatImagePipeline:
    tokenizer = words_tokenizer()
    network = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 6, 6],
    )
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=LIST_CHAT)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    vae = autoencoder(latent_channels=16, scaling_factor=0.36, shift_factor=0.11)
    return LongCatImagePipeline(scheduler, vae, qwen_vl(tokenizer), tokenizer, processor, network)


def hidream(tokenizer) -> HiDreamImagePipeline:
    """With large patches: the pipeline scales all images to 128 x 128 latent pixels."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 128  # tokens of a prompt in the pipeline
    llama_tokenizer = qwen_tokenizer()
    llama = LlamaForCausalLM(LlamaConfig(**qwen_sizes(llama_tokenizer, 3), bos_token_id=0, eos_token_id=0))
    encoder, t5_tokenizer = t5()
    network = HiDreamImageTransformer2DModel(
        patch_size=16,
        in_channels=4,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        axes_dims_rope=(4, 6, 6),
        llama_layers=[0, 1, 2],
    )
    vae = autoencoder(block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), scaling_factor=0.36,
        up_block_types=("UpDecoderBlock2D",), shift_factor=0.11)  # fmt: skip
    encoders = [clip(tokenizer, CLIPTextModelWithProjection), tokenizer] * 2 + [encoder, t5_tokenizer]
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return HiDreamImagePipeline(scheduler, vae, *encoders, llama, llama_tokenizer, network)


KANDINSKY_SIDES = {"height": 32, "width": 64}
constructor = Kandinsky5T2IPipeline.__init__


@functools.wraps(constructor)
def with_small_sizes(self, *args, **kwargs):
    """The constructor, which sets the sizes that the pipeline takes, all of about a megapixel."""
    constructor(self, *args, **kwargs)
    self.resolutions.append((KANDINSKY_SIDES["width"], KANDINSKY_SIDES["height"]))


Kandinsky5T2IPipeline.__init__ = with_small_sizes


def kandinsky5(tokenizer) -> Kandinsky5T2IPipeline:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 77
    words = words_tokenizer()
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), chat_template=LIST_CHAT)
    network = Kandinsky5Transformer3DModel(
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=32,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    for name, parameter in network.named_parameters():
        if "modulation" in name:  # zero in a new network
            torch.nn.init.normal_(parameter, std=0.1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = autoencoder(block_out_channels=(8,) * 4, scaling_factor=0.36, shift_factor=0.11, **blocks)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Kandinsky5T2IPipeline(network, vae, qwen_vl(words), processor, clip(tokenizer), tokenizer, scheduler)


SIDES = {"height": 16, "width": 32}
# Published models with these architectures: (family, function of a tokenizer that builds the pipeline, size).
BUILDERS: dict[str, tuple[str, Callable, dict[str, float]]] = {
    "Qwen-Image": ("qwen_image", lambda _: qwen_image(), SIDES),
    "Qwen-Image 2.1": ("qwen_image_21", lambda _: qwen_image_21(), {"height": 64, "width": 128}),
    "Flux.2 dev": ("flux2", lambda _: flux2(Flux2Pipeline, mistral()), SIDES),
    "Flux.2 klein": ("flux2", lambda _: flux2(Flux2KleinPipeline, qwen3()), SIDES),
    "HiDream-I1": ("hidream", hidream, {"height": 64, "width": 256}),
    "Kandinsky 5": ("kandinsky5", kandinsky5, KANDINSKY_SIDES),
    "LongCat-Image": ("longcat_image", lambda _: longcat_image(), SIDES),
}
