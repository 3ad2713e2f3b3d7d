"""The undamaged inputs of the fuzz, and the commands that read them, by kind: models, runs, data, references."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from distill.cli import fewstep
from distill.config.recipe import load
from distill.train import train
from eval.__main__ import evaluate
from eval.compare import compare
from eval.config.options import Timing
from eval.demo import serve_runs
from eval.features.extractors import extractor
from eval.metrics.fid import statistics
from eval.metrics.reference import Reference, save
from eval.pipelines.demo_requests import Request
from teachers.pocket.parts import make_tokenizer
from teachers.support.checksums import seal
from teachers.support.errors import run_cli, run_click
from tests.settings import RECIPES
from tests.teachers.families.variants import VARIANTS

KINDS = ("models", "runs", "data", "references")
MODELS = (
    "Stable Diffusion 1.5", "pixels, v", "Stable Diffusion XL", "Sana", "DiT", "Flux.1 dev",
    "Stable Diffusion 3.5",
)  # fmt: skip
FAST = [
    "train.batch_size=2", "train.log_every=1", "train.checkpoint_every=1", "train.evaluate_every=1", "name=run",
    "train.tracker=none", "train.evaluate_samples=2", "train.evaluate_teacher_steps=1", "evaluation.features=pixels",
    "evaluation.reference=null",
    "train.steps=1",
]  # fmt: skip
QUICK: dict[str, Any] = {
    "few_steps": (), "lpips": None, "samples": 2, "batch_size": 2, "timing": Timing(1, 0.01, 1, 1),
}  # fmt: skip


def make_models(folder: Path, names: tuple[str, ...] = MODELS) -> None:
    """A tiny random pipeline of each family."""
    tokenizer = make_tokenizer(folder.parent / "tokenizer")
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("0\n1\n2\n3\n")
    for name in names:
        torch.manual_seed(0)
        VARIANTS[name][1](tokenizer).save_pretrained(folder / name.replace(" ", "_").replace(",", ""))


def make_runs(folder: Path, teacher: Path) -> None:
    """A finished run of one step in `folder`/run, with checkpoints, logs, caches and a pipeline."""
    words = [*FAST, f"teacher.path={teacher}", f"output={folder}"]
    train(load(RECIPES / "dmd.yaml", words))
    fewer_teacher_steps(folder / "run" / "pipeline" / "distill.json")
    for name in ("prompts.txt", "samples"):
        (folder / name).unlink(missing_ok=True)


def fewer_teacher_steps(record: Path) -> None:
    """Let evaluations sample the teacher of an export in one step, because 50 are slow."""
    values = json.loads(record.read_text())
    values["teacher"] |= {"num_steps": 1, "call": values["teacher"]["call"] | {"num_inference_steps": 1}}
    record.write_text(json.dumps(seal(values)))


def make_data(folder: Path) -> None:
    """Captioned images as files, metadata, parquet and tar, and tables of prompts."""
    import pyarrow
    from pyarrow import parquet

    images = folder / "images"
    images.mkdir(parents=True)
    rows, generator = [], np.random.default_rng(0)
    with tarfile.open(folder / "images.tar", "w") as archive:  # WebDataset wants one type of image in an archive
        for number in range(4):
            image = Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            png, caption = io.BytesIO(), f"a photo of a bag, {number}"
            image.save(png, "PNG")
            file = images / f"{number}{('.png', '.jpg')[number % 2]}"
            image.save(file)
            rows.append({"file_name": file.name, "text": caption})
            for name, data in ((f"{number}.png", png.getvalue()), (f"{number}.txt", caption.encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["text"] for row in rows]
    (folder / "captions").mkdir()
    for number, text in enumerate(texts):
        (folder / "captions" / f"{number}.txt").write_text(text)
        (folder / "captions" / f"{number}.png").write_bytes((images / "0.png").read_bytes())
    (folder / "prompts.txt").write_text("\n".join(texts))
    (folder / "prompts.csv").write_text("text,n\n" + "".join(f'"{text}",1\n' for text in texts))
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"json": {"caption": t}, "prompt": t}) + "\n" for t in texts)
    )
    stored = [{"image": {"bytes": (images / "0.png").read_bytes(), "path": None}, "text": text} for text in texts]
    parquet.write_table(pyarrow.Table.from_pylist(stored), folder / "images.parquet")


def make_references(folder: Path) -> None:
    """Protocols, statistics of features, prompts and images."""
    make_data(folder / "data")
    pixels = extractor("pixels", torch.device("cpu"))
    features = torch.randn(300, 192, generator=torch.Generator().manual_seed(0))
    made = Reference(*statistics(features), features)
    save(folder / "reference.npz", made, pixels)
    np.savez(folder / "plain.npz", mu=made.mean.numpy(), sigma=made.covariance.numpy())
    values = {
        "samples": 2,
        "batch_size": 2,
        "features": "pixels",
        "seed": 0,
        "prompts": "prompts.txt",
        "reference": "reference.npz",
    }
    (folder / "protocol.yaml").write_text(yaml.safe_dump(values))
    (folder / "prompts.txt").write_text("a photo of a bag\na coat\n")


@dataclass(frozen=True)
class Case:
    """The commands of one case. Each method is one command and returns its exit code.

    Attributes:
        folder: The case's folder, with the damaged inputs in `in`; commands write into `out`.
        teacher: An undamaged pipeline.
        rng: The source of randomness.
    """

    folder: Path
    teacher: Path
    rng: random.Random

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def fewstep(self, *words: object) -> int:
        return run_click(fewstep, [str(word) for word in words], "fewstep")

    def eval(self, *words: object) -> int:
        return run_click(evaluate, [str(word) for word in words], "fewstep eval")

    def compare(self, run: Path, **options: Any) -> int:
        """`fewstep eval RUN` with short measurements."""
        return run_cli(lambda: compare([run], self.out, **(QUICK | options)) and None)

    def train(self, method: str, *words: object) -> int:
        recipe = RECIPES / f"{method}.yaml"
        return self.fewstep("train", recipe, *FAST, f"output={self.out}", f"teacher.path={self.teacher}", *words)

    def demo_of(self, run: Path, prompt: str = "a coat") -> int:
        def show(demo: Any, *_: object) -> None:
            demo.generate(Request(prompt, 1, 1, 1))

        return run_cli(lambda: serve_runs([run], port=0, show=show))

    def one_of(self, *names: str) -> Path:
        return self.inputs / self.rng.choice(names)

    # models

    def describe(self) -> int:
        return self.fewstep("describe", self.inputs)

    def memory(self) -> int:
        words = [*FAST, "teacher.family=auto", f"teacher.path={self.inputs}", "teacher.guidance=1.0"]
        return self.fewstep("memory", RECIPES / "dmd.yaml", *words)

    def check(self) -> int:
        return self.fewstep("check", self.inputs)

    @property
    def prompts_of_model(self) -> str:
        """Prompts that the pipeline takes: text, class numbers, or none."""
        index = self.inputs / "model_index.json"
        text = index.read_text(errors="replace") if index.is_file() and not index.is_symlink() else ""
        return str(self.teacher.parent / "classes.txt") if "DiTP" in text else "none" if "DDPM" in text else "pocket"

    def distil(self, *words: str) -> int:
        images, prompts = self.teacher.parents[1] / "data" / "images", self.prompts_of_model
        method, data = self.rng.choice((("dmd", f"data.prompts={prompts}"), ("scm", f"data.images={images}")))
        if prompts == "none":
            method, data = "scm", f"data.images={images}"
        elif prompts != "pocket":
            method, data = "dmd", f"data.prompts={prompts}"
        fixed = ["teacher.family=auto", "teacher.guidance=1.0", f"teacher.path={self.inputs}", data]
        return self.train(method, *fixed, *words)

    def dry_run(self) -> int:
        return self.distil("--dry-run")

    def evaluate_model(self) -> int:
        prompts = "none" if "classes" in self.prompts_of_model else self.prompts_of_model
        reference = str(self.teacher.parent / "reference.npz")
        return self.compare(self.inputs, features="pixels", steps="1", prompts=prompts, reference=reference)

    def demo_model(self) -> int:
        return self.demo_of(self.inputs, "0" if "classes" in self.prompts_of_model else "a coat")

    # runs

    @property
    def run(self) -> Path:
        return self.inputs / "run"

    def export(self) -> int:
        return self.fewstep("export", self.run)

    def sample(self) -> int:
        return self.fewstep("sample", self.run, "--prompt", "a coat", "--out", self.out / "x.png")

    def resume(self) -> int:
        words = [f"output={self.inputs}", "name=run", f"train.steps={self.rng.choice((1, 2))}"]
        return self.fewstep("train", self.run / "recipe.yaml", *words)

    def check_run(self) -> int:
        return self.fewstep("check", self.run)

    def evaluate_run(self) -> int:
        return self.compare(self.run)

    def demo_run(self) -> int:
        return self.demo_of(self.run)

    # data

    def images(self) -> int:
        return self.train("scm", f"data.images={self.one_of('images', 'captions')}")

    def shards(self) -> int:
        streaming = self.rng.choice(("true", "false"))
        return self.train(
            "scm", f"data.images={self.one_of('images.parquet', 'images.tar')}", f"data.streaming={streaming}"
        )

    def prompts(self) -> int:
        return self.train("dmd", f"data.prompts={self.one_of('prompts.txt', 'prompts.csv', 'prompts.jsonl')}")

    def eval_images(self) -> int:
        return self.eval("images", self.inputs / "images", self.inputs / "captions", "--features", "pixels")

    def eval_stats(self) -> int:
        return self.eval("stats", self.inputs / "images", "-o", self.out / "s.npz", "--features", "pixels")

    # references

    def eval_statistics(self) -> int:
        reference = self.one_of("reference.npz", "plain.npz")
        return self.eval("images", self.inputs / "data" / "images", reference, "--features", "pixels")

    def protocol(self) -> int:
        file = self.inputs / "protocol.yaml"
        return self.eval(self.teacher, "--steps", 1, "--out", self.out, "--protocol", file, "--samples", 2)

    def reference(self) -> int:
        files = {"reference": str(self.inputs / "reference.npz"), "prompts": str(self.inputs / "prompts.txt")}
        return self.compare(self.teacher, features="pixels", steps="1", **files)


# How often each command of a kind is chosen.
COMMANDS: dict[str, dict[Callable[[Case], int], int]] = {
    "models": {Case.describe: 6, Case.memory: 3, Case.check: 1, Case.distil: 3, Case.dry_run: 1, Case.evaluate_model: 3,
               Case.demo_model: 2},
    "runs": {Case.export: 4, Case.sample: 3, Case.resume: 4, Case.check_run: 1, Case.evaluate_run: 3, Case.demo_run: 1},
    "data": {Case.images: 4, Case.shards: 4, Case.prompts: 3, Case.eval_images: 4, Case.eval_stats: 3},
    "references": {Case.eval_statistics: 5, Case.protocol: 4, Case.reference: 4},
}  # fmt: skip
