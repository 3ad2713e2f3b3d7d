"""`memory.quantize`: what a quantized base costs in memory and in quality.

    python -m benchmarks.quantization [--only plans|errors|students]

- plans: memory plans of Flux.1 dev (12 billion parameters) and Wan 2.1 14B with LoRA adapters, from configurations on
  the meta device. Nothing is run at this size.
- errors: the root mean square error of the guided velocity of the embedded teachers, relative to the velocity's own.
- students: pocket/dmd_lora and pocket/scm_lora on a base in each form; trains in runs/quantization (finished runs are
  kept) and compares the runs with `python -m eval`.

Writes quantization.json and quantization.md to benchmarks/results.
"""

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks import full_size_images, full_size_media, runs
from distill.config.recipe import Recipe, load
from distill.config.sections import MemoryRecipe, TeacherRecipe
from distill.training import memory_plan
from distill.training.setup import load_teacher
from teachers.loading.embedded import EMBEDDED
from teachers.networks.quantized import Quantization, quantize

RUNS, RESULTS = Path("runs/quantization"), Path(__file__).parent / "results"
FORMS: tuple[Quantization, ...] = get_args(Quantization)
MODELS: dict[str, tuple[str, Callable[[Path], None], dict[str, float] | None, float]] = {
    "Flux.1 dev": ("flux", full_size_images.flux, None, 3.5),
    "Wan 2.1 14B": ("wan", full_size_media.wan_14b, {"height": 480, "width": 832, "frames": 81}, 5.0),
}
RECIPES = ("pocket/dmd", "pocket/video_dmd", "pocket/audio_dmd")  # of the embedded teachers
STUDENTS = ("dmd_lora", "scm_lora")
ANGLES = (0.1, 0.3, 0.6, 0.9, 1.2, 1.5)
SAMPLES = 64  # for each angle


def plans() -> dict[str, dict[str, dict[str, int]]]:
    """Bytes of the memory plans of each model, by method and form of the base."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, (family, write, size, guidance) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            teacher = TeacherRecipe(folder, family=family, guidance=guidance, precision="bfloat16", size=size)
            for method in ("dmd", "scm"):
                for form in FORMS:
                    memory = MemoryRecipe(tier="lora", rank=64, quantize=form)
                    recipe = Recipe("run", teacher, {"name": method}, memory=memory)
                    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision="bf16"))
                    planned = memory_plan.plan(recipe, 1)
                    found.setdefault(name, {})[f"{method}, {form}"] = dataclasses.asdict(planned)
                    print(name, method, form, f"{planned.total / memory_plan.GIB:.1f} GiB", flush=True)
    return found


@torch.no_grad()
def errors() -> dict[str, dict[str, float]]:
    """The relative error of each embedded teacher's guided velocity, by form of its weights."""
    found: dict[str, dict[str, float]] = {}
    for name in RECIPES:
        recipe = load(name)
        velocities = {form: velocity(recipe, form) for form in FORMS}
        exact = velocities.pop("none")
        found[str(recipe.teacher.path)] = {
            form: float((other - exact).square().mean().sqrt() / exact.square().mean().sqrt())
            for form, other in velocities.items()
        }
    return found


def velocity(recipe: Recipe, form: Quantization) -> Tensor:
    """The guided velocity of a recipe's teacher at noisy latents of real samples, (angles, SAMPLES, ...)."""
    teacher = load_teacher(recipe, torch.device("cpu"))
    quantize(teacher.denoiser.network, form)
    latents, captions = EMBEDDED[str(recipe.teacher.path)].examples()
    x0, cond = latents[:SAMPLES], teacher.condition(captions[:SAMPLES])
    teacher.null_condition(cond)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    return torch.stack(
        [
            teacher.velocity(
                math.cos(angle) * x0 + math.sin(angle) * noise,
                torch.full((len(x0),), angle),
                cond,
                recipe.teacher.guidance,
            )
            for angle in ANGLES
        ]
    )


def students(samples: int) -> list[dict[str, Any]]:
    """Rows of the report of all students, trained on a base in each form, and of their teacher."""
    folders = []
    for recipe in STUDENTS:
        for form in FORMS:
            folders.append(RUNS / f"{recipe}-{form}")
            runs.train(recipe, folders[-1], f"memory.quantize={form}")
    keys = ("name", "num_steps", "frechet_ratio", "frechet_ratio_interval", "prompt_agreement")
    rows = runs.evaluate(folders, RUNS / "report", samples)["rows"]
    return [{key: row.get(key) for key in keys} for row in rows if not row["solver"]]


def text(stored: dict[str, Any]) -> str:
    """quantization.md from the contents of quantization.json."""
    parts = [field.name for field in dataclasses.fields(memory_plan.MemoryPlan) if field.name != "communication"]
    gib = memory_plan.GIB
    sections = [
        "# A quantized base\n\n`python -m benchmarks.quantization`: LoRA adapters on a frozen base in int8 or nf4 "
        "(`memory.quantize`)."
    ]
    if found := stored.get("plans"):
        lines = [
            f"| model | method, base | {' | '.join(parts)} | total |",
            f"| --- | --- |{' ---: |' * (len(parts) + 1)}",
        ]
        for model, rows in found.items():
            for name, planned in rows.items():
                cells = " | ".join(f"{planned[part] / gib:.2f}" for part in parts)
                lines.append(f"| {model} | {name} | {cells} | {sum(planned.values()) / gib:.2f} |")
        sections.append(
            "## Memory\n\nGiB, one sample at a time, rank 64, activation checkpointing, bfloat16 autocast; Flux.1 dev "
            "at 1024 x 1024, Wan 2.1 14B at 480 x 832 with 81 frames. `none` is bfloat16. **Planned, not run.**\n\n"
            + "\n".join(lines)
        )
    if found := stored.get("errors"):
        lines = ["| teacher | int8 | nf4 |", "| --- | ---: | ---: |"]
        lines += [f"| {name} | {row['int8']:.2%} | {row['nf4']:.2%} |" for name, row in found.items()]
        sections.append(
            f"## Error of the guided velocity\n\nRoot mean square, relative to the velocity's own, {SAMPLES} real "
            f"latents with noise at {len(ANGLES)} angles from {ANGLES[0]} to {ANGLES[-1]}.\n\n" + "\n".join(lines)
        )
    if found := stored.get("students"):
        lines = ["| student, base | steps | ratio to teacher | prompt agreement |", "| --- | ---: | ---: | ---: |"]
        for row in found:
            low, high = row["frechet_ratio_interval"] or (math.nan, math.nan)
            name, steps = row["name"].partition(", ")[0], row["num_steps"]
            ratio = f"{row['frechet_ratio']:.3f} ({low:.3f} to {high:.3f})"
            lines.append(f"| {name} | {steps} | {ratio} | {row['prompt_agreement']:.1%} |")
        sections.append(
            f"## Students of the pocket teacher\n\nOne seed, {stored['samples']:,} samples; Frechet distances to real "
            "photographs divided by that of the 50-step teacher, with 95% intervals.\n\n" + "\n".join(lines)
        )
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[], Any]] = {"plans": plans, "errors": errors, "students": lambda: students(args.samples)}
    parser.add_argument("--only", choices=parts, help="one part (default: all)")
    parser.add_argument("--samples", type=int, default=2000, help="images per row of the evaluation (default: 2000)")
    args = parser.parse_args()
    path = RESULTS / "quantization.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in [args.only] if args.only else parts:
        stored[name] = parts[name]()
        stored |= {"samples": args.samples} if name == "students" else {}
        path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "quantization.md").write_text(text(stored), encoding="utf-8")
    print(text(stored))


if __name__ == "__main__":
    main()
