"""Memory plan against measured peak memory, and seconds per step, of full-size networks with random weights.

    python -m benchmarks.memory [--methods dmd scm] [--tiers lora full] [--batches 1] [--checkpointing]
    python -m benchmarks.memory --batches 1 4 16      # on a GPU: bfloat16 autocast, the allocator's peak

A case is one optimizer step with every component at full size, in a process of its own: the peak is the process's
maximum resident size minus its size after the imports. On a GPU all cases share a process: the peak is that of the
bytes which PyTorch allocated, five steps are made and the median of the last three is reported, and at batch size 1 a
sixth step is profiled: kernels, waits of the host for the GPU, and the time in which kernels ran. `--planned` adds
batch sizes for which only the plan is made. Writes memory.json and memory.md to benchmarks/results.
"""

import argparse
import dataclasses
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.full_size import MODELS, randomise
from benchmarks.memory_table import report
from benchmarks.support.options import check_counts
from distill.config.recipe import Recipe
from distill.config.registry import DISTILLERS, TEACHERS, find
from distill.config.sections import DTYPES, MemoryRecipe, OptimizerRecipe, TeacherRecipe, TrainRecipe
from distill.data.batch import Batch, Pairs
from distill.exporting.distill_json import device_name
from distill.training import memory_plan
from distill.training.engine import Engine
from distill.training.memory_plan import LATE_STEP
from distill.training.meta_device import build_on_meta, resident_modules
from distill.training.state import TrainState
from distill.training.step import batch_rngs, train_step
from eval.pipelines.latency import timed
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher

RESULTS = Path(__file__).parent / "results"
METHODS = ("dmd", "scm")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}  # return freed memory at once
STEPS_ON_GPU, TIMED_ON_GPU = 5, 3
COUNTED = 1  # largest batch size at which kernels are counted
START = LATE_STEP - STEPS_ON_GPU - 1  # after every warm-up of the methods


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    method: str
    tier: str
    batch: int
    checkpointing: bool = False
    compile: bool = False

    def recipe(self, folder: Path, precision: str) -> Recipe:
        """The case as a recipe. Its steps start at START."""
        steps = START + (STEPS_ON_GPU + 1 if torch.cuda.is_available() else 1)
        return Recipe(
            name="memory",
            teacher=TeacherRecipe(family=MODELS[self.model][0], path=str(folder), guidance=3.0),
            method={"name": self.method},
            optimizers={phase: OptimizerRecipe(lr=1e-5) for phase in find(DISTILLERS, self.method).PHASES},
            train=TrainRecipe(
                steps,
                self.batch,
                precision=precision,  # type: ignore[arg-type]
                tracker="none",
                compile="blocks" if self.compile else "none",
            ),
            memory=MemoryRecipe(tier=self.tier, checkpointing=self.checkpointing),  # type: ignore[arg-type]
        )


def fill(teacher: Teacher, device: torch.device) -> Teacher:
    """Move `teacher` from the meta device to `device`, with small random weights."""
    for module in (teacher.denoiser.network, *resident_modules(teacher)):
        randomise(module.to_empty(device=device))
    return teacher


def fill_moments(state: TrainState) -> None:
    """Allocate AdamW's moments, which exist from the second step on, by a step with zero gradients."""
    for phase, optimizer in state.optimizers.items():
        for parameter in state.parameters[phase]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def random_batches(state: TrainState, recipe: Recipe, engine: Engine, cond: Condition) -> Iterator[Batch]:
    """Micro-batches of one set of random latents under the condition `cond`."""
    latents = torch.randn(engine.local_batch_size, *state.distiller.teacher.shape, device=engine.device)
    for rng in batch_rngs(recipe, engine, state.distiller, START):
        yield Batch(cond, rng, latents, lambda: Pairs(latents, latents, cond))


def build(case: Case, folder: Path, precision: str, engine: Engine) -> tuple[TrainState, Iterator[Batch]]:
    """The state of a run at START with random weights and AdamW's moments, and its micro-batches."""
    recipe = case.recipe(folder, precision)
    torch.manual_seed(0)
    family = find(TEACHERS, recipe.teacher.family)
    teacher = fill(build_on_meta(family, str(folder), DTYPES[recipe.teacher.precision]), engine.device)
    shapes = MODELS[case.model][2]
    cond = {key: torch.randn(case.batch, *shape, device=engine.device) for key, shape in shapes.items()}
    teacher.null_cache = {key: value[:1] for key, value in cond.items()}
    state = TrainState.build(recipe, teacher, engine)
    state.step = START
    fill_moments(state)
    return state, random_batches(state, recipe, engine, cond)


def measure(case: Case, folder: Path, precision: str) -> dict[str, float]:
    """Peak bytes above the state after the imports, and seconds of the last steps."""
    cuda = torch.cuda.is_available()
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else psutil.Process().memory_info().rss
    recipe = case.recipe(folder, precision)
    seconds: list[float] = []
    with Engine(recipe.train, folder) as engine:
        state, batches = build(case, folder, precision, engine)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(STEPS_ON_GPU if cuda else 1):
            seconds.append(timed(lambda: train_step(state, batches, engine, recipe), engine.device)[1])
        finite = all(p.isfinite().all() for p in state.distiller.student.parameters())
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        counts = count_kernels(state, batches, engine, recipe) if cuda and case.batch <= COUNTED else {}
    assert finite
    return {"peak": peak - before, "seconds": statistics.median(seconds[-TIMED_ON_GPU:]), "first": seconds[0]} | counts


def count_kernels(state: TrainState, batches: Iterator[Batch], engine: Engine, recipe: Recipe) -> dict[str, float]:
    """Kernels, waits of the host for the GPU, and seconds of kernels in one step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        train_step(state, batches, engine, recipe)
        torch.cuda.synchronize()
    events = profile.events()
    names = [event.name for event in events]
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "kernels": len(kernels),
        "synchronisations": sum(name in ("cudaStreamSynchronize", "cudaEventSynchronize") for name in names),
        "kernel_seconds": sum(event.time_range.elapsed_us() for event in kernels) / 1e6,
    }


def plan_of(case: Case, precision: str) -> memory_plan.MemoryPlan:
    """The plan of a case."""
    with tempfile.TemporaryDirectory() as name:
        MODELS[case.model][1](Path(name))
        return memory_plan.plan(case.recipe(Path(name), precision), case.batch)


def plan_row(case: Case, precision: str) -> dict[str, Any]:
    """The plan, as a part of a row of the table."""
    planned = plan_of(case, precision)
    return dataclasses.asdict(case) | {"plan": dataclasses.asdict(planned), "planned": planned.total}


def measured_row(case: Case, precision: str) -> dict[str, Any]:
    """The measurement, as a part of a row of the table."""
    with tempfile.TemporaryDirectory() as name:
        MODELS[case.model][1](Path(name))
        measured = measure_on_gpu if torch.cuda.is_available() else child
        row = dataclasses.asdict(case) | measured(case, name, precision)
    print(json.dumps(row), flush=True)
    return row


def measure_on_gpu(case: Case, folder: str, precision: str) -> dict[str, Any]:
    """The measurement in this process."""
    try:
        return measure(case, Path(folder), precision)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}


def child(case: Case, folder: str, precision: str) -> dict[str, Any]:
    """The measurement in a process of its own, because its peak is that of a process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(dataclasses.asdict(case))]
    command += ["--folder", folder, "--precision", precision]
    env = os.environ | ALLOCATOR
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, encoding="utf-8")
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return {"failed": f"exit status {done.returncode}"}
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    """Plan and measure the requested cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sd15"], choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--tiers", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1], help="batch sizes to measure (default: 1)")
    parser.add_argument(
        "--planned", nargs="*", type=int, default=[4, 16], help="batch sizes to plan only (default: 4 16)"
    )
    parser.add_argument("--checkpointing", action="store_true", help="with activation checkpointing")
    parser.add_argument("--compile", action="store_true", help="with train.compile=blocks")
    parser.add_argument("--both", action="store_true", help="without and with activation checkpointing")
    parser.add_argument(
        "--limit",
        type=float,
        default=22.0,
        help="GiB; on a CPU, cases with a larger plan are not measured (default: 22)",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--precision",
        default="bf16" if torch.cuda.is_available() else "no",
        choices=["no", "fp16", "bf16"],
        help="mixed precision of training (default: bf16 on a GPU, else no)",
    )
    args = parser.parse_args()
    check_counts(parser, args)
    if args.child:
        print(json.dumps(measure(Case(**json.loads(args.child)), args.folder, args.precision)))
        return
    cases = [
        Case(model, method, tier, batch, checkpointing, args.compile)
        for model in args.models
        for batch in sorted({*args.batches, *args.planned})
        for method in args.methods
        for tier in args.tiers
        for checkpointing in ((False, True) if args.both else (args.checkpointing,))
    ]
    measured = [case for case in cases if case.batch in args.batches]
    if torch.cuda.is_available():  # measurements first: the plans need no GPU
        for case in measured:
            save(measured_row(case, args.precision), args.precision)
    for case in cases:
        row = plan_row(case, args.precision)
        save(row, args.precision)
        if not torch.cuda.is_available() and case in measured and row["planned"] < args.limit * memory_plan.GIB:
            save(measured_row(case, args.precision), args.precision)
    print((RESULTS / "memory.md").read_text(encoding="utf-8"))


def save(row: dict[str, Any], precision: str) -> None:
    """Add a row to the files, or update the stored one; a new plan keeps the earlier measurement."""
    name = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    path = RESULTS / "memory.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = stored.setdefault(f"{name}, {'float32' if precision == 'no' else precision}", [])
    same = [r for r in rows if all(r.get(f.name, f.default) == row[f.name] for f in dataclasses.fields(Case))]
    if same:
        same[0].update(row)
    else:
        rows.append(row)
    rows.sort(key=lambda r: [r.get(f.name, f.default) for f in dataclasses.fields(Case)])
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "memory.md").write_text(report(stored), encoding="utf-8")


if __name__ == "__main__":
    main()
