"""Kill a run again and again, in the middle of saves too, and compare its end with that of an undisturbed one.

    python -m tests.faults.kill [--kills 50] [--teacher pocket] [--seed 0]

Each life is a fork of one interpreter that has imported everything, so that lives are short; it runs `train` until it
ends or SIGKILL comes: after a random number of steps, or (every other time) as soon as a checkpoint is being written,
after a random few milliseconds. Prints one line of JSON; exit code 1 unless the weights are bitwise the same.
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


def live(recipe: Recipe) -> int:
    """A life of the run: the child's process number."""
    child = os.fork()
    if child:
        return child
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        train(recipe)
        os._exit(0)
    except BaseException as error:
        (recipe.folder / "died.txt").write_text(repr(error))
        os._exit(1)


def reached(folder: Path) -> int:
    """The last step that the run's log tells of."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:
            continue
    return 0


def saved(folder: Path) -> int:
    return max(checkpoint.steps(folder / "checkpoints"), default=0)


def saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".*.tmp"))


def ended(child: int) -> bool:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid and status:
        raise RuntimeError(f"a life ended with status {status} by itself")
    return bool(pid)


def kill_often(recipe: Recipe, kills: int, draw: random.Random) -> dict[str, float]:
    """Run `recipe` to its end through `kills` kills (fewer only if it ends before): what happened."""
    folder, done, in_saves, lost = recipe.folder, 0, 0, []
    while True:
        child, begin = live(recipe), saved(folder)
        if done == kills:
            while not ended(child):
                time.sleep(0.05)
            break
        in_save, target = done % 2 == 0, begin + draw.randint(1, 5)
        over = False
        while not (over := ended(child)):
            if in_save and reached(folder) > begin and saving(folder):
                time.sleep(draw.random() * 0.03)
                break
            if not in_save and reached(folder) >= target:
                break
            time.sleep(0.001)
        if over:
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        in_saves += saving(folder)
        lost.append(reached(folder) - saved(folder))
    return {"kills": done, "recovered": done, "while saving": in_saves, "most steps lost": max(lost, default=0),
            "mean steps lost": round(sum(lost) / max(1, len(lost)), 2)}  # fmt: skip


def same(one: Path, two: Path) -> bool:
    """Whether two runs ended with the same weights, averages and optimizer states, bit for bit."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="of the run (default: 4 a kill)")
    parser.add_argument("--method", default="dmd", choices=["dmd", "scm"])
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline of its shape')
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        common = [*SETTINGS, f"output={temporary}", f"train.steps={args.steps or 4 * args.kills}"]
        common.append(f"teacher.path={args.teacher}")
        calm, hunted = (load(RECIPES / f"{args.method}.yaml", [*common, f"name={n}"]) for n in ("calm", "hunted"))
        found = kill_often(hunted, args.kills, random.Random(args.seed))
        child = live(calm)
        while not ended(child):
            time.sleep(0.05)
        identical = same(calm.folder, hunted.folder)
    print(json.dumps(found | {"bitwise the undisturbed run": identical}))
    sys.exit(int(not identical or found["kills"] < args.kills))


if __name__ == "__main__":
    main()
