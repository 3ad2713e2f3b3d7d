"""Both methods on teachers whose right answer is known in closed form: Gaussian mixtures.

    python -m benchmarks.analytic [--seeds 3] [--only eight_gaussians]

Writes benchmarks/analytic.md and a picture beside it. Finished cells are kept in benchmarks/results/analytic.json, so
that an interrupted run goes on where it stopped; --fresh forgets them.
"""

import argparse
import copy
import json
import time
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
from benchmarks.closed_forms import DRAWS, Map, distance, draw, floor, mode_error
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.methods.base import Distiller
from distill.methods.dmd import DMD, DMDOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.core.denoiser import Denoiser
from teachers.families.analytic import MIXTURES, Analytic
from teachers.support.files import atomic_write

HERE = Path(__file__).parent
TABLE, CELLS, PICTURE = HERE / "analytic.md", HERE / "results" / "analytic.json", HERE / "results" / "analytic.png"
WEIGHTS = Path("runs/analytic")
METHODS = ["scm", "dmd"]
EMA = 0.998
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Budget:
    """One training: steps, batch and each network's learning rate (cosine to zero)."""

    steps: int
    batch: int
    student: float
    fake_score: float = 0.0


SIZES = {"eight_gaussians": (256, 5), "checkerboard": (256, 5), "high_dimensional": (512, 4)}  # width and depth
BUDGETS = {
    ("eight_gaussians", "scm"): Budget(7000, 1024, 1e-3),
    ("checkerboard", "scm"): Budget(7000, 1024, 1e-3),
    ("high_dimensional", "scm"): Budget(6000, 512, 1e-3),
    ("eight_gaussians", "dmd"): Budget(4000, 512, 1e-3, 2e-3),
    ("checkerboard", "dmd"): Budget(4000, 512, 1e-3, 2e-3),
    ("high_dimensional", "dmd"): Budget(2500, 512, 1e-3, 2e-3),
}


def method(name: str, teacher: Analytic) -> Distiller:
    if name == "scm":
        return SCM(teacher, 1.0, SCMOptions(adaptation_steps=0, tangent_warmup=300))
    regression = {"regression_weight": 1.0, "regression_distance": "latent"}
    return DMD(teacher, 1.0, DMDOptions(timesteps=(700,), fake_score_updates=5, **regression))


@torch.no_grad()
def teacher_pairs(teacher: Analytic, count: int = 20_000) -> tuple[Tensor, Tensor]:
    """Noise and the exact ends of the ODE from it, both (count, D), float32."""
    noise = torch.randn(count, *teacher.shape, generator=torch.Generator().manual_seed(77))
    return noise, torch.cat([teacher.endpoint(part, 60) for part in noise.split(2000)]).float()


def train(distiller: Distiller, teacher: Analytic, budget: Budget, seed: int, what: str) -> Denoiser:
    """The loop of `distill.train` without its engine: the EMA student after `budget` steps on exact samples."""
    torch.manual_seed(seed)
    ema = copy.deepcopy(distiller.student).requires_grad_(False)
    parameters = {
        phase: [p for m in modules for p in m.parameters()] for phase, modules in distiller.networks().items()
    }
    optimizers = {
        phase: torch.optim.AdamW(ps, getattr(budget, phase), (0.9, 0.99), weight_decay=0.0, fused=True)
        for phase, ps in parameters.items()
    }
    noise, ends = teacher_pairs(teacher) if type(distiller).pairs(distiller.options)[0] else (None, None)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, budget.steps) for o in optimizers.values()]
    for step in tqdm(range(budget.steps), desc=what, mininterval=5):
        for number, phase in enumerate(distiller.phases(step)):
            rng = BatchRandom((seed, step, number), 0, budget.batch, budget.batch, CPU)
            data = teacher.mixture.sample(budget.batch, rng.generator).float()
            rows = None if noise is None or ends is None else rng.rows(len(noise))
            pairs = None if rows is None else partial(Pairs, noise[rows], ends[rows], {})
            loss, _ = distiller(phase, Batch({}, rng, data, pairs), step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters[phase], 10.0)
            optimizers[phase].step()
            optimizers[phase].zero_grad()
        for schedule in schedules:
            schedule.step()
        weight = 1 - min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.parameters()), list(distiller.student.parameters()), weight)
    return ema


def judge(name: str, student: Denoiser, distiller: Distiller, teacher: Analytic, exact: Map) -> dict[str, Any]:
    """A row for each number of steps; a second step's time is chosen on draws of its own, as in training."""
    times = min(distiller.sampling_schedules(), key=lambda ts: distance(student, teacher, ts, 100, 2))
    rows = {}
    for count in distiller.step_counts(times):
        used = times[:count]
        samples = torch.cat([draw(student, teacher.shape[0], used, seed) for seed in range(DRAWS)])
        rows[str(count)] = {
            "times": used,
            "energy": distance(student, teacher, used),
            "mode_error": mode_error(name, teacher, samples),
        }
    away, everywhere = exact.error(student, times[0])
    rows["1"] |= {"map_away": away, "map": everywhere}
    return rows


def picture(cells: dict[str, Any]) -> None:
    """Two-dimensional densities of 20,000 samples, one line a mixture: exact, then each method's first student."""
    size, edge, top, count = 180, 2.6, 16, 20_000
    lines = []
    for name in ("eight_gaussians", "checkerboard"):
        teacher = Analytic(MIXTURES[name]())
        shown = [(f"{name}: exact", teacher.mixture.sample(count, torch.Generator().manual_seed(1)))]
        for kind in METHODS:
            for steps, row in cells.get(f"{name}/{kind}/0", {"rows": {}})["rows"].items():
                if not (WEIGHTS / f"{name}-{kind}-0.safetensors").is_file():
                    continue  # a copy of the repository has the figures, not the students
                student = teacher.perceptron(*SIZES[name])
                student.load_state_dict(load_file(WEIGHTS / f"{name}-{kind}-0.safetensors"))
                shown.append((f"{kind}, {steps} step(s)", draw(student, 2, row["times"], 1, count)))
        canvas = Image.new("L", (size * len(shown), size + top), 255)
        for i, (label, points) in enumerate(shown):
            counts = torch.histogramdd(points.float(), [size, size], range=[-edge, edge] * 2).hist.T.flip(0)
            shade = 255 * (1 - (counts / counts.flatten().quantile(0.995).clamp_min(1)).clamp(0, 1).sqrt())
            canvas.paste(Image.fromarray(shade.byte().numpy()), (i * size, top))
            ImageDraw.Draw(canvas).text((i * size + 4, 2), label, fill=0)
        lines.append(canvas)
    whole = Image.new("L", (max(line.width for line in lines), sum(line.height for line in lines)), 255)
    for number, line in enumerate(lines):
        whole.paste(line, (0, number * line.height))
    whole.save(PICTURE)


def table(cells: dict[str, Any]) -> str:
    lines = [
        "| mixture | student | seed | steps | map, away from boundaries | map, everywhere | energy distance, 1e-4 "
        "| floor, 1e-4 | largest mode error | of exact samples | trained in |",
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
    """Train and judge the cells `todo` of the mixture `name`; each is saved when it is ready."""
    teacher = Analytic(MIXTURES[name]())
    print(f"{name}: fitting the network that students start from", flush=True)
    loss = teacher.fit(2000, width=SIZES[name][0], depth=SIZES[name][1])
    exact = Map(teacher)
    cells[name] = cells.get(name) or floor(name, teacher) | {"fit": loss, "away": 1 - exact.near.double().mean().item()}
    for kind, seed in todo:
        begun = time.perf_counter()
        distiller = method(kind, teacher)
        student = train(distiller, teacher, BUDGETS[name, kind], seed, f"{name} {kind} {seed}")
        seconds = time.perf_counter() - begun
        WEIGHTS.mkdir(parents=True, exist_ok=True)
        save_file(student.state_dict(), WEIGHTS / f"{name}-{kind}-{seed}.safetensors")
        key = f"{name}/{kind}/{seed}"
        cells[key] = {"rows": judge(name, student, distiller, teacher, exact), "seconds": seconds}
        keep(cells)
        print("\n".join(table({name: cells[name], key: cells[key]}).splitlines()[2:]), flush=True)


def keep(cells: dict[str, Any]) -> None:
    """Save `cells` beside those that another process may have finished meanwhile."""
    others = json.loads(CELLS.read_text()) if CELLS.is_file() else {}  # `main` empties it when told --fresh
    with atomic_write(CELLS) as temporary:
        temporary.write_text(json.dumps(others | cells, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each cell (default: 1)")
    parser.add_argument("--only", nargs="+", choices=list(MIXTURES), default=list(MIXTURES), help="these mixtures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    args = parser.parse_args()
    if args.fresh:
        CELLS.unlink(missing_ok=True)
    cells: dict[str, Any] = json.loads(CELLS.read_text()) if CELLS.is_file() else {}
    for name in args.only:
        todo = [(m, s) for s in range(args.seeds) for m in args.methods if f"{name}/{m}/{s}" not in cells]
        if todo:
            run(name, todo, cells)
    print(table(cells))
    away = ", ".join(f"{name} {cells[name]['away']:.0%}" for name in MIXTURES if name in cells)
    measures = (closed_forms.__doc__ or "").partition(":")[2]
    TABLE.write_text(
        "# Against closed forms\n\n`python -m benchmarks.analytic`: students of exact Gaussian-mixture teachers "
        f"(torch {torch.__version__}, {torch.get_num_threads()} CPU thread(s)).\n\n"
        f"Judged by:{measures}\nNoise away from the boundaries: {away}.\n\n{table(cells)}\n\n"
        f"![densities](results/{PICTURE.name})\n"
    )
    picture(cells)


if __name__ == "__main__":
    main()
