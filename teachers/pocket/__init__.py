"""The pocket teacher: a complete, very small Stable Diffusion pipeline that is part of this package.

It has a CLIP tokenizer and text model, an `AutoencoderKL`, a `UNet2DConditionModel` and the noise schedule of Stable
Diffusion 1.5. It was trained on photographs of clothing (Fashion-MNIST) with `python -m benchmarks.pocket.make`. The
weights folder also contains a classifier for evaluation, statistics of the real test images, a few thousand latents of
real training images, and `manifest.json` with the SHA-256 of these files.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from teachers.pocket.captions import all_captions, balanced_prompts, captions, label_of
from teachers.pocket.classifier import Classifier, load_classifier
from teachers.support.checksums import check_shipped

FOLDER = Path(__file__).parent / "weights"
PIPELINE = FOLDER / "pipeline"
GUIDANCE = 2.0  # guidance scale of the 50-step teacher in evaluations


def verified(file: Path) -> Path:
    """`file`, a file or folder of the weights, after comparing it with the manifest, if there is one.

    Raises:
        ValueError: If a file has changed.
    """
    root = FOLDER if file.is_relative_to(FOLDER) else PIPELINE.parent
    return check_shipped(root, file, "the pocket teacher")


def pipeline() -> Path:
    """The folder of the pipeline, verified; it need not exist."""
    return verified(PIPELINE) if PIPELINE.is_dir() else PIPELINE


def classifier() -> Classifier:
    """The pocket teacher's classifier, frozen and in eval mode."""
    return load_classifier(verified(FOLDER / "classifier.safetensors"))


def examples() -> tuple[Tensor, Tensor]:
    """Latents of real training images, (N, 4, 8, 8) in float32, and their classes (N,)."""
    stored = load_file(verified(FOLDER / "latents.safetensors"))
    return stored["latents"].float(), stored["labels"].long()


def reference() -> tuple[Tensor, Tensor]:
    """Mean (64,) and covariance (64, 64), in float64, of the classifier's features of all real test images."""
    stored = load_file(verified(FOLDER / "reference.safetensors"))
    return stored["mean"], stored["covariance"]


def reference_features() -> Tensor | None:
    """The classifier's features of real test images, (5000, 64) in float32; None if the weights lack them."""
    stored = load_file(verified(FOLDER / "reference.safetensors"))
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
    "pipeline",
    "reference",
    "reference_features",
    "verified",
]
