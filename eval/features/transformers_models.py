"""Features of transformers' vision models: DINOv2, which agrees with people better than Inception does, and CLIP.

Stein et al., "Exposing flaws of generative model evaluation metrics" (arXiv 2306.04675), use DINOv2 ViT-L/14;
Kynkäänniemi et al. (arXiv 2203.06026) CLIP. Resizing and normalisation are those of the model's own image processor.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from eval.config.names import VISION_MODELS


def transformer(kind: str, source: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Images (B, 3, H, W) in [0, 1] -> features (B, D): DINOv2's normalised class token, CLIP's image embedding.

    `source` is a folder or a hub id, None the family's usual one. Raises ValueError where it cannot be loaded.
    """
    model, processor = load(source or VISION_MODELS[kind].source, AutoImageProcessor, f"{kind}=FOLDER")
    model = model.to(device)

    def features(images: Tensor) -> Tensor:
        eight_bit = list(images.clamp(0, 1).mul(255).round().byte().cpu())
        pixels = processor(images=eight_bit, return_tensors="pt")["pixel_values"].to(device)
        if kind == "clip":
            return embedding(model.get_image_features(pixel_values=pixels))
        return model(pixel_values=pixels).pooler_output

    return features


def load(source: str, processor: Any, option: str) -> tuple[Any, Any]:
    """A frozen transformers model in float32 and its `processor` class's instance, both from `source`.

    Raises ValueError, which shows `option` as the way to name a folder, where that cannot be.
    """
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return (
            AutoModel.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False),
            processor.from_pretrained(source),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"transformers could not load {source} ({(str(error).splitlines() or [''])[0]}); "
            f"name a folder that save_pretrained wrote, model and processor both, as in {option}"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()


def embedding(output: Any) -> Tensor:
    """The projected embedding (B, D), which transformers 5 wraps into an output's `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output
