"""The pocket video teacher: a complete, very small Wan pipeline that is part of this package.

It has a T5 tokenizer, a UMT5 encoder, a `WanTransformer3DModel`, an `AutoencoderKLWan` and a `UniPCMultistepScheduler`
with flow sigmas. It was trained on moving photographs of clothing with `python -m benchmarks.pocket.video.make`. The
weights folder also contains a judge of classes, statistics of real clips that were not trained on, and latents of real
training clips.
"""

from pathlib import Path
from typing import Any

from teachers.pocket_video.captions import all_captions, balanced_labels, balanced_prompts, captions, label_of
from teachers.pocket_video.judges import ClipJudge
from teachers.pocket_video.parts import CLIP, LENGTH

FOLDER = Path(__file__).parent / "weights"
PIPELINE = FOLDER / "pipeline"
JUDGE = ClipJudge
GUIDANCE = 2.5  # guidance scale of the 50-step teacher in evaluations
LATENT_STEP = 1 / 24  # value of one unit of the latents that are stored as 8-bit integers
# Arguments of every call: no configuration of a Wan pipeline has them.
CALL: dict[str, Any] = {
    "height": CLIP.height,
    "width": CLIP.width,
    "num_frames": CLIP.frames,
    "max_sequence_length": LENGTH,
}

__all__ = [
    "CALL",
    "CLIP",
    "FOLDER",
    "JUDGE",
    "LATENT_STEP",
    "PIPELINE",
    "all_captions",
    "balanced_labels",
    "balanced_prompts",
    "captions",
    "label_of",
]
