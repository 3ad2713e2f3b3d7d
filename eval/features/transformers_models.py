"""Features of transformers' vision models: DINOv2 and CLIP.

DINOv2 ViT-L/14 agrees better with human judgement than Inception does (Stein et al., "Exposing flaws of generative
model evaluation metrics", arXiv 2306.04675). CLIP: Kynkäänniemi et al., arXiv 2203.06026. Images are resized and
normalised by the model's own image processor.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME, cached_file

from eval.config.names import VISION_MODELS
from teachers.loading.trust import check_model_files, check_weight_index


def vision_features(
    kind: str, source: str | None, device: torch.device, allow_pickle: bool = False
) -> Callable[[Tensor], Tensor]:
    """Load a vision model as a feature function.

    Args:
        kind: A key of `eval.config.names.VISION_MODELS`.
        source: A folder or a Hub id; None means the default model of `kind`.
        device: The model's device.
        allow_pickle: As in `load_pretrained`.

    Returns:
        A function from images (B, 3, H, W) in [0, 1] to features (B, D): the normalised class token of DINOv2, or the
        image embedding of CLIP.

    Raises:
        ValueError: If the model cannot be loaded.
    """
    chosen = source or VISION_MODELS[kind].source
    model, processor = load_pretrained(chosen, AutoImageProcessor, f"{kind}=FOLDER", allow_pickle)
    model = model.to(device)

    def features(images: Tensor) -> Tensor:
        eight_bit = list(images.clamp(0, 1).mul(255).round().byte().cpu())
        pixels = processor(images=eight_bit, return_tensors="pt")["pixel_values"].to(device)
        if kind == "clip":
            return embedding(model.get_image_features(pixel_values=pixels))
        return model(pixel_values=pixels).pooler_output

    return features


def load_pretrained(
    source: str, processor: Any, option: str, allow_pickle: bool = False, kind: Any = AutoModel
) -> tuple[Any, Any]:
    """Load a frozen transformers model in float32 and its processor; no code of a repository is run.

    Args:
        source: A folder or a Hub id.
        processor: The class of the processor, such as AutoImageProcessor.
        option: The option that selects a folder, for the error message.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.
        kind: The class of the model, such as AutoModel.

    Raises:
        ValueError: If the model or the processor cannot be loaded.
    """
    if Path(source).is_dir():
        check_model_files(Path(source))
    safe = None if allow_pickle else True
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        if not Path(source).is_dir():
            check_cached_index(source, allow_pickle)
        model = kind.from_pretrained(source, dtype=torch.float32, use_safetensors=safe, trust_remote_code=False)
        return model.eval().requires_grad_(False), processor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"transformers could not load {source} ({(str(error).splitlines() or [''])[0]}); "
            f"use a folder with a model and its processor, both saved by save_pretrained, as in {option}"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()


def check_cached_index(hub_id: str, allow_pickle: bool) -> None:
    """Download the indexes of a Hub id's sharded weights and check that they name files in its own folder."""
    for name in (SAFE_WEIGHTS_INDEX_NAME, *([WEIGHTS_INDEX_NAME] if allow_pickle else [])):
        file = cached_file(
            hub_id,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if file is not None:
            check_weight_index(Path(file))


def embedding(output: Any) -> Tensor:
    """The projected embedding (B, D); transformers 5 returns it as an output object's `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output
