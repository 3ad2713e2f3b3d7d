"""The pocket video teacher: a complete, very small Wan pipeline that is part of this package.

It has a T5 tokenizer, a UMT5 encoder, a `WanTransformer3DModel`, an `AutoencoderKLWan` and a `UniPCMultistepScheduler`
with flow sigmas. It was trained on moving photographs of clothing with `python -m benchmarks.pocket.video.make`. The
weights folder also contains a judge of classes, statistics of real clips that were not trained on, and latents of real
training clips.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from teachers.pocket_video.captions import all_captions, balanced_labels, balanced_prompts, captions, label_of
from teachers.pocket_video.judges import ClipJudge, load_judge
from teachers.pocket_video.parts import CLIP, LENGTH

FOLDER = Path(__file__).parent / "weights"
PIPELINE = FOLDER / "pipeline"
GUIDANCE = 2.5  # guidance scale of the 50-step teacher in evaluations
LATENT_STEP = 1 / 24  # value of one unit of the latents that are stored as 8-bit integers
# Arguments of every call: no configuration of a Wan pipeline has them.
CALL: dict[str, Any] = {
    "height": CLIP.height,
    "width": CLIP.width,
    "num_frames": CLIP.frames,
    "max_sequence_length": LENGTH,
}


def judge() -> ClipJudge:
    """The judge of classes, frozen and in eval mode."""
    return load_judge(FOLDER / "judge.safetensors")


def examples() -> tuple[Tensor, Tensor]:
    """Latents of real training clips, (N, 8, 3, 8, 8) in float32, and their classes and motions, (N, 2)."""
    stored = load_file(FOLDER / "latents.safetensors")
    return stored["latents"].float() * LATENT_STEP, stored["labels"].long()


def reference() -> tuple[Tensor, Tensor]:
    """Mean (68,) and covariance (68, 68), in float64, of the judge's features of held-out real clips."""
    stored = load_file(FOLDER / "reference.safetensors")
    return stored["mean"], stored["covariance"]


def reference_features() -> Tensor:
    """The judge's features of real clips that were not trained on, (N, 68) in float32."""
    return load_file(FOLDER / "reference.safetensors")["features"].float()


__all__ = [
    "CALL",
    "CLIP",
    "PIPELINE",
    "ClipJudge",
    "all_captions",
    "balanced_labels",
    "balanced_prompts",
    "captions",
    "examples",
    "judge",
    "label_of",
    "reference",
    "reference_features",
]
