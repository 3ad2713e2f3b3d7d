"""The pocket video teacher's model card, with its evaluation on clips of photographs that were not trained on."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor
from tqdm import tqdm

from benchmarks.pocket.evaluation import assess, halves, write
from benchmarks.pocket.video.autoencoder import decode, encode
from benchmarks.pocket.video.data import random_clips
from eval.metrics.fid import frechet_distance
from eval.metrics.temporal import flicker
from teachers.media.motion import motion_labels
from teachers.media.pictures import tile, to_pil
from teachers.pocket_video import CALL, GUIDANCE
from teachers.pocket_video.captions import balanced_labels, balanced_prompts
from teachers.pocket_video.judges import ClipJudge
from teachers.pocket_video.parts import CLIP

STEPS = 50
SHOWN = 10


def held_out_clips(photographs: Tensor, labels: Tensor, count: int) -> dict[str, Tensor]:
    """Real clips (count, 3, 9, 32, 32) in [0, 1], and their classes and motions (count, 2)."""
    clips, wanted = random_clips(photographs, labels, count, torch.Generator().manual_seed(10**9))
    return {"clips": clips / 2 + 0.5, "labels": wanted}


def sample(pipeline: WanPipeline, count: int, guidance: float, steps: int, batch: int = 96) -> Tensor:
    """Clips (count, 3, 9, 32, 32) in [0, 1] of `balanced_prompts(count)`."""
    prompts, rng = balanced_prompts(count), torch.Generator().manual_seed(0)
    options = {**CALL, "num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt", "generator": rng}
    batches = tqdm(range(0, count, batch), desc=f"samples, guidance {guidance:g}", mininterval=20)
    return torch.cat([CLIP.received(pipeline(prompts[i : i + batch], **options)) for i in batches])


def plot(rows: list[Tensor], path: Path) -> None:
    """Write the filmstrips of clips, each row (N, 3, 9, 32, 32), one below the other."""
    strips = [CLIP.still(clip) for row in rows for clip in row]
    to_pil(tile(torch.stack(strips), columns=1)).save(path)


def evaluate(
    pipeline: WanPipeline, judge: ClipJudge, real: dict[str, Tensor], image: Path, count: int
) -> dict[str, Any]:
    """Figures of real clips, of reconstructions and of samples; writes filmstrips and clips beside `image`."""
    clips, labels = real["clips"], real["labels"]
    rebuilt = decode(pipeline.vae, encode(pipeline.vae, clips * 2 - 1))
    error = (rebuilt - clips).square().mean().item()
    seen, rebuilt_seen = (assess(judge, motion_labels, samples, labels) for samples in (clips, rebuilt))
    one, two = halves(len(clips))
    reference = seen.features[two]
    figures: dict[str, Any] = {
        "real_motion": seen.measured,
        "real_class": seen.classified,
        "autoencoder_motion": rebuilt_seen.measured,
        "autoencoder_class": rebuilt_seen.classified,
        "autoencoder_psnr_db": -10 * math.log10(error),
        "frechet_two_halves_of_the_real_clips": frechet_distance(seen.features[one], reference),
        "frechet_reconstructions": frechet_distance(rebuilt_seen.features[one], reference),
        "real_flicker": flicker(clips).mean().item(),
        "real_clips": len(clips),
        "samples": count,
        "steps": STEPS,
    }
    rows, pictures = [], [clips[:SHOWN], rebuilt[:SHOWN]]
    for guidance in (1.0, GUIDANCE):
        start = time.process_time()
        made = sample(pipeline, count, guidance, STEPS)
        seconds = time.process_time() - start
        found = assess(judge, motion_labels, made, balanced_labels(count))
        rows.append(
            {
                "guidance": guidance,
                "motion": found.measured,
                "class": found.classified,
                "frechet": frechet_distance(found.features, reference),
                "flicker": flicker(made).mean().item(),
                "clips_per_cpu_second": count / seconds,
            }
        )
        pictures.append(made[:SHOWN])
        CLIP.save(made[:64], image.with_name(f"guidance_{guidance:g}.webp"))
    plot(pictures, image)
    return figures | {"rows": rows}


def write_card(staged: Path, judge: ClipJudge, real: dict[str, Tensor], image: Path, count: int) -> None:
    """Evaluate the half-precision pipeline in `staged`; write figures.json and the model card."""
    pipeline = WanPipeline.from_pretrained(staged / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    figures = evaluate(pipeline, judge, real, image, count)
    write(staged, figures, card(figures))


def card(figures: dict[str, Any]) -> str:
    """The model card."""
    columns = {"guidance": "g", "motion": ".1%", "class": ".1%", "frechet": ".2f", "flicker": ".4f"}
    lines = [[format(row[key], form) for key, form in columns.items()] for row in figures["rows"]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    call = ", ".join(f"{key}={value}" for key, value in CALL.items())
    return f"""---
license: mit
pipeline_tag: text-to-video
library_name: diffusers
---

# The pocket video teacher

A complete, very small Wan pipeline: clips of {CLIP.frames} frames of {CLIP.width} x {CLIP.height} pixels at
{CLIP.rate:g} frames per second from prompts such as "an ankle boot moving left". It was trained on photographs of
clothing (Fashion-MNIST, MIT licence) that are moved, turned or scaled by a program, as in Moving MNIST: the photographs
are real, the motions are synthetic. Its purpose is to try out distillation on a laptop.

Noise schedule and prediction: those of Wan 2.1. Evaluation: guidance {GUIDANCE:g}, {STEPS} steps. Every call needs
`{call}`, with which the pipeline was trained.

## Evaluation

The motion is measured by image moments, without a network. The class is measured by the judge that is shipped with the
pipeline. Frechet distances use the judge's 64 features and the four numbers of the motion, {figures["samples"]:,}
samples against {figures["real_clips"] // 2:,} clips of test photographs, which were not trained on. Flicker is the mean
deviation of a frame from the mean of its neighbours.

| | right motion | right class | Frechet distance |
| --- | --- | --- | --- |
| real clips (for the distance: two halves of them) | {figures["real_motion"]:.1%} | {figures["real_class"]:.1%} \
| {figures["frechet_two_halves_of_the_real_clips"]:.2f} |
| reconstructions by the autoencoder ({figures["autoencoder_psnr_db"]:.1f} dB) | {figures["autoencoder_motion"]:.1%} \
| {figures["autoencoder_class"]:.1%} | {figures["frechet_reconstructions"]:.2f} |

| guidance | right motion | right class | Frechet distance | flicker (real: {figures["real_flicker"]:.4f}) |
| --- | --- | --- | --- | --- |
{table}

Made by `python -m benchmarks.pocket.video.make`, which also writes this page.
"""
