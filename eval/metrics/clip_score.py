"""CLIP score: how well a picture fits its prompt, as the cosine of CLIP's two embeddings.

    score = 100 max(cos(image, text), 0)

Hessel et al., "CLIPScore" (arXiv 2104.08718), with the scale of 100 that text-to-image papers report instead of theirs
of 2.5, and with the prompt as it is, without "A photo depicts" before it. Scores of different models cannot be
compared, so the model's name goes into the figure, such as CLIP-ViT-B/16@5000.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoProcessor

from eval.config.names import CLIP
from eval.features.transformers_models import embedding, load_pretrained

SIZES = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g", (1664, 48): "bigG"}  # width, layers


class ClipScore:
    """Images (B, 3, H, W) in [0, 1] and their B prompts -> scores (B,) in [0, 100], on the CPU.

    `source` is a folder that save_pretrained wrote (model and processor) or a hub id. ValueError, one sentence, where
    it cannot be loaded or is no CLIP model.
    """

    def __init__(self, source: str = CLIP, device: torch.device | str = "cpu") -> None:
        model, processor = load_pretrained(source, AutoProcessor, "--clip FOLDER")
        if model.config.model_type != "clip":
            raise ValueError(
                f"{source} is a {model.config.model_type} model; a CLIP score needs a CLIP model, such as {CLIP}"
            )
        self.name = f"CLIP-{_size(model.config.vision_config) or Path(source).name}"
        self.longest = int(model.config.text_config.max_position_embeddings)
        self.model, self.processor, self.device = model.to(device), processor, device

    def figure(self, count: int) -> str:
        """What a mean of `count` scores is called, such as "CLIP-ViT-B/16@5000"."""
        return f"{self.name}@{count}"

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Prompts are cut at the model's length (77 tokens)."""
        eight_bit = list(images.clamp(0, 1).mul(255).round().byte().cpu())
        pixels = self.processor.image_processor(images=eight_bit, return_tensors="pt").to(self.device)
        tokens = self.processor.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.device)
        seen = embedding(self.model.get_image_features(pixel_values=pixels["pixel_values"]))
        asked = embedding(
            self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        )
        return 100 * torch.cosine_similarity(seen.float(), asked.float()).clamp(min=0).cpu()


def _size(vision) -> str | None:
    """ "ViT-B/16" from the vision tower's sizes; None for one that has no such name."""
    letter = SIZES.get((vision.hidden_size, vision.num_hidden_layers))
    if letter is None:
        return None
    return f"ViT-{letter}/{vision.patch_size}" + (f"-{vision.image_size}" if vision.image_size != 224 else "")
