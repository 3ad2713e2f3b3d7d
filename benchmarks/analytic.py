"""DMD and sCM on teachers whose exact solution is known in closed form: Gaussian mixtures.

    python -m benchmarks.analytic [--seeds 3] [--only eight_gaussians]

Writes benchmarks/analytic.md and an image of the densities. Each finished training is stored in
benchmarks/results/analytic.json, and an interrupted command continues from there; --fresh starts over. Everything runs
on the CPU.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from benchmarks import closed_forms
from benchmarks.closed_forms import REPEATS, Map, distance, floor, mode_error, sample_student
from distill.config.recipe import Recipe
from distill.config.sections import OptimizerRecipe, TeacherRecipe, TrainRecipe
from distill.data.batch import Batch, Pairs
from distill.methods.base import Distiller
from distill.training.engine import Engine
from distill.training.state import TrainState
from distill.training.step import batch_rngs, train_step
from teachers.core.denoiser import Denoiser
from teachers.families.analytic import MIXTURES, Analytic
from teachers.support.files import atomic_write

HERE = Path(__file__).parent
TABLE, CELLS, DENSITIES = HERE / "analytic.md", HERE / "results" / "analytic.json", HERE / "results" / "analytic.png"
RUNS = Path("runs/analytic")
METHODS: dict[str, dict[str, Any]] = {
    "scm": {"name": "scm", "adaptation_steps": 0, "tangent_warmup": 300},
    "dmd": {
        "name": "dmd",
        "timesteps": [700],
        "fake_score_updates": 5,
        "regression_weight": 1.0,
        "regression_distance": "latent",
    },
}
PAIR_COUNT, PAIR_STEPS = 20_000, 60  # teacher pairs of the regression, and Heun steps of each


@dataclass(frozen=True)
class Budget:
    """One training: steps, batch size and the learning rate of each phase (cosine to zero)."""

    steps: int
    batch: int
    student: float
    fake_score: float | None = None


SIZES = {"eight_gaussians": (256, 5), "checkerboard": (256, 5), "high_dimensional": (512, 4)}  # width and depth
BUDGETS = {
    ("eight_gaussians", "scm"): Budget(7000, 1024, 1e-3),
    ("checkerboard", "scm"): Budget(7000, 1024, 1e-3),
    ("high_dimensional", "scm"): Budget(6000, 512, 1e-3),
    ("eight_gaussians", "dmd"): Budget(4000, 512, 1e-3, 2e-3),
    ("checkerboard", "dmd"): Budget(4000, 512, 1e-3, 2e-3),
    ("high_dimensional", "dmd"): Budget(2500, 512, 1e-3, 2e-3),
}


def recipe(method: str, budget: Budget, seed: int) -> Recipe:
    """The recipe of one training. Its teacher is built in Python, so it has no path."""
    rates = {"student": budget.student} | ({} if budget.fake_score is None else {"fake_score": budget.fake_score})
    return Recipe(
        name="analytic",
        teacher=TeacherRecipe(family="analytic"),
        method=METHODS[method],
        seed=seed,
        optimizers={
            phase: OptimizerRecipe(lr=rate, weight_decay=0.0, schedule="cosine") for phase, rate in rates.items()
        },
        train=TrainRecipe(steps=budget.steps, batch_size=budget.batch, max_norm=10.0, ema=0.998, tracker="none"),
    )


@torch.no_grad()
def teacher_pairs(teacher: Analytic) -> tuple[Tensor, Tensor]:
    """Noise and the exact end of the ODE from each row of it, both (PAIR_COUNT, D), float32."""
    noise = torch.randn(PAIR_COUNT, *teacher.shape, generator=torch.Generator().manual_seed(77))
    return noise, torch.cat([teacher.endpoint(part, PAIR_STEPS) for part in noise.split(2000)]).float()


def exact_batches(teacher: Analytic, distiller: Distiller, settings: Recipe, engine: Engine) -> Iterator[Batch]:
    """Micro-batches of exact samples of the mixture, and of teacher pairs if the method uses them."""
    noise, ends = teacher_pairs(teacher) if type(distiller).pairs(distiller.options)[0] else (None, None)
    for rng in batch_rngs(settings, engine, distiller, 0):
        latents = teacher.mixture.sample(len(rng), rng.generator).float()
        pairs = None
        if noise is not None and ends is not None:
            rows = rng.rows(len(noise))
            pairs = partial(Pairs, noise[rows], ends[rows], {})
        yield Batch({}, rng, latents, pairs)


def train(teacher: Analytic, settings: Recipe, description: str) -> TrainState:
    """Train by `settings` on exact samples; the state after the last step."""
    with Engine(settings.train, RUNS) as engine:
        state = TrainState.build(settings, teacher, engine)
        batches = exact_batches(teacher, state.distiller, settings, engine)
        for _ in tqdm(range(settings.train.steps), desc=description, mininterval=5):
            train_step(state, batches, engine, settings)
            if state.step % 100 == 0 or state.step == settings.train.steps:
                state.guard.read(tqdm.write)
    return state


def evaluate(name: str, student: Denoiser, distiller: Distiller, teacher: Analytic, exact: Map) -> dict[str, Any]:
    """A row for each number of steps. A second step's time is chosen on separate samples, as in training."""
    times = min(distiller.sampling_schedules(), key=lambda ts: distance(student, teacher, ts, 100, 2))
    rows = {}
    for count in distiller.step_counts(times):
        used = times[:count]
        samples = torch.cat([sample_student(student, teacher.shape[0], used, seed) for seed in range(REPEATS)])
        rows[str(count)] = {
            "times": used,
            "energy": distance(student, teacher, used),
            "mode_error": mode_error(name, teacher, samples),
        }
    away, everywhere = exact.error(student, times[0])
    rows["1"] |= {"map_away": away, "map": everywhere}
    return rows


def save_densities(cells: dict[str, Any]) -> None:
    """Densities of 20,000 samples, one row for each 2-D mixture: exact, then the students of seed 0."""
    size, edge, top, count = 180, 2.6, 16, 20_000
    mixtures = ("eight_gaussians", "checkerboard")
    if not all(weights(name, kind, 0).is_file() for name in mixtures for kind in METHODS):
        return  # a fresh checkout has the numbers, not the students
    rows = []
    for name in mixtures:
        teacher = Analytic(MIXTURES[name]())
        shown = [(f"{name}: exact", teacher.mixture.sample(count, torch.Generator().manual_seed(1)))]
        for kind in METHODS:
            for steps, row in cells[f"{name}/{kind}/0"]["rows"].items():
                student = teacher.perceptron(*SIZES[name])
                student.load_state_dict(load_file(weights(name, kind, 0)))
                shown.append((f"{kind}, {steps} step(s)", sample_student(student, 2, row["times"], 1, count)))
        canvas = Image.new("L", (size * len(shown), size + top), 255)
        for i, (label, points) in enumerate(shown):
            counts = torch.histogramdd(points.float(), [size, size], range=[-edge, edge] * 2).hist.T.flip(0)
            shade = 255 * (1 - (counts / counts.flatten().quantile(0.995).clamp_min(1)).clamp(0, 1).sqrt())
            canvas.paste(Image.fromarray(shade.byte().numpy()), (i * size, top))
            ImageDraw.Draw(canvas).text((i * size + 4, 2), label, fill=0)
        rows.append(canvas)
    whole = Image.new("L", (max(row.width for row in rows), sum(row.height for row in rows)), 255)
    for number, row in enumerate(rows):
        whole.paste(row, (0, number * row.height))
    whole.save(DENSITIES)


def weights(mixture: str, method: str, seed: int) -> Path:
    """The file of a trained student's weights."""
    return RUNS / f"{mixture}-{method}-{seed}.safetensors"


def table(cells: dict[str, Any]) -> str:
    """The finished trainings as a Markdown table."""
    lines = [
        "| mixture | student | seed | steps | map, away from boundaries | map, everywhere | energy distance, 1e-4 "
        "| floor, 1e-4 | largest mode error | of exact samples | training time |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, cell in sorted(cells.items()):
        if "/" not in key:
            continue
        mixture, name, seed = key.split("/")
        chance = cells[mixture]
        for steps, row in cell["rows"].items():
            maps = [f"{row[k]:.3f}" if row.get(k) == row.get(k) and k in row else "–" for k in ("map_away", "map")]
            lines.append(
                f"| {mixture} | {name} | {seed} | {steps} | {maps[0]} | {maps[1]} | {1e4 * row['energy']:.1f} | "
                f"{1e4 * chance['energy']:.1f} | {row['mode_error']:.1%} | {chance['mode_error']:.1%} | "
                f"{cell['seconds'] / 60:.1f} min |"
            )
    return "\n".join(lines)


def run(name: str, todo: list[tuple[str, int]], cells: dict[str, Any]) -> None:
    """Train and evaluate `todo`, pairs of method and seed, on the mixture `name`; each result is saved at once."""
    teacher = Analytic(MIXTURES[name]())
    print(f"{name}: fitting the network that students start from", flush=True)
    loss = teacher.fit(2000, width=SIZES[name][0], depth=SIZES[name][1])
    exact = Map(teacher)
    cells[name] = cells.get(name) or floor(name, teacher) | {"fit": loss, "away": 1 - exact.near.double().mean().item()}
    for kind, seed in todo:
        start = time.perf_counter()
        state = train(teacher, recipe(kind, BUDGETS[name, kind], seed), f"{name} {kind} {seed}")
        seconds = time.perf_counter() - start
        RUNS.mkdir(parents=True, exist_ok=True)
        save_file(state.ema.state_dict(), weights(name, kind, seed))
        key = f"{name}/{kind}/{seed}"
        cells[key] = {"rows": evaluate(name, state.ema, state.distiller, teacher, exact), "seconds": seconds}
        save(cells)
        print("\n".join(table({name: cells[name], key: cells[key]}).splitlines()[2:]), flush=True)


def save(cells: dict[str, Any]) -> None:
    """Save `cells` together with those that another process has saved since this one started."""
    others = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.is_file() else {}
    with atomic_write(CELLS) as temporary:
        temporary.write_text(json.dumps(others | cells, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train what is missing, then write the table and the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each mixture and method (default: 1)")
    parser.add_argument("--only", nargs="+", choices=list(MIXTURES), default=list(MIXTURES), help="mixtures to run")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="methods to run")
    parser.add_argument("--fresh", action="store_true", help="delete the stored results and start over")
    args = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"  # the mixtures are float64 and their networks small
    if args.fresh:
        CELLS.unlink(missing_ok=True)
    cells: dict[str, Any] = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.is_file() else {}
    for name in args.only:
        todo = [(m, s) for s in range(args.seeds) for m in args.methods if f"{name}/{m}/{s}" not in cells]
        if todo:
            run(name, todo, cells)
    print(table(cells))
    away = ", ".join(f"{name} {cells[name]['away']:.0%}" for name in MIXTURES if name in cells)
    measures = (closed_forms.__doc__ or "").partition(":")[2]
    TABLE.write_text(
        "# Comparison with closed forms\n\n`python -m benchmarks.analytic`: students of exact Gaussian-mixture teachers"
        f" (torch {torch.__version__}, {torch.get_num_threads()} CPU thread(s)).\n\n"
        f"Measures:{measures}\nNoise away from the boundaries: {away}.\n\n{table(cells)}\n\n"
        f"![densities](results/{DENSITIES.name})\n",
        encoding="utf-8",
    )
    save_densities(cells)


if __name__ == "__main__":
    main()
