"""Memory plan against measured peak memory, and seconds per step, of full-size networks with random weights.

    python -m benchmarks.memory [--methods dmd scm] [--tiers lora full] [--batches 1] [--checkpointing]
    python -m benchmarks.memory --batches 1 4 16      # on a GPU: bfloat16 autocast, the allocator's peak

Each case runs in its own process: one optimizer step (three on a GPU, the last is timed) with every component at full
size. On a CPU the peak is the process's maximum resident size minus its size after the imports; on a GPU it is
PyTorch's peak of allocated bytes. `--planned` adds batch sizes for which only the plan is made. Writes memory.json and
memory.md to benchmarks/results.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.full_size import MODELS
from distill.config.recipe import Recipe
from distill.config.registry import DISTILLERS, TEACHERS, find
from distill.config.sections import DTYPES, MemoryRecipe, OptimizerRecipe, TeacherRecipe, TrainRecipe
from distill.data.batch import Batch, Pairs
from distill.training import memory_plan
from distill.training.engine import Engine
from distill.training.memory_plan import LATE_STEP
from distill.training.meta_device import build_on_meta, resident_modules
from distill.training.state import TrainState
from distill.training.step import batch_rngs, train_step
from teachers.core.denoiser import Condition
from teachers.core.teacher import Teacher

RESULTS = Path(__file__).parent / "results"
METHODS = ("dmd", "scm")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}  # return freed memory at once
STEPS_ON_GPU = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    method: str
    tier: str
    batch: int
    checkpointing: bool = False

    def recipe(self, folder: Path, precision: str) -> Recipe:
        """The case as a recipe. Its steps start at LATE_STEP, after every warm-up of the methods."""
        steps = LATE_STEP + (STEPS_ON_GPU if torch.cuda.is_available() else 1)
        return Recipe(
            name="memory",
            teacher=TeacherRecipe(family=MODELS[self.model][0], path=str(folder), guidance=3.0),
            method={"name": self.method},
            optimizers={phase: OptimizerRecipe(lr=1e-5) for phase in find(DISTILLERS, self.method).PHASES},
            train=TrainRecipe(steps, self.batch, precision=precision, tracker="none"),  # type: ignore[arg-type]
            memory=MemoryRecipe(tier=self.tier, checkpointing=self.checkpointing),  # type: ignore[arg-type]
        )


@torch.no_grad()
def fill(teacher: Teacher, device: torch.device) -> Teacher:
    """Move `teacher` from the meta device to `device`, with small random weights."""
    for module in (teacher.denoiser.network, *resident_modules(teacher)):
        module.to_empty(device=device)
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    parameter.normal_(std=0.02)
                else:
                    parameter.fill_(float(name == "weight"))
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
    for rng in batch_rngs(recipe, engine, state.distiller, LATE_STEP):
        yield Batch(cond, rng, latents, lambda: Pairs(latents, latents, cond))


def measure(case: Case, folder: Path, precision: str) -> dict[str, float]:
    """Peak bytes above the state after the imports, and seconds of the last step."""
    cuda = torch.cuda.is_available()
    before = 0 if cuda else psutil.Process().memory_info().rss
    recipe = case.recipe(folder, precision)
    family = find(TEACHERS, recipe.teacher.family)
    seconds = 0.0
    with Engine(recipe.train, folder) as engine:
        torch.manual_seed(0)
        teacher = fill(build_on_meta(family, str(folder), DTYPES[recipe.teacher.precision]), engine.device)
        shapes = MODELS[case.model][2]
        cond = {key: torch.randn(case.batch, *shape, device=engine.device) for key, shape in shapes.items()}
        teacher.null_cache = {key: value[:1] for key, value in cond.items()}
        state = TrainState.build(recipe, teacher, engine)
        state.step = LATE_STEP
        batches = random_batches(state, recipe, engine, cond)
        fill_moments(state)
        while state.step < recipe.train.steps:
            start = time.perf_counter()
            train_step(state, batches, engine, recipe)
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    assert all(p.isfinite().all() for p in state.distiller.student.parameters())
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak - before, "seconds": seconds}


def run(case: Case, limit: float, precision: str) -> dict[str, Any]:
    """A row of the table: the plan, and if that is below `limit` GiB the measurement, in its own process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        MODELS[case.model][1](folder)
        planned = memory_plan.plan(case.recipe(folder, precision), case.batch)
        row = dataclasses.asdict(case) | {"plan": dataclasses.asdict(planned), "planned": planned.total}
        if planned.total < limit * memory_plan.GIB:
            command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(dataclasses.asdict(case))]
            command += ["--folder", name, "--precision", precision]
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, env=os.environ | ALLOCATOR, encoding="utf-8"
            )
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                row["failed"] = f"exit status {done.returncode}"
            else:
                row |= json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, in GiB."""
    gib = memory_plan.GIB
    parts = [field.name for field in dataclasses.fields(memory_plan.Plan)]
    head = ["model", "method", "tier", "batch", "checkpointing", *parts, "planned", "measured", "seconds per step"]
    lines = [
        f"| {' | '.join(head)} |",
        "| --- | --- | --- | ---: | --- |" + " ---: |" * (len(parts) + 3),
    ]
    for row in rows:
        cells = [f"{row['plan'][part] / gib:.2f}" for part in parts] + [f"{row['planned'] / gib:.2f}"]
        ratio = f" ({row['planned'] / row['peak'] - 1:+.1%})" if "peak" in row else ""
        cells += [f"{row['peak'] / gib:.2f}{ratio}", f"{row['seconds']:.1f}"] if "peak" in row else ["–", "–"]
        names = [row["model"], row["method"], row["tier"], str(row["batch"]), "yes" if row["checkpointing"] else "no"]
        lines.append("| " + " | ".join(names + cells) + " |")
    return "\n".join(lines)


def ratios(rows: list[dict[str, Any]]) -> str:
    """Ratios of planned memory, `lora` to `full`: with each tier's default, then with equal checkpointing."""
    planned = {tuple(r[f.name] for f in dataclasses.fields(Case)): r["planned"] for r in rows}
    kinds = {"by default (lora with checkpointing)": (True, False), "without checkpointing": (False, False)}
    lines = []
    for name, (lora, full) in (kinds | {"both with checkpointing": (True, True)}).items():
        for case in dict.fromkeys((r["model"], r["method"], r["batch"]) for r in rows):
            model, method, batch = case
            few, whole = (model, method, "lora", batch, lora), (model, method, "full", batch, full)
            if few in planned and whole in planned:
                ratio = planned[few] / planned[whole]
                lines.append(f"- {model}, {method}, batch {batch}, {name}: lora / full = {ratio:.3f} (plan)")
    return "\n".join(lines)


def main() -> None:
    """Plan and measure the requested cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sd15"], choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["dmd", "scm"], choices=METHODS)
    parser.add_argument("--tiers", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1], help="batch sizes to measure (default: 1)")
    parser.add_argument(
        "--planned", nargs="*", type=int, default=[4, 16], help="batch sizes to plan only (default: 4 16)"
    )
    parser.add_argument("--checkpointing", action="store_true", help="with activation checkpointing")
    parser.add_argument(
        "--limit", type=float, default=22.0, help="GiB; cases with a larger plan are not measured (default: 22)"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "no")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(Case(**json.loads(args.child)), args.folder, args.precision)))
        return
    for model in args.models:
        for method in args.methods:
            for tier in args.tiers:
                for batch in sorted({*args.batches, *args.planned}):
                    case = Case(model, method, tier, batch, args.checkpointing)
                    limit = args.limit if batch in args.batches else 0.0
                    save(run(case, limit, args.precision), args.precision)
    print((RESULTS / "memory.md").read_text(encoding="utf-8"))


def save(row: dict[str, Any], precision: str) -> None:
    """Add a row to the files, or update the stored one; a new plan keeps the earlier measurement."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    path = RESULTS / "memory.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = stored.setdefault(f"{name}, {'float32' if precision == 'no' else precision}", [])
    same = [r for r in rows if all(r[f.name] == row[f.name] for f in dataclasses.fields(Case))]
    if same:
        same[0].update(row)
    else:
        rows.append(row)
    rows.sort(key=lambda r: [r[f.name] for f in dataclasses.fields(Case)])
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "memory.md").write_text(report(stored), encoding="utf-8")


def report(stored: dict[str, list[dict[str, Any]]]) -> str:
    """memory.md from the contents of memory.json."""
    sections = [f"## {key}\n\n{table(found)}\n\n{ratios(found)}" for key, found in stored.items()]
    return (
        "# Memory\n\n`python -m benchmarks.memory`: full-size networks with random weights, in GiB. The planned columns"
        " are what a run prints before it allocates; the measured column is the peak of an optimizer step in its own "
        "process (in brackets: the plan's deviation from it).\n\n" + "\n\n".join(sections) + "\n"
    )


if __name__ == "__main__":
    main()
