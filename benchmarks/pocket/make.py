"""Makes the pocket teacher from photographs: classifier, autoencoder, text-to-image diffusion model, model card.

    python -m benchmarks.pocket.make DATA.npz

Takes about 50 minutes on two CPU cores. Each finished stage is saved in `--work`, the diffusion stage every 1,000
steps, and the same command continues after an interruption.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.pocket.card import write_card
from benchmarks.pocket.photographs import load_photographs
from benchmarks.pocket.stages import encode, train_autoencoder, train_classifier, train_diffusion
from benchmarks.pocket.stored import cached, half, publish, statistics
from benchmarks.support.options import check_counts
from teachers.loading.saving import save_pipeline
from teachers.pocket import FOLDER
from teachers.pocket.classifier import Classifier, rgb01
from teachers.pocket.parts import make_tokenizer, sd15_scheduler
from teachers.support.errors import run_cli
from teachers.support.files import atomic_write

TRAINING_LATENTS = 8000  # real latents that are shipped with the pipeline
REFERENCE_FEATURES = 5000  # real test images whose features are shipped, for precision and recall


def load_images(path: Path) -> dict[str, Tensor]:
    """Photographs (N, 1, 32, 32), float32 in [-1, 1], padded with black, and labels (N,), of "train" and "test"."""
    out: dict[str, Tensor] = {}
    for split in ("train", "test"):
        photographs, out[f"{split}_labels"] = load_photographs(path, split)
        out[split] = F.pad(photographs, (2, 2, 2, 2))[:, None].float() / 127.5 - 1
    return out


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
    check_counts(parser, args)
    if not args.data.is_file():
        parser.error(f"DATA must be the path of the Fashion-MNIST .npz, {args.data} does not exist")
    args.work.mkdir(parents=True, exist_ok=True)
    images = load_images(args.data)

    classifier = Classifier()
    steps = args.classifier_steps
    classifier.load_state_dict(
        cached(args.work / "classifier.pt", lambda: train_classifier(images, steps).state_dict())
    )
    classifier.eval().requires_grad_(False)
    vae_path = args.work / "vae"
    if not vae_path.exists():
        trained = train_autoencoder(images, args.autoencoder_steps)
        with atomic_write(vae_path) as temporary:
            trained.save_pretrained(temporary)
    vae = AutoencoderKL.from_pretrained(vae_path)
    latents = cached(args.work / "latents.pt", lambda: encode(vae, images["train"]))
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
    with torch.no_grad():
        features = torch.cat([classifier.features(rgb01(batch)) for batch in images["test"].split(500)])
    save_file(statistics(features, REFERENCE_FEATURES), staged / "reference.safetensors")
    save_file(
        half(
            {"latents": latents[:TRAINING_LATENTS], "labels": images["train_labels"][:TRAINING_LATENTS].to(torch.uint8)}
        ),
        staged / "latents.safetensors",
    )
    write_card(staged, classifier, images)
    publish(staged, args.out, "pocket", "The pocket teacher")


if __name__ == "__main__":
    sys.exit(run_cli(main))
