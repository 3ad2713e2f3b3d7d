"""Makes the pocket audio teacher from recorded instruments: notes, judge, autoencoder, transformer, model card.

    python -m benchmarks.pocket.audio.make FluidR3_GM.sf2

The SoundFont is in Debian's package fluid-soundfont-gm (MIT licence); rendering needs the package tinysoundfont. A GPU
trains if there is one, or else one thread. Each finished stage is saved in `--work`, an unfinished one every 200 steps
(on a GPU every minute), and the same command continues after an interruption. `--until STAGE` makes what this stage
needs and nothing else: the transformer needs `latents.pt` in `--work`, and the card, which always uses one thread, the
notes, `latents.pt`, `judge.pt`, `vae_decoder` and `denoiser.pt`.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck, StableAudioPipeline
from torch import Tensor

from benchmarks.pocket.audio.codec import NOISE, encode, train_codec, train_decoder
from benchmarks.pocket.audio.data import render, waveforms
from benchmarks.pocket.audio.judge import train_judge
from benchmarks.pocket.audio.transformer import BATCH, Denoiser, train_transformer
from benchmarks.pocket.evaluation import LEAST_SAMPLES
from benchmarks.pocket.machine import CPU, Machine, add_options, chosen
from benchmarks.pocket.stored import cached, integers, publish, stage, statistics
from teachers.pocket_audio import FOLDER, LATENT_STEP
from teachers.pocket_audio.judges import InstrumentJudge
from teachers.pocket_audio.parts import make_scheduler, make_tokenizer
from teachers.support.errors import run_cli
from teachers.support.files import atomic_write

STAGES = ("data", "judge", "codec", "decoder", "latents", "transformer", "card")
RENDERINGS = {"train": 50, "eval": 10}  # of each of the 240 notes
REFERENCE = 1200  # held-out notes whose features are shipped
SHIPPED = 2  # latents of each note that are shipped


def main() -> None:
    """Run the stages and write the pipeline with its model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("font", type=Path, help="the SoundFont FluidR3_GM.sf2")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the weights (default: in the package)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/make-pocket-audio"), help="folder of finished stages and checkpoints"
    )
    parser.add_argument("--judge-steps", type=int, default=800, help="default: 800")
    parser.add_argument("--codec-steps", type=int, default=1600, help="default: 1600")
    parser.add_argument("--decoder-steps", type=int, default=2000, help="default: 2000")
    parser.add_argument("--transformer-steps", type=int, default=20000, help="default: 20000")
    parser.add_argument("--transformer-batch", type=int, default=BATCH, help=f"sounds of an update (default: {BATCH})")
    parser.add_argument("--samples", type=int, default=960, help="that the card's figures are from (default: 960)")
    parser.add_argument("--until", choices=STAGES, default="card", help="the last stage to run (default: card)")
    add_options(parser)
    args = parser.parse_args()
    if not args.font.is_file() and not (args.work / "latents.pt").is_file():
        parser.error(f"FONT must be the path of FluidR3_GM.sf2, {args.font} does not exist")
    if args.samples < LEAST_SAMPLES:
        parser.error(f"--samples must be at least {LEAST_SAMPLES}, got {args.samples}")
    run(args, chosen(parser, args))


def run(args: argparse.Namespace, machine: Machine = CPU) -> None:
    """Run the stage `args.until`, and those that it needs."""
    args.work.mkdir(parents=True, exist_ok=True)
    stages = Stages(args, machine)
    runs = (
        stages.data,
        stages.judge,
        stages.codec,
        stages.decoder,
        stages.latents,
        stages.denoiser,
        stages.card,
    )
    runs[STAGES.index(args.until)]()


class Stages:
    """Each stage is read from the folder of the work, or else made."""

    def __init__(self, args: argparse.Namespace, machine: Machine) -> None:
        self.args, self.work, self.machine = args, args.work, machine
        self.tokenizer = make_tokenizer()

    def notes(self, split: str) -> dict[str, Tensor]:
        """The notes to train on ("train") or the held-out ones ("eval")."""
        seed = list(RENDERINGS).index(split)
        return cached(self.work / f"notes_{split}.pt", lambda: render(self.args.font, RENDERINGS[split], seed))

    def data(self) -> None:
        """The notes."""
        for split in RENDERINGS:
            self.notes(split)

    def judge(self) -> InstrumentJudge:
        """The judge of instruments."""

        def build() -> dict[str, Tensor]:
            notes = self.notes("train")
            steps = self.args.judge_steps
            return train_judge(notes["audio"], notes["labels"], steps, self.work, self.machine).state_dict()

        judge = InstrumentJudge()
        judge.load_state_dict(cached(self.work / "judge.pt", build))
        return judge.eval().requires_grad_(False)

    def codec(self) -> AutoencoderOobleck:
        """The autoencoder whose encoder is final."""
        if not (self.work / "vae").exists():
            trained = train_codec(self.notes("train")["audio"], self.args.codec_steps, self.work, self.machine)
            self._save(trained, "vae")
        return self._load("vae")

    def decoder(self) -> AutoencoderOobleck:
        """The finished autoencoder."""
        if not (self.work / "vae_decoder").exists():
            audio, steps = self.notes("train")["audio"], self.args.decoder_steps
            self._save(train_decoder(self.codec(), audio, steps, self.work, self.machine), "vae_decoder")
        return self._load("vae_decoder")

    def latents(self) -> dict[str, Tensor]:
        """The latents that the transformer is trained on, and their instruments and notes."""

        def build() -> dict[str, Tensor]:
            notes, machine = self.notes("train"), self.machine
            return {"latents": encode(self.codec(), notes["audio"], machine).half(), "labels": notes["labels"]}

        return cached(self.work / "latents.pt", build)

    def denoiser(self) -> Denoiser:
        """The transformer with its text encoder and its projection of the seconds."""

        def build() -> dict[str, Tensor]:
            stored, steps, batch = self.latents(), self.args.transformer_steps, self.args.transformer_batch
            data = (stored["latents"], stored["labels"], self.tokenizer)
            return train_transformer(*data, steps, self.work, NOISE, batch, self.machine).state_dict()

        model = Denoiser(self.tokenizer)
        model.load_state_dict(cached(self.work / "denoiser.pt", build))
        return model.eval().requires_grad_(False)

    def card(self) -> None:
        """The weights with their card, in the folder of the output."""
        # here, so that a machine that only trains does not need the packages of the evaluation
        from benchmarks.pocket.audio.card import write_card
        from benchmarks.pocket.audio.plots import plot_codec

        judge, vae, model, staged = self.judge(), self.decoder(), self.denoiser(), self.work / "weights"
        torch.set_num_threads(1)
        held_out, stored = self.notes("eval"), self.latents()
        plot_codec(vae, held_out, self.work / "codec.png")
        pipeline = StableAudioPipeline(
            vae=vae,
            text_encoder=model.text,
            projection_model=model.projection,
            tokenizer=self.tokenizer,
            transformer=model.transformer,
            scheduler=make_scheduler(),
        )
        features = torch.cat([judge.features(waveforms(batch)) for batch in held_out["audio"].split(200)])
        shipped = {key: value[: SHIPPED * 240].contiguous() for key, value in stored.items()}  # ordered by repetition
        shipped["latents"] = integers(shipped["latents"], LATENT_STEP)
        stage(staged, pipeline, judge, statistics(features, REFERENCE), shipped)
        write_card(staged, judge, held_out, self.work / "samples.png", self.args.samples)
        publish(staged, self.args.out, "pocket-audio", "The pocket audio teacher")

    def _save(self, vae: AutoencoderOobleck, name: str) -> None:
        with atomic_write(self.work / name) as temporary:
            vae.save_pretrained(temporary)

    def _load(self, name: str) -> AutoencoderOobleck:
        vae: AutoencoderOobleck = AutoencoderOobleck.from_pretrained(self.work / name)
        return vae.eval().requires_grad_(False)


if __name__ == "__main__":
    sys.exit(run_cli(main))
