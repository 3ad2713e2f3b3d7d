"""Makes the pocket video teacher from photographs: judge, autoencoder, latents, transformer, model card.

    python -m benchmarks.pocket.video.make fashion_mnist.npz

The photographs are Fashion-MNIST's (MIT licence). One thread is used. Each finished stage is saved in `--work`, an
unfinished one every 200 steps, and the same command continues after an interruption. `--until STAGE` stops after a
stage.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.pocket.video.autoencoder import decode, encode_random, train_autoencoder
from benchmarks.pocket.video.card import held_out_clips, plot, write_card
from benchmarks.pocket.video.data import load_photographs
from benchmarks.pocket.video.judge import train_judge
from benchmarks.pocket.video.transformer import train_transformer
from teachers.loading.saving import save_pipeline
from teachers.media.motion import MOTIONS
from teachers.pocket_video import FOLDER, LATENT_STEP
from teachers.pocket_video.captions import OBJECTS
from teachers.pocket_video.judges import ClipJudge
from teachers.pocket_video.parts import make_scheduler, make_tokenizer
from teachers.support.checksums import write_manifest
from teachers.support.files import atomic_write

STAGES = ("judge", "autoencoder", "latents", "transformer", "card")
ENCODED = 40_000  # clips that the transformer is trained on
HELD_OUT = 2000  # clips of test photographs
REFERENCE = 1000  # of these, whose features are shipped
SHIPPED = 5  # latents of each pair of class and motion that are shipped
T = TypeVar("T")


def cached(path: Path, build: Callable[[], T]) -> T:
    """What is stored at `path`, or else `build()`, stored atomically."""
    if not path.exists():
        value = build()
        with atomic_write(path) as temporary:
            torch.save(value, temporary)
    stored: T = torch.load(path, weights_only=True)
    return stored


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with floating-point values in half precision."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}


@torch.no_grad()
def reference_statistics(judge: ClipJudge, clips: Tensor) -> dict[str, Tensor]:
    """Mean and covariance of the features of real clips, and some of the features."""
    features = torch.cat([judge.features(batch) for batch in clips.split(200)]).double()
    shipped = features[:REFERENCE].half().contiguous()
    return {"mean": features.mean(0), "covariance": features.T.cov(), "features": shipped}


def balanced_rows(labels: Tensor, each: int) -> Tensor:
    """The first `each` rows of every pair of class and motion, pair after pair."""
    pairs = [(c, m) for c in range(len(OBJECTS)) for m in range(len(MOTIONS))]
    return torch.cat([(labels == torch.tensor(pair)).all(dim=1).nonzero()[:each, 0] for pair in pairs])


def main() -> None:
    """Run the stages and write the pipeline with its model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="fashion_mnist.npz")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the weights (default: in the package)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/make-pocket-video"), help="folder of finished stages and checkpoints"
    )
    parser.add_argument("--judge-steps", type=int, default=2000, help="default: 2000")
    parser.add_argument("--autoencoder-steps", type=int, default=4000, help="default: 4000")
    parser.add_argument("--encoded", type=int, default=ENCODED, help=f"clips to train on (default: {ENCODED})")
    parser.add_argument("--transformer-steps", type=int, default=20000, help="default: 20000")
    parser.add_argument("--samples", type=int, default=960, help="that the card's figures are from (default: 960)")
    parser.add_argument("--until", choices=STAGES, default="card", help="the last stage to run (default: card)")
    args = parser.parse_args()
    if not args.photographs.is_file():
        parser.error(f"PHOTOGRAPHS must be the path of fashion_mnist.npz, {args.photographs} does not exist")
    torch.set_num_threads(1)
    run(args)


def run(args: argparse.Namespace) -> None:
    """Run the stages up to `args.until`."""
    work, last = args.work, STAGES.index(args.until)
    work.mkdir(parents=True, exist_ok=True)
    training = load_photographs(args.photographs, "train")
    judge = ClipJudge()
    judge.load_state_dict(
        cached(work / "judge.pt", lambda: train_judge(*training, args.judge_steps, work).state_dict())
    )
    judge.eval().requires_grad_(False)
    if last < STAGES.index("autoencoder"):
        return
    if not (work / "vae").exists():
        trained = train_autoencoder(*training, args.autoencoder_steps, work)
        with atomic_write(work / "vae") as temporary:
            trained.save_pretrained(temporary)
    vae = AutoencoderKLWan.from_pretrained(work / "vae").eval().requires_grad_(False)
    if last < STAGES.index("latents"):
        return
    stored = cached(work / "latents.pt", lambda: encode_random(vae, *training, args.encoded, seed=10**6))
    plot([decode(vae, stored["latents"][:8].float())], work / "autoencoder.png")
    if last < STAGES.index("transformer"):
        return
    tokenizer = make_tokenizer()
    model = train_transformer(stored["latents"], stored["labels"], tokenizer, args.transformer_steps, work)
    if last < STAGES.index("card"):
        return

    staged = work / "weights"
    shutil.rmtree(staged, ignore_errors=True)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=model.text,
        transformer=model.transformer,
        vae=vae,
        scheduler=make_scheduler(),
    )
    save_pipeline(pipeline.to(torch.float16), staged / "pipeline")
    save_file(half(judge.state_dict()), staged / "judge.safetensors")
    real = held_out_clips(*load_photographs(args.photographs, "test"), HELD_OUT)
    save_file(reference_statistics(judge, real["clips"]), staged / "reference.safetensors")
    rows = balanced_rows(stored["labels"], SHIPPED)
    integers = (stored["latents"][rows].float() / LATENT_STEP).round().clamp(-127, 127).to(torch.int8)
    labels = stored["labels"][rows].to(torch.uint8)
    save_file({"latents": integers, "labels": labels}, staged / "latents.safetensors")
    write_card(staged, judge, real, work / "samples.png", args.samples)
    write_manifest(staged, {"name": "pocket-video"})
    shutil.rmtree(args.out, ignore_errors=True)
    shutil.copytree(staged, args.out)
    print(f"The pocket video teacher was written to {args.out}")


if __name__ == "__main__":
    main()
