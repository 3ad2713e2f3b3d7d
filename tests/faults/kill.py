"""Kill a run repeatedly, also while it saves, and compare its result with that of an uninterrupted run.

    python -m tests.faults.kill [--kills 50] [--teacher pocket] [--seed 0]

Each process is a fork of one interpreter that has imported everything, so processes start fast. It runs `train` until
the run ends or the process gets SIGKILL: after a random number of steps, or (every other time) a few random
milliseconds after the start of a save. Prints one line of JSON; exit code 1 unless the weights are bitwise the same.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from distill.config.recipe import Recipe, load
from distill.train import train
from distill.training import checkpoint
from tests.faults.kills import start

RECIPES = Path(__file__).parents[2] / "recipes" / "pocket"

SETTINGS = [
    "train.batch_size=2",
    "train.checkpoint_every=3",
    "train.log_every=1",
    "train.evaluate_every=0",
    "train.evaluate_samples=4",
    "train.evaluate_teacher_steps=2",
    "train.tracker=none",
]


def logged(folder: Path) -> int:
    """The last step in the run's log."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:
            continue
    return 0


def saved(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max(checkpoint.saved_steps(folder / "checkpoints"), default=0)


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((folder / "checkpoints").glob(".*.tmp"))


def ended(child: int) -> bool:
    """Whether the child has finished the run; RuntimeError if it failed."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid and status:
        raise RuntimeError(f"a process failed with status {status}")
    return bool(pid)


def train_with_kills(recipe: Recipe, kills: int, rng: random.Random) -> dict[str, float]:
    """Train until the end with `kills` kills, or fewer if the run ends earlier; returns what happened."""
    folder, done, in_saves, lost = recipe.folder, 0, 0, []
    while True:
        child, first = start(lambda: train(recipe), recipe.folder / "error.txt"), saved(folder)
        if done == kills:
            while not ended(child):
                time.sleep(0.05)
            break
        in_save, target = done % 2 == 0, first + rng.randint(1, 5)
        finished = False
        while not (finished := ended(child)):
            if in_save and logged(folder) > first and saving(folder):
                time.sleep(rng.random() * 0.03)
                break
            if not in_save and logged(folder) >= target:
                break
            time.sleep(0.001)
        if finished:
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        in_saves += saving(folder)
        lost.append(logged(folder) - saved(folder))
    return {"kills": done, "recovered": done, "while saving": in_saves, "most steps lost": max(lost, default=0),
            "mean steps lost": round(sum(lost) / max(1, len(lost)), 2)}  # fmt: skip


def same(one: Path, two: Path) -> bool:
    """Whether two runs have bitwise the same weights, EMA and optimizer states."""
    ends = [checkpoint.load_newest(folder / "checkpoints") for folder in (one, two)]
    assert ends[0] is not None and ends[1] is not None
    return ends[0].meta["step"] == ends[1].meta["step"] and all(
        _equal(getattr(ends[0], part), getattr(ends[1], part)) for part in ("weights", "ema", "optimizers")
    )


def _equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(_equal(one[k], two[k]) for k in one)
    return one == two


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="steps of the run (default: 4 for each kill)")
    parser.add_argument("--method", default="dmd", choices=["dmd", "scm"])
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline with the same shapes')
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        common = [*SETTINGS, f"output={temporary}", f"train.steps={args.steps or 4 * args.kills}"]
        common.append(f"teacher.path={args.teacher}")
        whole, killed = (load(RECIPES / f"{args.method}.yaml", [*common, f"name={n}"]) for n in ("whole", "killed"))
        result = train_with_kills(killed, args.kills, random.Random(args.seed))
        child = start(lambda: train(whole), whole.folder / "error.txt")
        while not ended(child):
            time.sleep(0.05)
        identical = same(whole.folder, killed.folder)
    print(json.dumps(result | {"bitwise identical": identical}))
    sys.exit(int(not identical or result["kills"] < args.kills))


if __name__ == "__main__":
    main()
