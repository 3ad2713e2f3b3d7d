"""Fill the disk at many moments of a run and of an evaluation, make room, and continue.

    python -m tests.faults.full_disk [--sizes 12] [--teacher pocket]

The output folder is a small tmpfs (this needs root), so the disk becomes full at another moment for each size: the
encoded prompts, the first evaluation, a grid, a log line, a checkpoint, the export, or a row or file of the report.
Correct is: the command ends with code 0 or with one error message (code 2), without a traceback and without temporary
files; after the disk is enlarged, the same command ends with code 0, and its weights are bitwise those of an
undisturbed run. Prints one line of JSON; exit code 1 if a size fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from distill.config.recipe import load
from distill.train import train
from eval.compare import compare
from teachers.support.errors import run_cli
from tests.commands import ONE_OR_TWO_CALLS
from tests.faults import kill

SETTINGS = [*kill.SETTINGS, "train.evaluate_every=2", "train.steps=6", "name=run"]


def fork(work: Callable[[], Any], log: Path) -> int:
    """Run `work` as a command in a child process; its output is appended to `log`. Returns its exit code."""
    child = os.fork()
    if not child:
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            tqdm.set_lock(threading.RLock())  # the default lock is shared by processes
            os._exit(run_cli(work))
        except BaseException as error:
            os.write(2, f"Traceback of {error!r}\n".encode())
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def evaluate(run: Path, out: Path) -> None:
    quick = {"few_steps": (1,), "lpips": None, "timing": ONE_OR_TWO_CALLS, "prompts": "pocket"}
    compare([run], out, samples=2, batch_size=2, **quick)


def case(disk: Path, size: int, common: list[str], whole: Path, log: Path) -> dict[str, Any]:
    """Train and evaluate on a disk of `size` kB, then on a large one."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
    try:
        recipe = load(kill.RECIPES / "dmd.yaml", [*common, f"output={disk}"])
        codes = [fork(lambda: train(recipe), log)]
        if codes == [0]:
            codes.append(fork(lambda: evaluate(recipe.folder, disk / "report"), log))
        left = [str(path.relative_to(disk)) for path in disk.rglob(".*.tmp")]
        subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
        again = [fork(lambda: train(recipe), log), fork(lambda: evaluate(recipe.folder, disk / "report"), log)]
        same = again == [0, 0] and kill.same(recipe.folder, whole)
        return {"codes": codes, "left": left, "correct": same and set(codes) <= {0, 2} and not left}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=12)
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline with the same shapes')
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "disk").mkdir()
        log = folder / "log"
        common = [*SETTINGS, f"teacher.path={args.teacher}"]
        recipe = load(kill.RECIPES / "dmd.yaml", [*common, f"output={folder / 'whole'}"])
        if fork(lambda: train(recipe), log) or fork(lambda: evaluate(recipe.folder, folder / "whole" / "report"), log):
            sys.exit(log.read_text())
        used = sum(file.stat().st_size for file in (folder / "whole").rglob("*") if file.is_file()) // 1024
        sizes = [used * (number + 1) // args.sizes for number in range(args.sizes)]
        results = [case(folder / "disk", size, common, recipe.folder, log) for size in sizes]
        text = log.read_text(errors="replace")
    ends = Counter("stopped with a message" if 2 in result["codes"] else "continued" for result in results)
    wrong = [result | {"kB": size} for size, result in zip(sizes, results, strict=True) if not result["correct"]]
    summary = {"sizes": len(sizes), "largest kB": used, **ends, "tracebacks": text.count("Traceback"), "wrong": wrong}
    print(json.dumps(summary))
    if wrong or summary["tracebacks"]:
        print(text[-4000:], file=sys.stderr)
    sys.exit(int(bool(wrong or summary["tracebacks"])))


if __name__ == "__main__":
    main()
