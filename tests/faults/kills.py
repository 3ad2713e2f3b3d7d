"""Kill train, pairs, encode, eval and export at random moments, and compare their results with undisturbed ones.

    python -m tests.faults.kills [--kills 1000] [--work FOLDER] [--seed 0] [--only train ...]

Work is done in rounds: a process does it in an empty folder and gets SIGKILL at a random moment, or a few milliseconds
after it has begun to write a temporary file; then the same work is started again in the same folder, until a process
ends by itself. What it leaves (weights, EMA, optimizer states, shards, features, figures) must be bitwise what one
undisturbed process leaves. Every process is a fork of one interpreter that has imported everything.

Each round is a line of FOLDER/results.jsonl, and the same command continues after an interruption, until all kinds of
work together have the number of kills. Prints a table; exit code 1 if a result differs or a process failed.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from distill.config.recipe import load
from distill.data import dataset, shards
from distill.export import export_run
from distill.pairs import make_pairs
from distill.train import train
from distill.training.setup import load_teacher, plan_data
from eval.compare import compare
from eval.config.options import Timing
from teachers.pocket.parts import make_tokenizer
from teachers.support.files import tensor_bytes
from tests.faults.fuzz_inputs import fewer_teacher_steps
from tests.settings import RECIPES
from tests.teachers.tiny_pipelines import stable_diffusion

WORK = ("train", "pairs", "encode", "eval", "export")
SETTINGS = [
    "name=run", "train.batch_size=2", "train.checkpoint_every=1", "train.log_every=1", "train.evaluate_every=2",
    "train.evaluate_samples=4", "train.evaluate_teacher_steps=2", "train.tracker=none", "evaluation.features=pixels",
    "evaluation.reference=null",
    "train.steps=4",
]  # fmt: skip
PAIRS = ["method.regression_weight=0.25", "method.regression_distance=latent", "method.regression_pairs=24",
         "method.regression_teacher_steps=2"]  # fmt: skip
FIGURES = (
    "name",
    "num_steps",
    "nfe",
    "frechet_distance",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "psnr_to_teacher",
)
TIMING = Timing(repeats=2, seconds=0.05, min_repeats=1, part_repeats=1)
FINISH = 0.1  # the share of processes that are not killed
LIMIT = 1800.0  # seconds in which a process must end, also on a busy machine


def recipe(method: str, base: Path, output: Path, *words: str) -> Any:
    fixed = [f"teacher.path={base / 'teacher'}", f"output={output}", f"data.prompts={base / 'prompts.txt'}"]
    return load(RECIPES / f"{method}.yaml", [*SETTINGS, *fixed, *words])


def make_base(base: Path) -> None:
    """The inputs: a tiny teacher, prompts, images, a finished run, and a stopped one without a pipeline."""
    shards.SHARD = 4  # also in the processes that are forked from this one
    if (base / "done").is_file():
        return
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    torch.manual_seed(0)
    stable_diffusion(make_tokenizer(base / "tokenizer")).save_pretrained(base / "teacher")
    (base / "prompts.txt").write_text("".join(f"a photo of bag {number}\n" for number in range(12)))
    (base / "images").mkdir()
    pixels = np.random.default_rng(0)
    for number in range(24):
        image = Image.fromarray(pixels.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        image.save(base / "images" / f"{number:02d}.png")
        (base / "images" / f"{number:02d}.txt").write_text(f"a photo of bag {number}")
    wait(start(lambda: train(recipe("dmd", base, base / "finished"))))
    fewer_teacher_steps(base / "finished" / "run" / "pipeline" / "distill.json")
    shutil.copytree(base / "finished", base / "stopped")
    shutil.rmtree(base / "stopped" / "run" / "pipeline")
    (base / "stopped" / "run" / "exported.json").unlink()
    (base / "done").touch()


def encode(base: Path, folder: Path) -> None:
    settings = recipe("scm", base, folder, f"data.images={base / 'images'}", "data.prompts=null")
    teacher = load_teacher(settings, torch.device("cpu"))
    dataset.prepare(plan_data(settings), teacher, settings, Accelerator(cpu=True))


def evaluate(base: Path, folder: Path) -> None:
    options: dict[str, Any] = {"few_steps": (1,), "lpips": None, "samples": 8, "batch_size": 2, "timing": TIMING}
    compare([base / "finished" / "run"], folder, command="kills", **options)


def export(base: Path, folder: Path) -> None:
    if not (folder / "run").is_dir():
        shutil.copytree(base / "stopped" / "run", folder / "copy", dirs_exist_ok=True)
        (folder / "copy").replace(folder / "run")
    export_run(folder / "run")


DO: dict[str, Callable[[Path, Path], object]] = {
    "train": lambda base, folder: train(recipe("dmd", base, folder)),
    "pairs": lambda base, folder: make_pairs(recipe("dmd", base, folder, *PAIRS)),
    "encode": encode,
    "eval": evaluate,
    "export": export,
}


def digest(kind: str, folder: Path) -> str:
    """A hash of the results in `folder`: all tensors, and the figures that are not times."""
    found = hashlib.sha256()
    patterns = ("**/*.safetensors", "**/optimizers.pt", "**/images.png")
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    if stray := sorted(folder.glob("run/**/*.tmp")):  # the cache that runs share keeps those of killed processes
        found.update(str(stray).encode())
    for file in sorted(files):
        name = file.relative_to(folder) if kind != "eval" else file.name  # rows are named by keys of the machine
        found.update(str(name).encode() + content(file))
    for file in sorted(folder.rglob("history.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found.update(json.dumps([(line["step"], line["held_out_frechet"]) for line in lines]).encode())
    if kind == "eval":
        rows = json.loads((folder / "report.json").read_text())["rows"]
        found.update(json.dumps([{key: row.get(key) for key in FIGURES} for row in rows]).encode())
    return found.hexdigest()


def content(file: Path) -> bytes:
    """A hash of a file; of a .safetensors file its tensors only, since its metadata can have times."""
    if file.suffix != ".safetensors":
        return hashlib.sha256(file.read_bytes()).digest()
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor_bytes(tensor))
    return found.digest()


def start(work: Callable[[], object], errors: Path | None = None) -> int:
    """Do `work` in a child process; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        tqdm.set_lock(threading.RLock())  # the default lock is shared by processes, and a killed one may hold it
        torch.set_num_threads(1)
        work()
        os._exit(0)
    except BaseException as error:
        if errors is not None:
            errors.write_text(repr(error))
        os._exit(1)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(child: int, folder: Path, rng: random.Random, usual: float) -> int | None:
    """Kill `child` at a random moment; returns its exit code if it ended before, or None."""
    spare, in_write = rng.random() < FINISH, rng.random() < 0.5
    moment, began = time.monotonic() + rng.random() ** 2 * usual, time.monotonic()  # early: a later process goes on
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > LIMIT:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -1
        if not spare and time.monotonic() > moment and (not in_write or any(folder.rglob(".*.tmp"))):
            break
        time.sleep(0.001 if in_write else 0.003)
    time.sleep(rng.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def do_round(kind: str, base: Path, folder: Path, rng: random.Random, expected: str, usual: float) -> dict[str, Any]:
    """Do one kind of work under kills until a process ends by itself."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kills, began, errors = 0, time.monotonic(), folder.parent / "error.txt"
    errors.unlink(missing_ok=True)
    while (code := killed(start(lambda: DO[kind](base, folder), errors), folder, rng, usual)) is None:
        kills += 1
    record: dict[str, Any] = {"work": kind, "kills": kills, "seconds": round(time.monotonic() - began, 1)}
    if code:
        return record | {"equal": False, "error": errors.read_text() if errors.is_file() else f"exit code {code}"}
    return record | {"equal": digest(kind, folder) == expected}


def undisturbed(kind: str, base: Path, folder: Path) -> tuple[str, float]:
    """The digest and the seconds of two undisturbed processes, which must agree."""
    results = []
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began = time.monotonic()
        if code := wait(start(lambda: DO[kind](base, folder), folder.parent / "error.txt")):
            raise RuntimeError(f"{kind} failed with exit code {code}: {(folder.parent / 'error.txt').read_text()}")
        results.append((digest(kind, folder), time.monotonic() - began))
    if results[0][0] != results[1][0]:
        raise RuntimeError(f"two undisturbed processes of {kind} have different results")
    return results[1]


def table(records: list[dict[str, Any]]) -> str:
    lines = ["work    kills  rounds  equal  seconds"]
    for kind in WORK:
        own = [record for record in records if record["work"] == kind]
        sums = [sum(record[key] for record in own) for key in ("kills", "equal", "seconds")]
        lines.append(f"{kind:<7} {sums[0]:>5}  {len(own):>6}  {sums[1]:>5}  {sums[2]:>7.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=WORK, default=WORK)
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = args.work.resolve()
    results, base = work / "results.jsonl", work / "base"
    make_base(base)
    records = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    rng = random.Random(f"{args.seed}/{len(records)}")
    known = {kind: undisturbed(kind, base, work / "round") for kind in args.only}
    while sum(record["kills"] for record in records) < args.kills:
        kind = min(args.only, key=lambda name: sum(r["kills"] for r in records if r["work"] == name))
        records.append(do_round(kind, base, work / "round", rng, *known[kind]))
        with results.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
    print(table(records))
    sys.exit(int(not all(record["equal"] for record in records)))


if __name__ == "__main__":
    main()
