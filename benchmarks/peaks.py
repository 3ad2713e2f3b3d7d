"""Memory of the training loop against a plain script, and one process against two: parts of `benchmarks.step`.

Each peak is measured in its own process, without evaluation and export, which the plain script does not have. There are
two peaks: of the tensors (`distill.training.meta_device.MemoryTracker`) and of the process's resident size above its
size after the imports (on a GPU: allocated and reserved bytes of PyTorch's allocator). "Required" is what must be in
memory at least: the teacher's pipeline, the student's EMA, and weights, gradients and two moments of each network that
trains. Scaling is wall-clock time of one single-threaded process against two (DDP over gloo) that divide the recipe's
batch; it needs two idle cores.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import plain
from distill.config.recipe import load
from distill.methods.base import Distiller
from distill.training.engine import Engine
from distill.training.meta_device import MemoryTracker
from distill.training.setup import plan_data, prepare
from distill.training.state import TrainState
from distill.training.step import batch_rngs, train_step

ROOT = Path(__file__).parents[1]
BATCHES = {"dmd": 32, "scm": 64}  # of recipes/pocket
SETTINGS = ["train.evaluate_every=0", "train.evaluate_samples=2", "train.evaluate_teacher_steps=1"]
SETTINGS += ["train.tracker=none", "train.checkpoint_every=1000000", "method.adaptation_steps=1"]
WARM = 2  # steps that are not counted
MEMORY_STEPS = 5


def settings(method: str, steps: int, output: str, *more: str) -> list[str]:
    """Overrides with which a pocket recipe runs `steps` steps into the folder `output`."""
    known = SETTINGS if method == "scm" else SETTINGS[:-1]
    return [*known, f"train.steps={steps}", f"output={output}", "train.log_every=1000000", *more]


def recipe_file(method: str) -> Path:
    """The pocket recipe of a method."""
    return ROOT / "recipes" / "pocket" / f"{method}.yaml"


@contextmanager
def training(method: str, steps: int, *more: str) -> Iterator[tuple[Distiller, Callable[[], object]]]:
    """The pocket recipe of `method` with the overrides `more`: its distiller, and a function that trains one step."""
    with tempfile.TemporaryDirectory() as output:
        recipe = load(recipe_file(method), settings(method, steps, output, *more))
        with Engine(recipe.train, recipe.folder) as engine:
            teacher, dataset = prepare(recipe, plan_data(recipe), engine)
            state = TrainState.build(recipe, teacher, engine)
            batches = dataset.micro_batches(batch_rngs(recipe, engine, state.distiller, state.step))
            yield state.distiller, lambda: train_step(state, batches, engine, recipe)


def run_steps(which: str, method: str) -> None:
    """A few steps of the "loop" or of the "plain" script."""
    if which == "plain":
        script = plain.METHODS[method](BATCHES[method])
        for _ in range(MEMORY_STEPS):
            script[0]()
        return
    with training(method, MEMORY_STEPS) as (_, step):
        for _ in range(MEMORY_STEPS):
            step()


def peak(which: str, method: str, what: str) -> float:
    """Peak MB of this process above its state before any weights loaded: of its "tensors", or "resident"."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run_steps(which, method)
        most = torch.cuda.max_memory_allocated if what == "tensors" else torch.cuda.max_memory_reserved
        return most() / 2**20
    if what == "tensors":
        with MemoryTracker([], torch.device("cpu")) as live:
            run_steps(which, method)
        return live.peak / 2**20
    before = _peak_resident()
    run_steps(which, method)
    return _peak_resident() - before


def _peak_resident() -> float:
    """Peak resident MB of this process so far. getrusage would include the parent's size before exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def required(method: str) -> float:
    """MB that must be in memory at least."""
    pipe = plain.load()[0]
    modules = (pipe.unet, pipe.vae, pipe.text_encoder)
    network, whole = (sum(p.numel() for m in ms for p in m.parameters()) * 4 / 2**20 for ms in ([pipe.unet], modules))
    return whole + network * (1 + 4 * (2 if method == "dmd" else 1))


def in_new_process(*what: str) -> float:
    """`peak(*what)` in its own process."""
    command = [sys.executable, "-m", "benchmarks.peaks", *what]
    # Freed memory is returned to the system at once, so that the peak counts only memory in use.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | allocator, encoding="utf-8"
    )
    return float(done.stdout.strip().splitlines()[-1])


def wall(method: str, processes: int, steps: int) -> float:
    """Wall seconds per step after the warm-up, on `processes` single-threaded processes that divide the batch."""
    with tempfile.TemporaryDirectory() as output, socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
        environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        if processes > 1:
            environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        probe.close()
        overrides = settings(method, steps, output, "name=run", "train.log_every=1")
        command = [sys.executable, "-m", "distill.train", str(recipe_file(method)), *overrides]
        runs = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(processes)
        ]
        if any([run.wait() for run in runs]):
            raise ValueError(f"{' '.join(command)} failed on {processes} processes")
        lines = (Path(output) / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return (seconds[-1] - seconds[WARM]) / (len(seconds) - 1 - WARM)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def memories(methods: Sequence[str]) -> list[str]:
    """The table of peak memory."""
    rows = []
    for method in methods:
        least = required(method)
        row = [method]
        for what in ("tensors", "resident"):
            loop, script = (in_new_process(which, method, what) for which in ("loop", "plain"))
            row += [f"{loop:.1f}", f"{script:.1f}", f"{loop / script:.3f}"]
            if what == "tensors":
                row += [f"{least:.1f}", f"{loop / least:.2f}"]
        rows.append(row)
    head = ["method", "peak of tensors, MB", "plain script, MB", "loop / plain", "required, MB", "loop / required"]
    return table([*head, "peak resident, MB", "plain script, MB", "loop / plain"], rows)


def scaling(methods: Sequence[str], steps: int) -> list[str]:
    """The table of one process against two."""
    rows = []
    for method in methods:
        one, two = (wall(method, processes, steps) for processes in (1, 2))
        rows.append([method, f"{one * 1000:.0f}", f"{two * 1000:.0f}", f"{one / two:.2f} x"])
    return table(["method", "1 process, ms per step", "2 processes, ms per step", "speed-up"], rows)


def main() -> None:
    """Print one peak in MB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["loop", "plain"], help="the training loop, or the plain script")
    parser.add_argument("method", choices=list(BATCHES), help="the method")
    parser.add_argument("what", choices=["tensors", "resident"], help="memory of tensors, or of the whole process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(peak(args.which, args.method, args.what))


if __name__ == "__main__":
    main()
