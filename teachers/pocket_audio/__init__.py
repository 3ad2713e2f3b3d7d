"""The pocket audio teacher: a complete, very small Stable Audio pipeline that is part of this package.

It has a T5 tokenizer and encoder, a `StableAudioProjectionModel`, a `StableAudioDiTModel`, an `AutoencoderOobleck` and
a `CosineDPMSolverMultistepScheduler`. It was trained on notes of recorded instruments with
`python -m benchmarks.pocket.audio.make`. The weights folder also contains a judge of instruments, statistics of real
notes that were not trained on, and latents of real training notes.
"""

from pathlib import Path

from teachers.pocket_audio.captions import all_captions, balanced_labels, balanced_prompts, captions, label_of
from teachers.pocket_audio.judges import InstrumentJudge, pitch

FOLDER = Path(__file__).parent / "weights"
PIPELINE = FOLDER / "pipeline"
JUDGE = InstrumentJudge
GUIDANCE = 2.0  # guidance scale of the 50-step teacher in evaluations
LATENT_STEP = 1 / 24  # value of one unit of the latents that are stored as 8-bit integers

__all__ = [
    "FOLDER",
    "JUDGE",
    "LATENT_STEP",
    "PIPELINE",
    "all_captions",
    "balanced_labels",
    "balanced_prompts",
    "captions",
    "label_of",
    "pitch",
]
