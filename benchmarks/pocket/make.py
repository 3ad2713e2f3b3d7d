"""Makes the pocket teacher from photographs: classifier, autoencoder, text-to-image diffusion model, model card.

    python -m benchmarks.pocket.make DATA.npz

Takes about 50 minutes on two CPU cores. Each finished stage is saved in `--work`, the diffusion stage every 1,000
steps, and the same command continues after an interruption.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.pocket.card import write_card
from benchmarks.pocket.stages import encode, train_autoencoder, train_classifier, train_diffusion
from teachers.loading.saving import save_pipeline
from teachers.pocket import FOLDER
from teachers.pocket.classifier import Classifier, rgb01
from teachers.pocket.parts import make_tokenizer, sd15_scheduler
from teachers.support.checksums import write_manifest
from teachers.support.files import atomic_write

TRAINING_LATENTS = 8000  # real latents that are shipped with the pipeline
REFERENCE_FEATURES = 5000  # real test images whose features are shipped, for precision and recall


def load_images(path: Path) -> dict[str, Tensor]:
    """Photographs (N, 1, 32, 32), float32 in [-1, 1], padded with black, and labels (N,), of "train" and "test"."""
    with np.load(path) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    out: dict[str, Tensor] = {}
    for split in ("train", "test"):
        padded = F.pad(data[f"{split}_images"], (2, 2, 2, 2))[:, None]
        out[split] = padded.float() / 127.5 - 1
        out[f"{split}_labels"] = data[f"{split}_labels"].long()
    return out


@torch.no_grad()
def reference_statistics(classifier: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Mean and covariance of the real images' features, and some of the features."""
    features = torch.cat([classifier.features(rgb01(batch)) for batch in images.split(500)]).double()
    some = features[:REFERENCE_FEATURES].half()
    return {"mean": features.mean(0), "covariance": features.T.cov(), "features": some.contiguous()}


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with floating-point values in half precision."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}


def cached(path: Path, build, load):
    """`load(path)` if a finished stage is stored there, else `build()`, stored atomically."""
    if path.exists():
        return load(path)
    value = build()
    with atomic_write(path) as temporary:
        torch.save(value.state_dict() if isinstance(value, torch.nn.Module) else value, temporary)
    return value


def into(module: torch.nn.Module):
    """A function that loads weights into `module` and freezes it."""

    def load(path: Path) -> torch.nn.Module:
        module.load_state_dict(torch.load(path, weights_only=True))
        return module.eval().requires_grad_(False)

    return load


def main() -> None:
    """Train every stage and write the pipeline with its model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an .npz with train_images, train_labels, test_images, test_labels")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the weights (default: in the package)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/make-pocket"), help="folder of finished stages and unfinished work"
    )
    parser.add_argument("--classifier-steps", type=int, default=3000, help="default: 3000")
    parser.add_argument("--autoencoder-steps", type=int, default=3000, help="default: 3000")
    parser.add_argument("--diffusion-steps", type=int, default=12000, help="default: 12000")
    args = parser.parse_args()
    if not args.data.is_file():
        parser.error(f"DATA must be the path of the Fashion-MNIST .npz, {args.data} does not exist")
    args.work.mkdir(parents=True, exist_ok=True)
    images = load_images(args.data)

    classifier = cached(
        args.work / "classifier.pt", lambda: train_classifier(images, args.classifier_steps), into(Classifier())
    )
    vae_path = args.work / "vae"
    if not vae_path.exists():
        trained = train_autoencoder(images, args.autoencoder_steps)
        with atomic_write(vae_path) as temporary:
            trained.save_pretrained(temporary)
    vae = AutoencoderKL.from_pretrained(vae_path)
    latents = cached(
        args.work / "latents.pt", lambda: encode(vae, images["train"]), lambda p: torch.load(p, weights_only=True)
    )
    tokenizer = make_tokenizer(args.work / "tokenizer")
    unet, text = train_diffusion(latents, images["train_labels"], tokenizer, args.diffusion_steps, args.work)

    staged = args.work / "weights"
    shutil.rmtree(staged, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=sd15_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save_pipeline(pipeline.to(torch.float16), staged / "pipeline")
    save_file(half(classifier.state_dict()), staged / "classifier.safetensors")
    save_file(reference_statistics(classifier, images["test"]), staged / "reference.safetensors")
    save_file(
        half(
            {"latents": latents[:TRAINING_LATENTS], "labels": images["train_labels"][:TRAINING_LATENTS].to(torch.uint8)}
        ),
        staged / "latents.safetensors",
    )
    write_card(staged, classifier, images)
    write_manifest(staged, {"name": "pocket"})
    shutil.rmtree(args.out, ignore_errors=True)
    shutil.copytree(staged, args.out)
    print(f"The pocket teacher was written to {args.out}")


if __name__ == "__main__":
    main()
