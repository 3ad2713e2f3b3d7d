"""Makes the pocket video teacher from photographs: judge, autoencoder, latents, transformer, model card.

    python -m benchmarks.pocket.video.make fashion_mnist.npz

The photographs are Fashion-MNIST's (MIT licence). A GPU trains if there is one, or else one thread. Each finished stage
is saved in `--work`, an unfinished one every 200 steps (on a GPU every minute), and the same command continues after an
interruption. `--until STAGE` makes what this stage needs and nothing else: the card, which always uses one thread,
needs `judge.pt`, `vae` and `denoiser.pt` in `--work`, but not the latents that these were trained on.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor

from benchmarks.pocket.evaluation import LEAST_SAMPLES
from benchmarks.pocket.machine import CPU, Machine, add_options, chosen
from benchmarks.pocket.photographs import load_photographs
from benchmarks.pocket.stored import cached, integers, publish, stage, statistics
from benchmarks.pocket.video import autoencoder, transformer
from benchmarks.pocket.video.autoencoder import decode, encode_random, train_autoencoder
from benchmarks.pocket.video.judge import train_judge
from benchmarks.pocket.video.transformer import Denoiser, train_transformer
from teachers.media.motion import MOTIONS
from teachers.pocket_video import FOLDER, LATENT_STEP
from teachers.pocket_video.captions import OBJECTS
from teachers.pocket_video.judges import ClipJudge
from teachers.pocket_video.parts import make_scheduler, make_tokenizer
from teachers.support.errors import run_cli
from teachers.support.files import atomic_write

STAGES = ("judge", "autoencoder", "latents", "transformer", "card")
ENCODED = 40_000  # clips that the transformer is trained on
HELD_OUT = 2000  # clips of test photographs
REFERENCE = 1000  # of these, whose features are shipped
SHIPPED = 5  # latents of each pair of class and motion that are shipped
CANDIDATES = 1600  # clips from which these are taken
AUTOENCODER_SHARE = 0.3  # of `--minutes`


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
    for name, size in (("autoencoder", autoencoder.BATCH), ("transformer", transformer.BATCH)):
        parser.add_argument(f"--{name}-batch", type=int, default=size, help=f"clips of an update (default: {size})")
    parser.add_argument("--samples", type=int, default=960, help="that the card's figures are from (default: 960)")
    parser.add_argument("--until", choices=STAGES, default="card", help="the last stage to run (default: card)")
    add_options(parser)
    args = parser.parse_args()
    if not args.photographs.is_file():
        parser.error(f"PHOTOGRAPHS must be the path of fashion_mnist.npz, {args.photographs} does not exist")
    if args.samples < LEAST_SAMPLES:
        parser.error(f"--samples must be at least {LEAST_SAMPLES}, got {args.samples}")
    run(args, chosen(parser, args))


def run(args: argparse.Namespace, machine: Machine = CPU) -> None:
    """Run the stage `args.until`, and those that it needs."""
    args.work.mkdir(parents=True, exist_ok=True)
    stages = Stages(args, machine)
    runs = (stages.judge, stages.autoencoder, stages.latents, stages.denoiser, stages.card)
    runs[STAGES.index(args.until)]()


class Stages:
    """Each stage is read from the folder of the work, or else made."""

    def __init__(self, args: argparse.Namespace, machine: Machine) -> None:
        self.args, self.work, self.machine = args, args.work, machine
        self.training = load_photographs(args.photographs, "train")
        self.tokenizer = make_tokenizer()

    def judge(self) -> ClipJudge:
        """The judge of classes."""

        def build() -> dict[str, Tensor]:
            return train_judge(*self.training, self.args.judge_steps, self.work, self.machine).state_dict()

        judge = ClipJudge()
        judge.load_state_dict(cached(self.work / "judge.pt", build))
        return judge.eval().requires_grad_(False)

    def autoencoder(self) -> AutoencoderKLWan:
        """The autoencoder."""
        folder = self.work / "vae"
        if not folder.exists():
            steps, batch, part = self.args.autoencoder_steps, self.args.autoencoder_batch, AUTOENCODER_SHARE
            trained = train_autoencoder(*self.training, steps, self.work, batch, self.machine.share(part))
            with atomic_write(folder) as temporary:
                trained.save_pretrained(temporary)
        vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(folder)
        return vae.eval().requires_grad_(False)

    def latents(self) -> dict[str, Tensor]:
        """The latents that the transformer is trained on, and their classes and motions."""

        def build() -> dict[str, Tensor]:
            return encode_random(self.autoencoder(), *self.training, self.args.encoded, 10**6, self.machine)

        return cached(self.work / "latents.pt", build)

    def denoiser(self) -> Denoiser:
        """The transformer with its text encoder."""

        def build() -> dict[str, Tensor]:
            stored, steps, batch = self.latents(), self.args.transformer_steps, self.args.transformer_batch
            data = (stored["latents"], stored["labels"], self.tokenizer)
            return train_transformer(*data, steps, self.work, batch, self.machine).state_dict()

        model = Denoiser(self.tokenizer)
        model.load_state_dict(cached(self.work / "denoiser.pt", build))
        return model.eval().requires_grad_(False)

    def card(self) -> None:
        """The weights with their card, in the folder of the output."""
        # here, so that a machine that only trains does not need the packages of the evaluation
        from benchmarks.pocket.video.card import held_out_clips, plot, write_card

        judge, vae, model, staged = self.judge(), self.autoencoder(), self.denoiser(), self.work / "weights"
        torch.set_num_threads(1)
        stored = encode_random(vae, *self.training, min(self.args.encoded, CANDIDATES), seed=10**6)
        plot([decode(vae, stored["latents"][:8].float())], self.work / "autoencoder.png")
        pipeline = WanPipeline(
            tokenizer=self.tokenizer,
            text_encoder=model.text,
            transformer=model.transformer,
            vae=vae,
            scheduler=make_scheduler(),
        )
        real = held_out_clips(*load_photographs(self.args.photographs, "test"), HELD_OUT)
        features = torch.cat([judge.features(batch) for batch in real["clips"].split(200)])
        rows = balanced_rows(stored["labels"], SHIPPED)
        latents, labels = integers(stored["latents"][rows], LATENT_STEP), stored["labels"][rows].to(torch.uint8)
        reference = statistics(features, REFERENCE)
        stage(staged, pipeline, judge, reference, {"latents": latents, "labels": labels})
        write_card(staged, judge, real, self.work / "samples.png", self.args.samples)
        publish(staged, self.args.out, "pocket-video", "The pocket video teacher")


if __name__ == "__main__":
    sys.exit(run_cli(main))
