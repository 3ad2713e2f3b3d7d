"""Cost of a training step, compared with its network calls alone and with a plain script of the same method.

    python -m benchmarks.step [--repeats 20] [--also train.compile=networks ...] [--scaling] [--write]

The step is the real one (`distill.train_step` on a recipe of recipes/pocket, at its own batch size). Before each
step, the same networks are called alone (the forwards, backwards and tangent that the method needs, uncompiled), and
the plain script (`benchmarks/plain.py`) takes a step. The three are interleaved, and a ratio is the median of the
ratios of single steps. On a CPU the unit is processor time of one thread, which depends less on other load than wall
time. `--also` repeats the measurement with another value of a recipe key.

Memory and scaling are measured by `benchmarks/peaks.py`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.peaks import BATCHES, WARM, memories, scaling, table, training
from distill.methods import compiling
from distill.methods.base import Distiller
from distill.methods.jvp import jvp

RESULT = Path(__file__).parent / "results" / "step.md"


def now() -> float:
    """Seconds: processor time, or wall time after all kernels have finished on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def network_calls(distiller: Distiller, method: str, batch: int) -> Callable[[], None]:
    """The network calls of one step, on random inputs of the same shapes."""
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
    weights = {network: list(network.parameters()) for network in (student, *fake_scores(distiller))}

    def backward(network: nn.Module) -> None:
        call(network, x, t, rows).backward(ones)
        for parameter in weights[network]:
            parameter.grad = None

    def dmd() -> None:
        (fake,) = fake_scores(distiller)
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
        with compiling.eager():
            {"dmd": dmd, "scm": scm}[method]()

    return run


def fake_scores(distiller: Distiller) -> list[Any]:
    """The fake-score network, if the method has one."""
    return [denoiser.network for denoiser in distiller.preview_models().values()]


def measure(method: str, repeats: int, *more: str) -> dict[str, list[float]]:
    """Seconds of each training step, of its network calls, and of the plain script; `more` overrides the recipe."""
    seconds: dict[str, list[float]] = {"calls": [], "plain": [], "step": []}
    batch = BATCHES[method]
    script, _ = plain.METHODS[method](batch)
    with training(method, repeats + WARM, *more) as (distiller, step):
        work = {"calls": network_calls(distiller, method, batch), "plain": script, "step": step}
        for _ in range(repeats + WARM):
            for name, run in work.items():
                start = now()
                run()
                seconds[name].append(now() - start)
    return {name: values[WARM:] for name, values in seconds.items()}


def times(methods: Sequence[str], repeats: int, also: Sequence[str]) -> list[str]:
    """The table of times."""
    rows = []
    for method in methods:
        for more in ([], *([key] for key in also)):
            seconds = measure(method, repeats, *more)
            step, calls, script = (statistics.median(seconds[name]) * 1000 for name in ("step", "calls", "plain"))
            over = [
                statistics.median(a / b for a, b in zip(seconds["step"], seconds[name], strict=True))
                for name in ("calls", "plain")
            ]
            name = ", ".join([method, *more])
            rows.append([name, f"{step:.0f}", f"{calls:.0f}", f"{over[0]:.3f}", f"{script:.0f}", f"{over[1]:.3f}"])
            print(*rows[-1])
    return table(["method", "step, ms", "network calls, ms", "step / calls", "plain script, ms", "step / plain"], rows)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="measured steps (default: 20)")
    parser.add_argument("--method", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="methods to measure")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="key=value", help="measure again with each of these overrides"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--scaling", action="store_true", help="one process against two; needs two idle cores")
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
        unit = "wall time, GPU" if torch.cuda.is_available() else "processor time, one CPU thread"
        sizes = ", ".join(f"{method} {size}" for method, size in BATCHES.items())
        command = f"python -m benchmarks.step {' '.join(sys.argv[1:])}"
        note = (
            f"`{command}`: pocket teacher, float32, the recipes' batch sizes\n({sizes}), {unit}, {args.repeats} "
            f"interleaved repeats, torch {torch.__version__}. Scaling: wall time, single-threaded processes.\n"
        )
        RESULT.write_text("# A training step\n\n" + note + "\n" + "\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
