"""What the training loop costs: a step over its bare network calls, and over a plain script of the same method.

    python -m benchmarks.step [--repeats 20] [--batch-size 32] [--write]

The loop is the real one (`distill.train.train` on a recipe of recipes/pocket). Before each of its steps the same
networks are called bare (the forwards, backwards and tangent that the method needs, nothing else) and the plain script
(`benchmarks/plain.py`) takes a step of its own, so that the three are measured side by side. Medians; on a CPU in
processor seconds, which a busy machine does not stretch, of one thread. Memory is the peak of a process of its own,
above what importing took, beside what has to be held: weights, averages, gradients, optimizer states.
"""

import argparse
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import plain
from distill.distiller import Distiller
from distill.recipe import load, options
from distill.tangent import jvp
from distill.train import train

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "step.md"
SETTINGS = ["train.evaluate_every=0", "train.evaluate_samples=2", "train.evaluate_teacher_steps=1"]
SETTINGS += ["train.tracker=none", "train.checkpoint_every=1000000", "method.adaptation_steps=1"]
WARM = 2  # steps that are not counted


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def settings(method: str, batch: int, steps: int, output: str) -> list[str]:
    known = SETTINGS if method == "scm" else SETTINGS[:-1]
    return [*known, f"train.batch_size={batch}", f"train.steps={steps}", f"output={output}", "train.log_every=1000000"]


def bare(distiller: Distiller, method: str, batch: int) -> Callable[[], None]:
    """The network calls of one step on inputs of its shapes."""
    device = next(distiller.parameters()).device
    teacher = distiller.teacher
    rows = {key: value.expand(batch, *value.shape[1:]) for key, value in teacher.unprompted().items()}
    twice = {key: torch.cat([value, value]) for key, value in rows.items()}
    x, t = torch.randn(batch, *teacher.shape, device=device), torch.full((batch,), 300.0, device=device)
    ones = torch.ones_like(x)

    def call(network: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out: Tensor = network(x, timestep=t, **cond, return_dict=False)[0]
        return out

    def forward(network: nn.Module) -> None:
        with torch.no_grad():
            call(network, x, t, rows)

    def guided() -> None:
        with torch.no_grad():
            call(teacher.denoiser.network, torch.cat([x, x]), torch.cat([t, t]), twice)

    def backward(network: nn.Module) -> None:
        call(network, x, t, rows).backward(ones)
        network.zero_grad(set_to_none=True)

    student = distiller.student.network

    def dmd() -> None:
        fake: Any = distiller.get_submodule("fake_score").network
        for _ in range(2):
            forward(student)
            backward(fake)
        backward(student)
        guided()
        forward(fake)

    def scm() -> None:
        guided()
        jvp(lambda x, t: call(student, x, t, rows), (x, t), (ones, torch.ones_like(t)))
        backward(student)

    return {"dmd": dmd, "scm": scm}[method]


def measure(method: str, repeats: int, batch: int) -> dict[str, float]:
    """Median seconds of a step of the loop, of its bare calls, and of the plain script."""
    seconds: dict[str, list[float]] = {"loop": [], "bare": [], "plain": []}
    script = plain.METHODS[method](batch)
    begun, calls = 0.0, None
    with tempfile.TemporaryDirectory() as output:
        recipe = load(
            ROOT / "recipes" / "pocket" / f"{method}.yaml", settings(method, batch, repeats + WARM + 1, output)
        )
        cls = options(recipe)[0]
        turns = cls.turns

        def between(self: Distiller, step: int) -> Any:
            """Called by the loop as each step begins: the one before has ended."""
            nonlocal begun, calls
            seconds["loop"].append(now() - begun)
            calls = calls or bare(self, method, batch)
            for name, work in (("bare", calls), ("plain", script)):
                begun = now()
                work()
                seconds[name].append(now() - begun)
            begun = now()
            return turns(self, step)

        with patch.object(cls, "turns", between):
            train(recipe)
    return {name: statistics.median(values[WARM + 1 :]) for name, values in seconds.items()}


def peak(which: str, method: str, batch: int) -> float:
    """Peak MB of this process above its state before any weights loaded."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if which == "plain":
        step = plain.METHODS[method](batch)
        for _ in range(5):
            step()
    else:
        with tempfile.TemporaryDirectory() as output, patch("distill.train.export", lambda *_: Path(output)):
            train(load(ROOT / "recipes" / "pocket" / f"{method}.yaml", settings(method, batch, 5, output)))
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def held(method: str) -> float:
    """MB that have to be there: a teacher, and for each network that trains weights, gradients and two moments."""
    pipe = plain.load()[0]
    modules = (pipe.unet, pipe.vae, pipe.text_encoder)
    network, whole = (sum(p.numel() for m in ms for p in m.parameters()) * 4 / 2**20 for ms in ([pipe.unet], modules))
    return whole + network * (1 + 4 * (2 if method == "dmd" else 1))


def in_its_own_process(which: str, method: str, batch: int) -> float:
    command = [sys.executable, "-m", "benchmarks.step", "--peak", which, "--method", method, "--batch-size", str(batch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--method", nargs="+", choices=["dmd", "scm"], default=["dmd", "scm"])
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.name}")
    parser.add_argument("--peak", choices=["loop", "plain"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(peak(args.peak, args.method[0], args.batch_size))
        return
    lines = [
        "| method | step, ms | bare calls, ms | step / bare | plain script, ms | step / plain "
        "| peak, MB | plain's | held |",
        "| --- " * 9 + "|",
    ]
    for method in args.method:
        seconds = measure(method, args.repeats, args.batch_size)
        loop, calls, script = (seconds[name] * 1000 for name in ("loop", "bare", "plain"))
        memory = [math.nan, math.nan]
        if not args.no_memory:
            memory = [in_its_own_process(which, method, args.batch_size) for which in ("loop", "plain")]
        cells = [method, f"{loop:.0f}", f"{calls:.0f}", f"{loop / calls:.3f}", f"{script:.0f}", f"{loop / script:.3f}"]
        cells += [f"{value:.0f}" for value in (*memory, held(method))]
        lines.append("| " + " | ".join(cells) + " |")
    print(*lines, sep="\n")
    if args.write:
        clock = "wall clock, GPU" if torch.cuda.is_available() else "processor time, one CPU thread"
        note = f"`python -m benchmarks.step --repeats {args.repeats} --batch-size {args.batch_size} --write`: pocket "
        note += (
            f"teacher, float32, {clock},\nmedian of {args.repeats} interleaved repeats, torch {torch.__version__}.\n"
        )
        RESULT.write_text("# A training step\n\n" + note + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
