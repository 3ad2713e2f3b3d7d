"""CLIP score: how well an image matches its prompt, as the cosine similarity of CLIP's two embeddings.

    score = 100 max(cos(image, text), 0)

Source: Hessel et al., "CLIPScore" (arXiv 2104.08718), equation 1, with the factor 100 that text-to-image papers report
instead of 2.5, and with the prompt itself, without the prefix "A photo depicts". Scores of different CLIP models cannot
be compared, so the model's name is part of the figure's name, such as CLIP-ViT-B/16@5000.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from eval.config.names import CLIP
from eval.features.transformers_models import embedding, load_pretrained
from eval.metrics.context import MetricContext
from eval.metrics.prompt_score import PromptScore

SIZES = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g", (1664, 48): "bigG"}  # width, layers


class ClipModel:
    """A CLIP model that scores images and prompts.

    Attributes:
        name: The name of figures made with it, such as "CLIP-ViT-B/16".
        longest: The number of tokens at which prompts are cut.
    """

    def __init__(
        self,
        source: str = CLIP,
        device: torch.device | str = "cpu",
        allow_pickle: bool = False,
        option: str = "--clip FOLDER",
    ) -> None:
        """
        Args:
            source: A folder written by save_pretrained (model and processor) or a Hub id.
            device: The model's device.
            allow_pickle: Whether pickled weights are read where there are no safetensors files.
            option: The option that names the model, for error messages.

        Raises:
            ValueError: If the model cannot be loaded or is not a CLIP model.
        """
        model, processor = load_pretrained(source, AutoProcessor, option, allow_pickle)
        if model.config.model_type != "clip":
            raise ValueError(
                f"{option.partition('=')[0].removesuffix(' FOLDER')} must name a CLIP model such as {CLIP}; "
                f"{source} is a {model.config.model_type} model"
            )
        self.name = f"CLIP-{architecture_name(model.config.vision_config) or Path(source).name}"
        self.longest = int(model.config.text_config.max_position_embeddings)
        self.model, self.processor, self.device = model.to(device), processor, device

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The CLIP score 100 max(cos, 0) of each image (B,), from 0 to 100; see `cosine` for the arguments."""
        return 100 * self.cosine(images, prompts).clamp(min=0)

    @torch.no_grad()
    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosine of the embeddings of images and prompts.

        Args:
            images: Images (B, 3, H, W) in [0, 1].
            prompts: Their B prompts, cut at `longest` tokens.

        Returns:
            Cosines (B,), on the CPU.
        """
        eight_bit = list(images.clamp(0, 1).mul(255).round().byte().cpu())
        pixels = self.processor.image_processor(images=eight_bit, return_tensors="pt").to(self.device)
        tokens = self.processor.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.device)
        image = embedding(self.model.get_image_features(pixel_values=pixels["pixel_values"]))
        text = embedding(
            self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        )
        return torch.cosine_similarity(image.float(), text.float()).cpu()


def architecture_name(vision: Any) -> str | None:
    """The usual name of a vision tower's sizes, such as "ViT-B/16"; None if the sizes have no such name.

    Args:
        vision: The vision configuration (`transformers.CLIPVisionConfig`).
    """
    letter = SIZES.get((vision.hidden_size, vision.num_hidden_layers))
    if letter is None:
        return None
    return f"ViT-{letter}/{vision.patch_size}" + (f"-{vision.image_size}" if vision.image_size != 224 else "")


class ClipScore(PromptScore):
    """Mean CLIP score over all samples."""

    key = "clip_score"
    heading = "CLIP score"
    help = (
        "Higher is better. 100 max(cos, 0) of CLIP's embeddings of image and prompt: the mean over all samples and its "
        "95% interval. Bold: the highest mean and all that are tied with it in a paired test on the same samples. "
        "Other CLIP models give other scores."
    )
    needs = frozenset({"images", "prompts", "clip"})
    position = 70
    named_by = "clip"
    lowest = 0.0
    interval_key, best_key = "clip_interval", "clip_best"

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.model = ClipModel(self.source, context.device, context.allow_pickle)
        self.heading = f"{self.model.name}@{context.samples}"

    def prompt_score(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """The CLIP score of each image."""
        return self.model(samples, prompts)
