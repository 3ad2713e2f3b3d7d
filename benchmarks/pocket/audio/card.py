"""The pocket audio teacher's model card, with its evaluation on held-out notes."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableAudioPipeline
from torch import Tensor
from tqdm import tqdm

from benchmarks.pocket.audio.codec import reconstruct
from benchmarks.pocket.audio.data import waveforms
from benchmarks.pocket.audio.plots import first_prompted, listen, plot
from benchmarks.pocket.evaluation import assess, halves, write
from eval.metrics.fid import frechet_distance
from teachers.pocket_audio import GUIDANCE
from teachers.pocket_audio.captions import balanced_labels, balanced_prompts
from teachers.pocket_audio.judges import InstrumentJudge, pitch

STEPS = 50


def sample(pipeline: StableAudioPipeline, count: int, guidance: float, steps: int, batch: int = 120) -> Tensor:
    """Waveforms (count, 1, samples) of `balanced_prompts(count)`."""
    prompts, rng = balanced_prompts(count), torch.Generator().manual_seed(0)
    batches = tqdm(range(0, count, batch), desc=f"samples, guidance {guidance:g}", mininterval=20)
    return torch.cat(
        [
            pipeline(
                prompts[i : i + batch], num_inference_steps=steps, guidance_scale=guidance, generator=rng
            ).audios.float()
            for i in batches
        ]
    )


def evaluate(
    pipeline: StableAudioPipeline, judge: InstrumentJudge, held_out: dict[str, Tensor], image: Path, count: int
) -> dict[str, Any]:
    """Figures of real notes, of reconstructions and of samples; writes spectrograms and sounds beside `image`."""
    labels = held_out["labels"].long()
    real = waveforms(held_out["audio"])
    rebuilt = reconstruct(pipeline.vae, held_out["audio"])
    error = (rebuilt - real).square().sum() / real.square().sum()
    heard, rebuilt_heard = (assess(judge, pitch, samples, labels) for samples in (real, rebuilt))
    one, two = halves(len(real))
    reference = heard.features[two]
    figures: dict[str, Any] = {
        "real_pitch": heard.measured,
        "real_instrument": heard.classified,
        "codec_pitch": rebuilt_heard.measured,
        "codec_instrument": rebuilt_heard.classified,
        "codec_signal_to_noise_db": -10 * math.log10(error.item()),
        "frechet_two_halves_of_the_held_out_notes": frechet_distance(heard.features[one], reference),
        "frechet_reconstructions": frechet_distance(rebuilt_heard.features[one], reference),
        "held_out_notes": len(real),
        "samples": count,
    }
    rows, shown = [], first_prompted(labels)
    pictures = [real[shown], rebuilt[shown]]
    prompted = balanced_labels(count)
    for guidance in (1.0, GUIDANCE):
        start = time.process_time()
        audio = sample(pipeline, count, guidance, STEPS)
        seconds = time.process_time() - start
        found = assess(judge, pitch, audio, prompted)
        rows.append(
            {
                "guidance": guidance,
                "pitch": found.measured,
                "instrument": found.classified,
                "frechet": frechet_distance(found.features, reference),
                "samples_per_cpu_second": count / seconds,
            }
        )
        pictures.append(audio[: len(shown)])
        listen(audio[: len(shown)], image.parent / "sounds", f"guidance_{guidance:g}")
    listen(real[shown], image.parent / "sounds", "real")
    listen(rebuilt[shown], image.parent / "sounds", "codec")
    plot(pictures, image)
    return figures | {"steps": STEPS, "rows": rows}


def write_card(staged: Path, judge: InstrumentJudge, held_out: dict[str, Tensor], image: Path, count: int) -> None:
    """Evaluate the half-precision pipeline in `staged`; write figures.json and the model card."""
    pipeline = StableAudioPipeline.from_pretrained(staged / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    figures = evaluate(pipeline, judge, held_out, image, count)
    write(staged, figures, card(figures))


def card(figures: dict[str, Any]) -> str:
    """The model card."""
    table = "\n".join(
        f"| {r['guidance']:g} | {r['pitch']:.1%} | {r['instrument']:.1%} | {r['frechet']:.2f} |"
        for r in figures["rows"]
    )
    count, held_out = figures["samples"], figures["held_out_notes"]
    return f"""---
license: mit
pipeline_tag: text-to-audio
library_name: diffusers
---

# The pocket audio teacher

A complete, very small Stable Audio pipeline: one second of sound at 4 kHz from prompts such as "a flute playing a C4".
It was trained on notes of ten recorded instruments, C3 to B4, rendered from the SoundFont FluidR3 GM (MIT licence) with
random loudness, length and onset. A note starts after a whole number of periods, so that it always has the same phase.
Its purpose is to try out distillation on a laptop.

Noise schedule and prediction: those of Stable Audio (velocity of TrigFlow). Evaluation: guidance {GUIDANCE:g},
{STEPS} steps.

## Evaluation

Pitch is measured by a harmonic sum, without a network. The instrument is measured by the judge that is shipped with the
pipeline. Frechet distances use the 64 features of this judge, {count:,} samples against {held_out // 2:,}
held-out notes. **What is held out are renderings**: the same recordings as in training with other loudness, length and
onset. No recording and no combination of instrument and note is held out.

| | right pitch | right instrument | Frechet distance |
| --- | --- | --- | --- |
| real notes (for the distance: two halves of them) | {figures["real_pitch"]:.1%} | {figures["real_instrument"]:.1%} \
| {figures["frechet_two_halves_of_the_held_out_notes"]:.2f} |
| reconstructions by the autoencoder ({figures["codec_signal_to_noise_db"]:.1f} dB) | {figures["codec_pitch"]:.1%} \
| {figures["codec_instrument"]:.1%} | {figures["frechet_reconstructions"]:.2f} |

| guidance | right pitch | right instrument | Frechet distance |
| --- | --- | --- | --- |
{table}

Made by `python -m benchmarks.pocket.audio.make`, which also writes this page.
"""
