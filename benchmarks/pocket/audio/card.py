"""The pocket audio teacher's model card, with its evaluation on held-out notes."""

import json
import math
import time
from pathlib import Path

import torch
from diffusers import StableAudioPipeline
from torch import Tensor
from tqdm import tqdm

from benchmarks.pocket.audio.codec import reconstruct
from benchmarks.pocket.audio.data import waveforms
from benchmarks.pocket.audio.judge import assess
from benchmarks.pocket.audio.plots import first_prompted, listen, plot
from eval.metrics.fid import frechet_distance
from teachers.pocket_audio import GUIDANCE
from teachers.pocket_audio.captions import balanced_labels, balanced_prompts
from teachers.pocket_audio.judges import InstrumentJudge

STEPS = 50


def sample(pipeline: StableAudioPipeline, count: int, guidance: float, steps: int = STEPS, batch: int = 120) -> Tensor:
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
) -> dict:
    """Figures of real notes, of reconstructions and of samples; writes spectrograms to `image`."""
    labels = held_out["labels"].long()
    real = waveforms(held_out["audio"])
    rebuilt = reconstruct(pipeline.vae, held_out["audio"])
    error = (rebuilt - real).square().sum() / real.square().sum()
    heard, rebuilt_heard = assess(judge, real, labels), assess(judge, rebuilt, labels)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    one, two = order[: len(order) // 2], order[len(order) // 2 :]
    figures = {
        "real_pitch": heard[0],
        "real_instrument": heard[1],
        "codec_pitch": rebuilt_heard[0],
        "codec_instrument": rebuilt_heard[1],
        "codec_signal_to_noise_db": -10 * math.log10(error.item()),
        "frechet_two_halves_of_the_held_out_notes": frechet_distance(heard[2][one], heard[2][two]),
        "frechet_reconstructions": frechet_distance(rebuilt_heard[2][one], heard[2][two]),
        "held_out_notes": len(real),
        "samples": count,
    }
    rows, shown = [], first_prompted(labels)
    pictures = [real[shown], rebuilt[shown]]
    prompted = balanced_labels(count)
    for guidance in (1.0, GUIDANCE):
        start = time.process_time()
        audio = sample(pipeline, count, guidance)
        seconds = time.process_time() - start
        right = assess(judge, audio, prompted)
        rows.append(
            {
                "guidance": guidance,
                "pitch": right[0],
                "instrument": right[1],
                "frechet": frechet_distance(right[2], heard[2][two]),
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
    (staged / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    table = "\n".join(
        f"| {r['guidance']:g} | {r['pitch']:.1%} | {r['instrument']:.1%} | {r['frechet']:.2f} |"
        for r in figures["rows"]
    )
    (staged / "pipeline" / "README.md").write_text(
        f"""---
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
pipeline. Frechet distances use the 64 features of this judge, {count:,} samples against {len(held_out["audio"]) // 2:,}
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
""",
        encoding="utf-8",
    )
    print(json.dumps(figures, indent=2))
