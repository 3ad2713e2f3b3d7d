"""Builders of tiny random pipelines with the architecture of HunyuanVideo 1.5, and tokenizers of single bytes."""

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
)

from tests.teachers.tiny_pipelines import WIDTH

CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A byte-level tokenizer of Qwen without merges, which pads on the right."""
    vocab = {letter: i for i, letter in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    return Qwen2Tokenizer(vocab, [], padding_side="right", chat_template=CHAT)


def qwen_sizes(tokenizer: Qwen2Tokenizer, layers: int) -> dict[str, int]:
    """The sizes of a tiny Qwen model."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return heads | {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": layers,
    }


def hunyuan_video_15(guidance: float = 6.0, **changes) -> HunyuanVideo15Pipeline:
    tokenizer, glyphs = qwen_tokenizer(), ByT5Tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 4]}
    encoder = Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(**qwen_sizes(tokenizer, 3), bos_token_id=0, eos_token_id=0, rope_parameters=rope)
    )
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2}
    byt5 = T5EncoderModel(T5Config(vocab_size=len(glyphs), **sizes))
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, scaling_factor=1.03682
    )
    network = HunyuanVideo15Transformer3DModel(
        **{
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 1,  # there are 1,985 tokens of text
            "attention_head_dim": 10,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": WIDTH,
            "text_embed_2_dim": WIDTH,
            "image_embed_dim": WIDTH,
            "rope_axes_dim": (2, 4, 4),
            "target_size": 640,
            "task_type": "t2v",
        }
        | changes
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    guider = ClassifierFreeGuidance(guidance)
    return HunyuanVideo15Pipeline(encoder, tokenizer, network, vae, scheduler, byt5, glyphs, guider)
