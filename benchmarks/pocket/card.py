"""The pocket teacher's model card, with its evaluation on held-out photographs."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from eval.metrics.fid import frechet_distance
from teachers.pocket import GUIDANCE
from teachers.pocket.captions import CLASS_NAMES, balanced_prompts
from teachers.pocket.classifier import Classifier, rgb01

# Keys of figures.json.
ACCURACY = "classifier_accuracy_on_real_test_images"
HALVES = "frechet_two_halves_of_the_real_test_images"
REBUILT = "frechet_autoencoder_reconstructions_against_real"


def write_card(staged: Path, classifier: Classifier, images: dict[str, Tensor], samples: int = 5000) -> None:
    """Evaluate the half-precision pipeline in `staged` on held-out images; write figures.json and the model card."""
    figures = evaluate(staged / "pipeline", classifier, images, samples)
    text = json.dumps(figures, indent=2)
    (staged / "figures.json").write_text(text + "\n", encoding="utf-8")
    (staged / "pipeline" / "README.md").write_text(card(figures), encoding="utf-8")
    print(text)


def evaluate(folder: Path, classifier: Classifier, images: dict[str, Tensor], samples: int) -> dict[str, Any]:
    """The figures of the pipeline in `folder` on held-out images, as figures.json has them."""
    with torch.no_grad():
        test = rgb01(images["test"])
        real = torch.cat([classifier.features(batch) for batch in test.split(500)])
        logits = torch.cat([classifier(batch) for batch in test.split(500)])
        accuracy = (logits.argmax(1) == images["test_labels"]).float().mean().item()
        vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
        decoded = torch.cat(
            [vae(b.expand(-1, 3, -1, -1)).sample.mean(1, keepdim=True) for b in images["test"].split(500)]
        )
        rebuilt = torch.cat([classifier.features(rgb01(batch)) for batch in decoded.split(500)])
        psnr = 10 * math.log10(4 / F.mse_loss(decoded, images["test"]).item())
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    one, two = real[order[:samples]], real[order[samples : 2 * samples]]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return {
        ACCURACY: accuracy,
        HALVES: frechet_distance(one, two),
        REBUILT: frechet_distance(rebuilt[order[:samples]], two),
        "autoencoder_psnr_db": psnr,
        "samples": samples,
        "guided_50_steps": [_guided(pipeline, classifier, two, scale, samples) for scale in (1.0, GUIDANCE)],
    }


def _guided(pipeline: Any, classifier: Classifier, real: Tensor, guidance: float, samples: int) -> dict[str, float]:
    """The Frechet distance and the prompt agreement of samples at a guidance scale."""
    prompts, classes = balanced_prompts(samples), torch.arange(samples) % len(CLASS_NAMES)
    features, agree, rng = [], 0, torch.Generator().manual_seed(0)
    for i in tqdm(range(0, samples, 250), desc=f"evaluating, guidance {guidance}"):
        batch = pipeline(
            prompts[i : i + 250], num_inference_steps=50, guidance_scale=guidance, generator=rng, output_type="pt"
        ).images
        with torch.no_grad():
            features.append(classifier.features(batch))
            agree += int((classifier(batch).argmax(1) == classes[i : i + 250]).sum().item())
    frechet = frechet_distance(torch.cat(features), real)
    return {"guidance": guidance, "frechet": frechet, "agreement": agree / samples}


def card(figures: dict[str, Any]) -> str:
    """The model card with figures from `evaluate`."""
    rows, samples = figures["guided_50_steps"], figures["samples"]
    table = "\n".join(f"| {r['guidance']:g} | {r['frechet']:.2f} | {r['agreement']:.1%} |" for r in rows)
    return f"""---
license: mit
pipeline_tag: text-to-image
library_name: diffusers
---

# The pocket teacher

A complete, very small Stable Diffusion pipeline: 32 x 32 images of clothing from prompts such as "a photo of an ankle
boot". It was trained on the photographs of Fashion-MNIST (MIT licence) with captions made from the labels. The split is
this project's own stratified split, so the numbers are not comparable with published tables. Its purpose is to try out
distillation on a laptop.

Noise schedule: that of Stable Diffusion 1.5. Prediction: epsilon. Evaluation: guidance {GUIDANCE:g}, 50 DDIM steps.

## Held-out evaluation

Frechet distances use the 64 features of the classifier that is shipped with the pipeline, {samples:,} samples against
{samples:,} held-out real images.

| | |
| --- | --- |
| accuracy of the classifier on real test images | {figures[ACCURACY]:.1%} |
| Frechet distance, two halves of the real test images | {figures[HALVES]:.2f} |
| Frechet distance, reconstructions by the autoencoder | {figures[REBUILT]:.2f} |
| autoencoder PSNR | {figures["autoencoder_psnr_db"]:.1f} dB |

| guidance | Frechet distance, 50 steps | prompt agreement |
| --- | --- | --- |
{table}

Made by `python -m benchmarks.pocket.make`, which also writes this page.
"""
