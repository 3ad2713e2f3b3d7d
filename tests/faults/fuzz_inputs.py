"""The undamaged inputs of the fuzz, and the commands that read them, by kind: models, runs, data, references."""

import io
import json
import random
import tarfile
from collections.abc import Callable
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
from teachers.pocket.parts import make_tokenizer
from teachers.support.errors import run_cli, run_click
from tests.settings import RECIPES
from tests.teachers.families.variants import VARIANTS

KINDS = ("models", "runs", "data", "references")
MODELS = (
    "Stable Diffusion",
    "pixels, v",
    "Stable Diffusion XL",
    "PixArt-Alpha",
    "Sana",
    "DiT",
    "Flux",
    "Stable Diffusion 3",
)
FAST = [
    "train.batch_size=2", "train.log_every=1", "train.checkpoint_every=1", "train.evaluate_every=1", "train.tracker=none",
    "train.evaluate_samples=2", "train.evaluate_teacher_steps=1", "evaluation.features=pixels", "train.steps=1", "name=run",
]  # fmt: skip
QUICK: dict[str, Any] = {
    "few_steps": (), "lpips": None, "samples": 2, "batch_size": 2, "timing": Timing(1, 0.01, 1, 1),
}  # fmt: skip
Command = Callable[[Path, random.Random], int]  # from the case's folder


def make_models(folder: Path, names: tuple[str, ...] = MODELS) -> None:
    """A tiny random pipeline of each family."""
    tokenizer = make_tokenizer(folder.parent / "tokenizer")
    for name in names:
        found = next((known for known in VARIANTS if known.lower() == name.lower()), None)
        if found is not None:
            torch.manual_seed(0)
            VARIANTS[found][1](tokenizer).save_pretrained(folder / name.replace(" ", "_").replace(",", ""))


def make_runs(folder: Path, teacher: Path) -> None:
    """A finished run of one step in `folder`/run, with checkpoints, logs, caches and a pipeline."""
    words = [*FAST, f"teacher.path={teacher}", f"output={folder}"]
    train(load(RECIPES / "dmd.yaml", words))
    for name in ("prompts.txt", "samples"):
        (folder / name).unlink(missing_ok=True)


def make_data(folder: Path) -> None:
    """Captioned images as files, metadata, parquet and tar, and tables of prompts."""
    import pyarrow
    from pyarrow import parquet

    images = folder / "images"
    images.mkdir(parents=True)
    rows, generator = [], np.random.default_rng(0)
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number in range(4):
            buffer = io.BytesIO()
            suffix, kind = ((".png", "PNG"), (".jpg", "JPEG"))[number % 2]
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, kind)
            content, caption = buffer.getvalue(), f"a photo of a bag, {number}"
            (images / f"{number}{suffix}").write_bytes(content)
            rows.append({"file_name": f"{number}{suffix}", "text": caption})
            for name, data in ((f"{number}{suffix}", content), (f"{number}.txt", caption.encode())):
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
    features = np.random.default_rng(0).normal(size=(300, 192))
    arrays = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False), "features": features.astype(np.float32)}
    np.savez(folder / "reference.npz", **arrays, extractor=np.array("pixels"), size=np.array(0))
    np.savez(folder / "plain.npz", mu=arrays["mu"], sigma=arrays["sigma"])
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


def click(*words: object) -> int:
    """`fewstep WORDS`."""
    return run_click(fewstep, [str(word) for word in words], "fewstep")


def evaluated(*words: object) -> int:
    """`fewstep eval WORDS`."""
    return run_click(evaluate, [str(word) for word in words], "fewstep eval")


def compared(runs: list[Path], out: Path, **options: Any) -> int:
    """`fewstep eval RUNS` with short measurements."""
    return run_cli(lambda: compare(runs, out, **(QUICK | options)) and None)


def _trained(method: str, case: Path, *words: str) -> int:
    return click("train", RECIPES / f"{method}.yaml", *FAST, f"output={case / 'out'}", *words)


def _demo(run: Path) -> int:
    def show(demo: Any, *_: object) -> None:
        demo.generate("a coat", 1, 1, 1)

    return run_cli(lambda: serve_runs([run], port=0, show=show))


def commands(kind: str, teacher: Path) -> list[tuple[str, int, Command]]:
    """The commands of a kind: a name, how often it is chosen, and what runs it in a case's folder.

    Args:
        kind: One of `KINDS`.
        teacher: An undamaged pipeline for kinds that need one.
    """
    prompts = "a coat"
    return {
        "models": [
            ("describe", 6, lambda c, r: click("describe", c / "in")),
            ("memory", 3, lambda c, r: click("memory", RECIPES / "dmd.yaml", *FAST, f"teacher.path={c / 'in'}")),
            ("check", 1, lambda c, r: click("check", c / "in")),
            ("train", 3, lambda c, r: _trained(r.choice(("dmd", "scm")), c, f"teacher.path={c / 'in'}")),
            ("dry run", 1, lambda c, r: _trained("dmd", c, f"teacher.path={c / 'in'}", "--dry-run")),
            ("eval", 3, lambda c, r: compared([c / "in"], c / "out", features="pixels", steps="1", **_external(teacher, c))),
            ("demo", 2, lambda c, r: _demo(c / "in")),
        ],
        "runs": [
            ("export", 4, lambda c, r: click("export", c / "in" / "run")),
            ("sample", 3, lambda c, r: click("sample", c / "in" / "run", "--prompt", prompts, "--out", c / "out" / "x.png")),
            ("train", 4, lambda c, r: click("train", c / "in" / "run" / "recipe.yaml", f"output={c / 'in'}", "name=run", f"train.steps={r.choice((1, 2))}")),
            ("check", 1, lambda c, r: click("check", c / "in" / "run")),
            ("eval", 3, lambda c, r: compared([c / "in" / "run"], c / "out")),
            ("demo", 1, lambda c, r: _demo(c / "in" / "run")),
        ],
        "data": [
            ("images", 4, lambda c, r: _trained("scm", c, f"data.images={c / 'in' / r.choice(('images', 'captions'))}", f"teacher.path={teacher}")),
            ("shards", 4, lambda c, r: _trained("scm", c, f"data.images={c / 'in' / r.choice(('images.parquet', 'images.tar'))}", f"teacher.path={teacher}", f"data.streaming={r.choice(('true', 'false'))}")),
            ("prompts", 3, lambda c, r: _trained("dmd", c, f"data.prompts={c / 'in' / r.choice(('prompts.txt', 'prompts.csv', 'prompts.jsonl'))}", f"teacher.path={teacher}")),
            ("eval images", 4, lambda c, r: evaluated("images", c / "in" / "images", c / "in" / "captions", "--features", "pixels")),
            ("eval stats", 3, lambda c, r: evaluated("stats", c / "in" / "images", "-o", c / "out" / "s.npz", "--features", "pixels")),
        ],
        "references": [
            ("eval images", 5, lambda c, r: evaluated("images", c / "in" / "data" / "images", c / "in" / r.choice(("reference.npz", "plain.npz")), "--features", "pixels")),
            ("protocol", 4, lambda c, r: evaluated(teacher, "--steps", "1", "--out", c / "out", "--protocol", c / "in" / "protocol.yaml", "--samples", "1")),
            ("reference", 4, lambda c, r: compared([teacher], c / "out", features="pixels", steps="1", reference=str(c / "in" / "reference.npz"), prompts=str(c / "in" / "prompts.txt"))),
            ("inception", 1, lambda c, r: evaluated("images", c / "in" / "data" / "images", c / "in" / "plain.npz", "--inception-weights", c / "in" / r.choice(("reference.npz", "prompts.txt")))),
        ],
    }[kind]  # fmt: skip


def _external(teacher: Path, case: Path) -> dict[str, Any]:
    """Options of an evaluation of a pipeline without a run."""
    index = case / "in" / "model_index.json"
    text = index.read_text(errors="replace") if index.is_file() and not index.is_symlink() else ""
    prompted = not any(name in text for name in ("DDPM", "DiTPipeline"))
    return {"prompts": "pocket" if prompted else "none", "reference": str(teacher.parent / "reference.npz")}
