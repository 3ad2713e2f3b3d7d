"""Full-size networks on random weights: the memory plan against the peak that was measured, and seconds a step.

    python -m benchmarks.memory [--methods dmd scm] [--tiers shared full] [--batches 1] [--checkpointing]
    python -m benchmarks.memory --batches 1 4 16      # with a GPU: bfloat16 autocast, the card's own peak

Each case runs in a process of its own: one optimizer step (on a GPU three, of which the last is timed), with every
component at its full size. On a CPU the peak is the process's largest resident size above what importing
took; on a GPU, PyTorch's peak of allocated bytes. `--planned` adds batches for which only the plan is made. Writes
memory.json and memory.md under benchmarks/results.
"""

import argparse
import copy
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.full_size import MODELS
from distill import memory
from distill.config.recipe import DTYPES, MemoryRecipe, Recipe, TeacherRecipe, TrainRecipe, options
from distill.config.registry import TEACHERS, find
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.training import meta_device as paper
from teachers.core.teacher import Teacher
from teachers.networks.checkpointing import checkpoint_activations

RESULTS = Path(__file__).parent / "results"
METHODS: dict[str, dict[str, Any]] = {"dmd": {"name": "dmd"}, "scm": {"name": "scm"}}
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}  # freed memory goes back at once


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    method: str
    tier: str
    batch: int
    checkpointing: bool = False

    def recipe(self, folder: Path, precision: str) -> Recipe:
        return Recipe(
            name="memory",
            teacher=TeacherRecipe(family=MODELS[self.model][0], path=str(folder), guidance=3.0),
            method=METHODS[self.method],
            train=TrainRecipe(batch_size=self.batch, precision=precision),  # type: ignore[arg-type]
            memory=MemoryRecipe(tier=self.tier, checkpointing=self.checkpointing),  # type: ignore[arg-type]
        )


@torch.no_grad()
def filled(teacher: Teacher, device: torch.device) -> Teacher:
    """`teacher`, which is on paper, with small random weights on `device`."""
    for module in (teacher.denoiser.network, *paper.resident_modules(teacher)):
        module.to_empty(device=device)
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    parameter.normal_(std=0.02)
                else:
                    parameter.fill_(float(name == "weight"))
    return teacher


def measure(case: Case, folder: Path, device: torch.device, precision: str) -> dict[str, float]:
    """Peak bytes above what importing took, and the seconds of a step. Mirrors distill.train, but for its data."""
    process, cuda = psutil.Process(), device.type == "cuda"
    before = 0 if cuda else process.memory_info().rss
    recipe = case.recipe(folder, precision)
    cls, method = options(recipe)
    family = find(TEACHERS, recipe.teacher.family)
    torch.manual_seed(0)
    teacher = filled(paper.build_on_meta(family, str(folder), DTYPES[recipe.teacher.precision]), device)
    shapes = MODELS[case.model][2]
    cond = {key: torch.randn(case.batch, *shape, device=device) for key, shape in shapes.items()}
    teacher.null_cache = {key: value[:1] for key, value in cond.items()}
    if case.tier == "lora":
        teacher.enable_lora(recipe.memory.rank)
    if case.checkpointing:
        checkpoint_activations(teacher.denoiser.network)
    distiller = cls(teacher, recipe.teacher.guidance, method).to(device)
    ema = copy.deepcopy(distiller.student).requires_grad_(False)
    networks = {phase: [p for m in modules for p in m.parameters()] for phase, modules in distiller.networks().items()}
    optimizers = {phase: torch.optim.AdamW(ps, 1e-5, fused=True) for phase, ps in networks.items()}
    latents = torch.randn(case.batch, *teacher.shape, device=device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    for phase, optimizer in optimizers.items():  # Adam's moments are there from the first backward on
        for parameter in networks[phase]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for step in range(3 if cuda else 1):  # the last is timed
        begun = time.perf_counter()
        for number, phase in enumerate(distiller.phases(memory.LATE_STEP)):
            rng = BatchRandom((0, step, number), 0, case.batch, case.batch, device)
            batch = Batch(cond, rng, latents, lambda: Pairs(latents, latents, cond))
            with torch.autocast(device.type, half, enabled=precision != "no"):
                loss, _ = distiller(phase, batch, memory.LATE_STEP)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(networks[phase], 1.0)
            optimizers[phase].step()
            optimizers[phase].zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(distiller.student.parameters()), 0.01)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    assert all(p.isfinite().all() for p in distiller.student.parameters())
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak - before, "seconds": seconds}


def run(case: Case, limit: float, device: torch.device, precision: str) -> dict[str, Any]:
    """One line of the table: the plan, and where that is below `limit` GiB what it came to, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        MODELS[case.model][1](folder)
        planned = memory.plan(case.recipe(folder, precision), case.batch)
        row = dataclasses.asdict(case) | {"plan": dataclasses.asdict(planned), "planned": planned.total}
        if planned.total < limit * memory.GIB:
            command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(dataclasses.asdict(case))]
            command += ["--folder", name, "--precision", precision]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | ALLOCATOR)
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                row["failed"] = f"exit status {done.returncode}"
            else:
                row |= json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    gib = memory.GIB
    parts = [field.name for field in dataclasses.fields(memory.Plan)]
    head = ["model", "method", "tier", "batch", "checkpointing", *parts, "plan", "measured", "seconds a step"]
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
    """`shared` over `full`, by the plan, where both are there: each as it is by default, then both alike."""
    planned = {tuple(r[f.name] for f in dataclasses.fields(Case)): r["planned"] for r in rows}
    kinds = {"by default (shared with checkpointing)": (True, False), "without checkpointing": (False, False)}
    lines = []
    for name, (shared, full) in (kinds | {"both with checkpointing": (True, True)}).items():
        for case in dict.fromkeys((r["model"], r["method"], r["batch"]) for r in rows):
            model, method, batch = case
            few, whole = (model, method, "lora", batch, shared), (model, method, "full", batch, full)
            if few in planned and whole in planned:
                ratio = planned[few] / planned[whole]
                lines.append(f"- {model}, {method}, batch {batch}, {name}: shared / full = {ratio:.3f} (plan)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sd15"], choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["dmd", "scm"], choices=list(METHODS))
    parser.add_argument("--tiers", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1], help="batch sizes to run (default: 1)")
    parser.add_argument("--planned", nargs="*", type=int, default=[4, 16], help="batch sizes to plan only (4 16)")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--limit", type=float, default=22.0, help="GiB; cases planned above are not run (default: 22)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "no")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.child:
        print(json.dumps(measure(Case(**json.loads(args.child)), args.folder, device, args.precision)))
        return
    for model in args.models:
        for method in args.methods:
            for tier in args.tiers:
                for batch in sorted({*args.batches, *args.planned}):
                    case = Case(model, method, tier, batch, args.checkpointing)
                    measured = args.limit if batch in args.batches else 0.0
                    save(run(case, measured, device, args.precision), device, args.precision)
    print((RESULTS / "memory.md").read_text())


def save(row: dict[str, Any], device: torch.device, precision: str) -> None:
    """Add a row to the files, or bring the one up to date that is there: a new plan leaves what was measured."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    path = RESULTS / "memory.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    rows = stored.setdefault(f"{name}, {'float32' if precision == 'no' else precision}", [])
    same = [r for r in rows if all(r[f.name] == row[f.name] for f in dataclasses.fields(Case))]
    if same:
        same[0].update(row)
    else:
        rows.append(row)
    rows.sort(key=lambda r: [r[f.name] for f in dataclasses.fields(Case)])
    path.write_text(json.dumps(stored, indent=1) + "\n")
    sections = [f"## {key}\n\n{table(found)}\n\n{ratios(found)}" for key, found in stored.items()]
    (RESULTS / "memory.md").write_text(
        "# Memory\n\n`python -m benchmarks.memory`: full-size networks on random weights, GiB; the plan that a run "
        "prints before it allocates, beside the peak of an optimizer step in a process of their own.\n\n"
        + "\n\n".join(sections)
        + "\n"
    )


if __name__ == "__main__":
    main()
