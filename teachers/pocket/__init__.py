"""The pocket teacher: a complete, very small Stable Diffusion pipeline that is part of this package.

It has a CLIP tokenizer and text model, an `AutoencoderKL`, a `UNet2DConditionModel` and the noise schedule of Stable
Diffusion 1.5. It was trained on photographs of clothing (Fashion-MNIST) with `python -m benchmarks.pocket.make`. The
weights folder also contains a classifier for evaluation, statistics of the real test images, a few thousand latents of
real training images, and `manifest.json` with the SHA-256 of these files.
"""

from pathlib import Path

from torch import Tensor

from teachers.loading.embedded import EMBEDDED
from teachers.pocket.captions import all_captions, balanced_prompts, captions, label_of
from teachers.pocket.classifier import Classifier

FOLDER = Path(__file__).parent / "weights"
PIPELINE = FOLDER / "pipeline"
JUDGE = Classifier
LATENT_STEP = 1.0  # the latents are stored in half precision
GUIDANCE = 2.0  # guidance scale of the 50-step teacher in evaluations


def examples() -> tuple[Tensor, Tensor]:
    """Latents of real training images, (N, 4, 8, 8) in float32, and their classes (N,)."""
    return EMBEDDED["pocket"].labelled_examples()


__all__ = [
    "FOLDER",
    "JUDGE",
    "LATENT_STEP",
    "PIPELINE",
    "Classifier",
    "all_captions",
    "balanced_prompts",
    "captions",
    "examples",
    "label_of",
]
