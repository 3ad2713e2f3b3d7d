"""The embedded default: a complete text-to-image Stable Diffusion pipeline that fits in a pocket.

Real CLIP tokenizer and text model, `AutoencoderKL`, `UNet2DConditionModel` and SD 1.5's noise schedule, all tiny,
trained on real photographs of clothing (Fashion-MNIST) by `python -m benchmarks.pocket.make`. Beside the pipeline lie the
classifier that judges it, statistics of the real test images, and a few thousand real latents to distil from.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from teachers.pocket.captions import all_captions, balanced_prompts, captions, label_of
from teachers.pocket.classifier import Classifier, load_classifier

FOLDER = Path(__file__).parent / "weights"
PIPELINE = FOLDER / "pipeline"
GUIDANCE = 2.0  # what the 50-step teacher is judged at


def classifier() -> Classifier:
    """The classifier that ships with the pocket teacher."""
    return load_classifier(FOLDER / "classifier.safetensors")


def examples() -> tuple[Tensor, Tensor]:
    """Real training latents (N, 4, 8, 8) in float32 and their labels (N,)."""
    stored = load_file(FOLDER / "latents.safetensors")
    return stored["latents"].float(), stored["labels"].long()


def reference() -> tuple[Tensor, Tensor]:
    """Mean (64,) and covariance (64, 64) of the classifier's features over all real test images, in float64."""
    stored = load_file(FOLDER / "reference.safetensors")
    return stored["mean"], stored["covariance"]


def reference_features() -> Tensor | None:
    """The classifier's features (5000, 64) of real test images in float32; None where the weights came without them."""
    stored = load_file(FOLDER / "reference.safetensors")
    return stored["features"].float() if "features" in stored else None


__all__ = [
    "PIPELINE",
    "Classifier",
    "all_captions",
    "balanced_prompts",
    "captions",
    "classifier",
    "examples",
    "label_of",
    "reference",
    "reference_features",
]
