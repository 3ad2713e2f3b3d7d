"""The pocket audio teacher: a complete, very small Stable Audio pipeline that is part of this package.

It has a T5 tokenizer and encoder, a `StableAudioProjectionModel`, a `StableAudioDiTModel`, an `AutoencoderOobleck` and
a `CosineDPMSolverMultistepScheduler`. It was trained on notes of recorded instruments with
`python -m benchmarks.pocket.audio.make`. The weights folder also contains a judge of instruments, statistics of real
notes that were not trained on, and latents of real training notes.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from teachers.pocket_audio.captions import all_captions, balanced_labels, balanced_prompts, captions, label_of
from teachers.pocket_audio.judges import InstrumentJudge, load_judge, pitch

FOLDER = Path(__file__).parent / "weights"
PIPELINE = FOLDER / "pipeline"
GUIDANCE = 2.0  # guidance scale of the 50-step teacher in evaluations
LATENT_STEP = 1 / 24  # value of one unit of the latents that are stored as 8-bit integers


def judge() -> InstrumentJudge:
    """The judge of instruments, frozen and in eval mode."""
    return load_judge(FOLDER / "judge.safetensors")


def examples() -> tuple[Tensor, Tensor]:
    """Latents of real training notes, (N, 24, 128) in float32, and their instruments and notes, (N, 2)."""
    stored = load_file(FOLDER / "latents.safetensors")
    return stored["latents"].float() * LATENT_STEP, stored["labels"].long()


def reference() -> tuple[Tensor, Tensor]:
    """Mean (64,) and covariance (64, 64), in float64, of the judge's features of held-out real notes."""
    stored = load_file(FOLDER / "reference.safetensors")
    return stored["mean"], stored["covariance"]


def reference_features() -> Tensor:
    """The judge's features of real notes that were not trained on, (N, 64) in float32."""
    return load_file(FOLDER / "reference.safetensors")["features"].float()


__all__ = [
    "PIPELINE",
    "InstrumentJudge",
    "all_captions",
    "balanced_labels",
    "balanced_prompts",
    "captions",
    "examples",
    "judge",
    "label_of",
    "pitch",
    "reference",
    "reference_features",
]
