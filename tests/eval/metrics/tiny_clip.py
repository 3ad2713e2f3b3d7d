"""A small CLIP model with random weights, and its scores one image at a time."""

from pathlib import Path

import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from teachers.pocket.parts import make_tokenizer


def tiny_clip(folder: Path, projection: int = 4) -> Path:
    """Write a model and its processor into `folder`; its embeddings have `projection` numbers."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    make_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=24, initializer_range=1.0, **ids, **small)
    vision = CLIPVisionConfig(image_size=28, patch_size=14, initializer_range=1.0, **small)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=projection)
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPProcessor(CLIPImageProcessor(**sizes), tokenizer).save_pretrained(folder)
    return folder


@torch.no_grad()
def one_by_one(folder: Path, images: torch.Tensor, prompts: list[str]) -> list[float]:
    """The cosine of each image and its prompt, one at a time, through the model's own forward pass."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    cosines = []
    for image, prompt in zip(images, prompts, strict=True):
        eight_bit = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        out = model(**processor(images=eight_bit, text=prompt, return_tensors="pt"))
        one, two = out.image_embeds[0].double(), out.text_embeds[0].double()
        cosines.append((one @ two / (one.norm() * two.norm())).item())
    return cosines
