"""The pocket teacher's model card, with its evaluation on held-out photographs."""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from eval.metrics.fid import frechet_distance
from teachers.pocket import GUIDANCE
from teachers.pocket.captions import CLASS_NAMES, balanced_prompts
from teachers.pocket.classifier import Classifier, rgb01


def write_card(staged: Path, classifier: Classifier, images: dict[str, Tensor], samples: int = 5000) -> None:
    """Evaluate the half-precision pipeline in `staged` on held-out images; write figures.json and the model card."""
    with torch.no_grad():
        test = rgb01(images["test"])
        real = torch.cat([classifier.features(batch) for batch in test.split(500)])
        logits = torch.cat([classifier(batch) for batch in test.split(500)])
        accuracy = (logits.argmax(1) == images["test_labels"]).float().mean().item()
        vae = AutoencoderKL.from_pretrained(staged / "pipeline" / "vae").eval()
        decoded = torch.cat(
            [vae(b.expand(-1, 3, -1, -1)).sample.mean(1, keepdim=True) for b in images["test"].split(500)]
        )
        rebuilt = torch.cat([classifier.features(rgb01(batch)) for batch in decoded.split(500)])
        psnr = 10 * math.log10(4 / F.mse_loss(decoded, images["test"]).item())
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    one, two = real[order[:samples]], real[order[samples : 2 * samples]]

    pipeline = StableDiffusionPipeline.from_pretrained(staged / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    prompts = balanced_prompts(samples)
    classes = torch.arange(samples) % len(CLASS_NAMES)
    figures: dict[str, object] = {
        "classifier_accuracy_on_real_test_images": accuracy,
        "frechet_two_halves_of_the_real_test_images": frechet_distance(one, two),
        "frechet_autoencoder_reconstructions_against_real": frechet_distance(rebuilt[order[:samples]], two),
        "autoencoder_psnr_db": psnr,
        "samples": samples,
    }
    halves = figures["frechet_two_halves_of_the_real_test_images"]
    rebuilt_distance = figures["frechet_autoencoder_reconstructions_against_real"]
    rows = []
    for guidance in (1.0, GUIDANCE):
        features, agree = [], 0
        rng = torch.Generator().manual_seed(0)
        for i in tqdm(range(0, samples, 250), desc=f"evaluating, guidance {guidance}"):
            batch = pipeline(
                prompts[i : i + 250], num_inference_steps=50, guidance_scale=guidance, generator=rng, output_type="pt"
            ).images
            with torch.no_grad():
                features.append(classifier.features(batch))
                agree += (classifier(batch).argmax(1) == classes[i : i + 250]).sum().item()
        made = torch.cat(features)
        rows.append({"guidance": guidance, "frechet": frechet_distance(made, two), "agreement": agree / samples})
    figures["guided_50_steps"] = rows
    (staged / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    table = "\n".join(f"| {r['guidance']:g} | {r['frechet']:.2f} | {r['agreement']:.1%} |" for r in rows)
    (staged / "pipeline" / "README.md").write_text(
        f"""---
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
| accuracy of the classifier on real test images | {accuracy:.1%} |
| Frechet distance, two halves of the real test images | {halves:.2f} |
| Frechet distance, reconstructions by the autoencoder | {rebuilt_distance:.2f} |
| autoencoder PSNR | {psnr:.1f} dB |

| guidance | Frechet distance, 50 steps | prompt agreement |
| --- | --- | --- |
{table}

Made by `python -m benchmarks.pocket.make`, which also writes this page.
""",
        encoding="utf-8",
    )
    print(json.dumps(figures, indent=2))
