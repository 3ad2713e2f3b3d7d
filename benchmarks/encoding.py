"""Encoding many captions with the pocket teacher: the first run fills the cache, the second reads it.

    python -m benchmarks.encoding [--captions 10000]

Each run is a separate process. Seconds are wall time of `distill.data.dataset.prepare`, which includes loading the text
encoder. How often the text encoder is loaded and called is counted in transformers' class.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import CLIPTextModel

from distill.config.recipe import load
from distill.config.registry import TEACHERS, find
from distill.config.sections import DTYPES
from distill.data.dataset import prepare
from distill.data.plan import plan
from teachers import pocket


def run(folder: Path) -> dict[str, Any]:
    """Prepare the data of one run: seconds, captions, loads and calls of the text encoder, size of the cache."""
    loads, calls = [], []
    original, forward = CLIPTextModel.from_pretrained.__func__, CLIPTextModel.forward
    CLIPTextModel.from_pretrained = classmethod(lambda cls, *a, **k: loads.append(1) or original(cls, *a, **k))
    CLIPTextModel.forward = lambda self, *a, **k: calls.append(1) or forward(self, *a, **k)
    recipe = load("pocket/dmd", [f"data.prompts={folder / 'prompts.txt'}", f"output={folder}"])
    family = find(TEACHERS, recipe.teacher.family)
    engine = Accelerator(cpu=not torch.cuda.is_available())
    teacher = family.load(recipe.teacher.path, engine.device, DTYPES[recipe.teacher.precision])
    start = time.perf_counter()
    dataset = prepare(plan(recipe.data, False, True), teacher, recipe, engine)
    seconds = time.perf_counter() - start
    shards = list(recipe.cache.rglob("*.safetensors"))
    return {
        "captions": len(dataset.captions),
        "seconds": round(seconds, 2),
        "text encoder loaded": len(loads),
        "text encoder called": len(calls),
        "shards": len(shards),
        "MB": round(sum(file.stat().st_size for file in shards) / 2**20, 1),
    }


def main() -> None:
    """Run the preparation twice and print both results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=10_000, help="distinct captions (default: 10,000)")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args.run)))
        return
    captions = [caption for caption in pocket.all_captions() if len(caption.split()) <= 3]
    with tempfile.TemporaryDirectory() as temporary:
        lines = [f"{captions[i % len(captions)]} {i}" for i in range(args.captions)]
        (Path(temporary) / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
        for name in ("first run", "second run"):
            command = [sys.executable, "-m", "benchmarks.encoding", "--run", temporary]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, encoding="utf-8")
            print(f"{name}: {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
