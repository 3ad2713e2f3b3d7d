"""What the training loop costs: a step over its bare network calls, and over a plain script of the same method.

    python -m benchmarks.step [--repeats 20] [--also train.compile=networks ...] [--scaling] [--write]

The loop is the real one (`distill.train.train` on a recipe of recipes/pocket, at its own batch size). Before each of
its steps the same networks are called bare (the forwards, backwards and tangent that the method needs, uncompiled,
nothing else) and the plain script (`benchmarks/plain.py`) takes a step of its own: the three are measured side by side,
and a ratio is the median of its ratios step by step. On a CPU in processor seconds, which a busy machine stretches
less, of one thread. `--also` measures the step again with a key of the recipe.

Memory and scaling are measured by `benchmarks/peaks.py`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.peaks import BATCHES, WARM, memories, recipe_file, scaling, settings, table
from distill.config.recipe import load, options
from distill.methods import compiling as compiled
from distill.methods.base import Distiller
from distill.methods.jvp import jvp
from distill.train import train

RESULT = Path(__file__).parent / "results" / "step.md"


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def bare(distiller: Distiller, method: str, batch: int) -> Callable[[], None]:
    """The network calls of one step on inputs of its shapes."""
    device = next(distiller.parameters()).device
    teacher = distiller.teacher
    rows = {key: value.expand(batch, *value.shape[1:]) for key, value in teacher.null_row().items()}
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

    student = distiller.student.network
    weights = {network: list(network.parameters()) for network in (student, *_fake(distiller))}

    def backward(network: nn.Module) -> None:
        call(network, x, t, rows).backward(ones)
        for parameter in weights[network]:
            parameter.grad = None

    def dmd() -> None:
        (fake,) = _fake(distiller)
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

    def run() -> None:
        with compiled.eager():
            {"dmd": dmd, "scm": scm}[method]()

    return run


def _fake(distiller: Distiller) -> list[Any]:
    return [denoiser.network for denoiser in distiller.preview_models().values()]


def measure(method: str, repeats: int, *more: str) -> dict[str, list[float]]:
    """Seconds of each step of the loop, of its bare calls, and of the plain script; `more` overrides the recipe."""
    seconds: dict[str, list[float]] = {"loop": [], "bare": [], "plain": []}
    batch = BATCHES[method]
    script, _ = plain.METHODS[method](batch)
    begun, calls, last = 0.0, None, -1
    with tempfile.TemporaryDirectory() as output:
        recipe = load(recipe_file(method), settings(method, repeats + WARM + 1, output, *more))
        cls = options(recipe)[0]
        phases = cls.phases

        def between(self: Distiller, step: int) -> Any:
            """Called by the loop as each step begins: the one before has ended."""
            nonlocal begun, calls, last
            if step == last:  # the loop asks twice, for the turns and for their data
                return phases(self, step)
            last = step
            seconds["loop"].append(now() - begun)
            calls = calls or bare(self, method, batch)
            for name, work in (("bare", calls), ("plain", script)):
                begun = now()
                work()
                seconds[name].append(now() - begun)
            begun = now()
            return phases(self, step)

        with patch.object(cls, "turns", between):
            train(recipe)
    return {name: values[WARM + 1 :] for name, values in seconds.items()}


def times(methods: Sequence[str], repeats: int, also: Sequence[str]) -> list[str]:
    rows = []
    for method in methods:
        for more in ([], *([key] for key in also)):
            seconds = measure(method, repeats, *more)
            loop, calls, script = (statistics.median(seconds[name]) * 1000 for name in ("loop", "bare", "plain"))
            over = [
                statistics.median(a / b for a, b in zip(seconds["loop"], seconds[name], strict=True))
                for name in ("bare", "plain")
            ]
            name = ", ".join([method, *more])
            rows.append([name, f"{loop:.0f}", f"{calls:.0f}", f"{over[0]:.3f}", f"{script:.0f}", f"{over[1]:.3f}"])
            print(*rows[-1])
    return table(["method", "step, ms", "bare calls, ms", "step / bare", "plain script, ms", "step / plain"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--method", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--also", nargs="+", default=[], metavar="key=value", help="the step with each key too")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--scaling", action="store_true", help="one process against two: needs two idle cores")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULT.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = times(args.method, args.repeats, args.also)
    if not args.no_memory:
        lines += memories(args.method)
    if args.scaling:
        lines += scaling(args.method, args.repeats + WARM + 1)
    print(*lines, sep="\n")
    if args.write:
        clock = "wall clock, GPU" if torch.cuda.is_available() else "processor time, one CPU thread"
        note = f"`python -m benchmarks.step {' '.join(sys.argv[1:])}`: pocket teacher, float32, the recipes' batches\n"
        note += f"({', '.join(f'{m} {b}' for m, b in BATCHES.items())}), {clock}, {args.repeats} interleaved repeats, "
        note += f"torch {torch.__version__}. Scaling: wall clock, processes of one thread.\n"
        RESULT.write_text("# A training step\n\n" + note + "\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
