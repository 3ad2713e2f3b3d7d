"""The training loop's memory beside a plain script's, and one process against two: parts of `benchmarks.step`.

Memory is the peak of a process of its own, without evaluation and export, which the script has not: of its tensors
(`distill.training.meta_device.MemoryTracker`), and of the whole process above what importing took, code and interpreter included (on a GPU:
what its allocator has reserved); beside it what has to be held: the teacher's pipeline, for each network that trains
its weights, gradients and two moments, and the student's average. Scaling is wall-clock: one process of one thread
against two (DDP over gloo) that share the recipe's batch; it needs two idle cores.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import plain
from distill.config.recipe import load
from distill.train import train
from distill.training.meta_device import MemoryTracker

ROOT = Path(__file__).parents[1]
BATCHES = {"dmd": 32, "scm": 64}  # of recipes/pocket
SETTINGS = ["train.evaluate_every=0", "train.evaluate_samples=2", "train.evaluate_teacher_steps=1"]
SETTINGS += ["train.tracker=none", "train.checkpoint_every=1000000", "method.adaptation_steps=1"]
WARM = 2  # steps that are not counted


def settings(method: str, steps: int, output: str, *more: str) -> list[str]:
    known = SETTINGS if method == "scm" else SETTINGS[:-1]
    return [*known, f"train.steps={steps}", f"output={output}", "train.log_every=1000000", *more]


def recipe_file(method: str) -> Path:
    return ROOT / "recipes" / "pocket" / f"{method}.yaml"


def work(which: str, method: str) -> None:
    """A few steps of the "loop" or of the "plain" script."""
    if which == "plain":
        script = plain.METHODS[method](BATCHES[method])
        for _ in range(5):
            script[0]()
    else:
        with tempfile.TemporaryDirectory() as output, ExitStack() as without:
            for part in ("Monitor", "describe", "export"):
                without.enter_context(patch(f"distill.train.{part}"))
            train(load(recipe_file(method), settings(method, 5, output)))


def peak(which: str, method: str, what: str) -> float:
    """Peak MB of this process above its state before any weights loaded: of its "tensors", or "resident"."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work(which, method)
        most = torch.cuda.max_memory_allocated if what == "tensors" else torch.cuda.max_memory_reserved
        return most() / 2**20
    if what == "tensors":
        with MemoryTracker([], torch.device("cpu")) as live:
            work(which, method)
        return live.peak / 2**20
    before = _most()
    work(which, method)
    return _most() - before


def _most() -> float:
    """Peak resident MB of this process so far; not what getrusage says, which counts the parent's from before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def held(method: str) -> float:
    """MB that have to be there."""
    pipe = plain.load()[0]
    modules = (pipe.unet, pipe.vae, pipe.text_encoder)
    network, whole = (sum(p.numel() for m in ms for p in m.parameters()) * 4 / 2**20 for ms in ([pipe.unet], modules))
    return whole + network * (1 + 4 * (2 if method == "dmd" else 1))


def in_its_own_process(*what: str) -> float:
    command = [sys.executable, "-m", "benchmarks.peaks", *what]
    # Freed memory goes back to the system at once: the peak is then what is in use, not what was once.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | frugal)
    return float(done.stdout.strip().splitlines()[-1])


def wall(method: str, processes: int, steps: int) -> float:
    """Wall seconds of a step, the first few left out, on `processes` of one thread each that share the batch."""
    with tempfile.TemporaryDirectory() as output, socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
        shared = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        if processes > 1:
            shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        probe.close()
        overrides = settings(method, steps, output, "name=run", "train.log_every=1")
        command = [sys.executable, "-m", "distill.train", str(recipe_file(method)), *overrides]
        runs = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(processes)
        ]
        if any([run.wait() for run in runs]):
            raise ValueError(f"{' '.join(command)} failed on {processes} processes")
        lines = (Path(output) / "run" / "log.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return (seconds[-1] - seconds[WARM]) / (len(seconds) - 1 - WARM)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def memories(methods: Sequence[str]) -> list[str]:
    rows = []
    for method in methods:
        must = held(method)
        row = [method]
        for what in ("tensors", "resident"):
            loop, script = (in_its_own_process(which, method, what) for which in ("loop", "plain"))
            row += [f"{loop:.1f}", f"{script:.1f}", f"{loop / script:.3f}"]
            if what == "tensors":
                row += [f"{must:.1f}", f"{loop / must:.2f}"]
        rows.append(row)
    head = ["method", "tensors' peak, MB", "plain script's", "/ plain", "has to be held", "/ held"]
    return table([*head, "resident peak, MB", "plain script's", "/ plain"], rows)


def scaling(methods: Sequence[str], steps: int) -> list[str]:
    rows = []
    for method in methods:
        one, two = (wall(method, processes, steps) for processes in (1, 2))
        rows.append([method, f"{one * 1000:.0f}", f"{two * 1000:.0f}", f"{one / two:.2f} x"])
    return table(["method", "1 process, ms a step", "2 processes", "speed-up"], rows)


def main() -> None:
    torch.set_num_threads(1)
    print(peak(*sys.argv[1:]))


if __name__ == "__main__":
    main()
