"""The figures of the README and of the documentation, in a light and a dark version, from committed data.

    pip install -e .
    python docs/make_figures.py

Reads benchmarks/results/pocket_quickstart.json and .png (made by `fewstep quickstart`) and the noise schedules of
`teachers/core/trigflow.py`. Writes docs/images/*.png.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt

from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import HALF_PI, Flow, VariancePreserving

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RESULTS = ROOT / "benchmarks" / "results" / "pocket_quickstart"

# Where the report's grid has its cells, in pixels: left edges of the columns, top edges of the rows, and a cell's size.
COLUMNS = {"teacher\n50 steps": 284, "solver\n1 step": 486, "solver\n2 steps": 688, "DMD\n1 step": 1324,
           "sCM\n1 step": 1526, "sCM\n2 steps": 1728}  # fmt: skip
ROWS = {"trousers": 318, "pullover": 520, "coat": 924, "sneaker": 1530, "bag": 1732, "ankle boot": 1934}
CELL = 192


@dataclass(frozen=True)
class Theme:
    """Colours on a light or a dark page (Okabe and Ito's palette, which colour-blind readers can tell apart)."""

    page: str
    text: str
    faint: str
    teacher: str
    solver: str
    dmd: str
    scm: str


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#d5d9de", "#1f2328", "#7a7a7a", "#d55e00", "#0072b2"),
    "dark": Theme("#1e2129", "#e6e8ee", "#434858", "#ffffff", "#a3a7b3", "#e69f00", "#56b4e9"),
}


def quickstart(theme: Theme) -> Any:
    """Samples of one noise side by side, and quality against latency with 95% intervals."""
    rows = {row["name"]: row for row in json.loads(RESULTS.with_suffix(".json").read_text(encoding="utf-8"))["rows"]}
    figure, (samples, plot) = plt.subplots(1, 2, figsize=(11, 5), width_ratios=[1, 1.08], layout="constrained")
    _samples(samples)
    solvers = [row for name, row in rows.items() if "DPM-Solver++" in name]
    plot.plot(*_places(solvers), "s--", color=theme.solver, markersize=6, linewidth=1)
    for row in solvers:
        _label(plot, row, f"{row['num_steps']} step{'s' * (row['num_steps'] > 1)}", theme.solver, (8, 3))
    plot.annotate("teacher with DPM-Solver++", _place(solvers[0]), (14, -18), textcoords="offset points",
                  color=theme.solver)  # fmt: skip
    students = {
        "pocket-dmd, 1 step": ("DMD, 1 step", theme.dmd, "D", (-9, 6)),
        "pocket-scm, 1 step": ("sCM, 1 step", theme.scm, "o", (-9, -12)),
        "pocket-scm, 2 steps": ("sCM, 2 steps", theme.scm, "o", (9, -12)),
    }
    for name, (text, colour, marker, offset) in students.items():
        x, y = _place(rows[name])
        plot.plot([x, x], rows[name]["frechet_ratio_interval"], color=colour, linewidth=6, alpha=0.35, zorder=2)
        plot.plot(x, y, marker, color=colour, markersize=9, zorder=3)
        _label(plot, rows[name], text, colour, offset)
    teacher = rows["teacher, 50 steps"]
    plot.plot(*_place(teacher), "*", color=theme.teacher, markersize=15)
    _label(plot, teacher, "teacher, 50 steps", theme.teacher, (-4, 10))
    plot.axhline(1, color=theme.faint, linewidth=1, zorder=0)
    plot.set(xscale="log", yscale="log", xlim=(1.9, 620), ylim=(0.5, 22))
    plot.set_xticks([5, 10, 20, 50, 100, 200, 400], ["5", "10", "20", "50", "100", "200", "400"], minor=False)
    plot.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5×", "1×", "2×", "4×", "8×", "16×"])
    plot.minorticks_off()
    plot.set_xlabel("latency of one image, ms (two CPU cores)")
    plot.set_ylabel("Fréchet distance, relative to the teacher's")
    plot.set_title("Lower left is better; bars are 95% intervals", fontsize=11, color=theme.text)
    return figure


def _samples(axes: Any) -> None:
    grid = Image.open(RESULTS.with_suffix(".png")).convert("L")
    gap, step = 8, CELL + 8
    canvas = np.zeros((step * len(ROWS) - gap, step * len(COLUMNS) - gap, 4))
    for i, top in enumerate(ROWS.values()):
        for j, left in enumerate(COLUMNS.values()):
            cell = np.asarray(grid.crop((left, top, left + CELL, top + CELL))) / 255
            canvas[i * step : i * step + CELL, j * step : j * step + CELL] = np.dstack(
                [cell] * 3 + [np.ones_like(cell)]
            )
    axes.imshow(canvas, interpolation="antialiased")
    axes.set_xticks([j * step + CELL / 2 for j in range(len(COLUMNS))], list(COLUMNS), fontsize=10)
    axes.set_yticks([i * step + CELL / 2 for i in range(len(ROWS))], list(ROWS), fontsize=10)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _place(row: dict[str, Any]) -> tuple[float, float]:
    return row["latency_ms"], row["frechet_ratio"]


def _places(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["latency_ms"] for row in rows], [row["frechet_ratio"] for row in rows]


def _label(axes: Any, row: dict[str, Any], text: str, colour: str, offset: tuple[int, int]) -> None:
    side = "left" if offset[0] > 0 else "right"
    side = "center" if -6 < offset[0] < 0 else side
    axes.annotate(text, _place(row), offset, textcoords="offset points", color=colour, ha=side)


def stable_diffusion() -> DDPMScheduler:
    """The noise schedule of Stable Diffusion 1.5."""
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def trigflow(theme: Theme) -> Any:
    """The quarter circle of TrigFlow, and the angles that native timesteps stand for."""
    figure, (circle, angles) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=[1, 1.25], layout="constrained")
    t = 0.9
    arc = np.linspace(0, HALF_PI, 200)
    circle.plot(np.cos(arc), np.sin(arc), color=theme.solver, linewidth=1.5)
    point, slope = np.array([np.cos(t), np.sin(t)]), np.array([-np.sin(t), np.cos(t)])
    small = np.linspace(0, t, 50)
    circle.plot(0.25 * np.cos(small), 0.25 * np.sin(small), color=theme.text, linewidth=1)
    circle.annotate("t", (0.29 * np.cos(t / 2), 0.29 * np.sin(t / 2)), color=theme.text)
    circle.plot([0, point[0]], [0, point[1]], color=theme.scm, linewidth=1.5)
    arrow = {"arrowstyle": "-|>", "color": theme.dmd, "linewidth": 1.8}
    circle.annotate("", point + 0.5 * slope, point, arrowprops=arrow)
    circle.annotate(
        "v = cos(t) z − sin(t) x₀", point + 0.5 * slope, (4, 6), textcoords="offset points", color=theme.dmd
    )
    circle.plot(*point, "o", color=theme.scm)
    circle.annotate("xₜ = cos(t) x₀ + sin(t) z", point, (10, 0), textcoords="offset points", color=theme.scm)
    for place, text, offset in (((1, 0), "x₀, data (t = 0)", (-36, -18)), ((0, 1), "z, noise\n(t = π/2)", (-64, -6))):
        circle.plot(*place, "o", color=theme.text)
        circle.annotate(text, place, offset, textcoords="offset points", color=theme.text)
    circle.set(aspect="equal", xlim=(-0.45, 1.75), ylim=(-0.2, 1.4))
    circle.axis("off")
    paths = {
        "Stable Diffusion 1.5 (betas)": (VariancePreserving(stable_diffusion().alphas_cumprod), theme.scm, "-"),
        "rectified flow (SD 3, Flux, Sana)": (Flow(), theme.dmd, "--"),
    }
    for name, (path, colour, style) in paths.items():
        steps = torch.linspace(0, path.num_train_timesteps - 1, 500, dtype=torch.float64)
        angles.plot(steps, path.angle(steps), style, color=colour, label=name)
    angles.axhline(HALF_PI, color=theme.faint, linewidth=1)
    angles.set_yticks([0, HALF_PI / 2, HALF_PI], ["0", "π/4", "π/2"])
    angles.set(xlabel="native timestep", ylabel="angle t, rad")
    angles.legend(frameon=False, labelcolor=theme.text)
    return figure


def max_angle(theme: Theme) -> Any:
    """How an epsilon student's output angle levels off, and what that does to the factor on its errors."""
    path = VariancePreserving(stable_diffusion().alphas_cumprod)
    t = torch.linspace(path.t_min, path.t_max, 400)
    level = Denoiser(torch.nn.Identity(), path, "epsilon", max_angle=1.2).output_angle(t)
    figure, (angle, factor) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    angle.plot(t, t, "--", color=theme.solver, label="output read at t")
    angle.plot(t, level, color=theme.scm, label="max_angle = 1.2")
    angle.set(xlabel="angle t, rad", ylabel="output angle, rad")
    factor.plot(t, 1 / torch.cos(t), "--", color=theme.solver, label="output read at t")
    factor.plot(t, 1 / torch.cos(level), color=theme.scm, label="max_angle = 1.2")
    factor.set(xlabel="angle t, rad", ylabel="1 / cos(output angle)")
    for axes in (angle, factor):
        axes.legend(frameon=False, labelcolor=theme.text)
    return figure


FIGURES: dict[str, Callable[[Theme], Any]] = {"quickstart": quickstart, "trigflow": trigflow, "max_angle": max_angle}


def save(name: str, mode: str) -> Path:
    """Draw one figure in one mode as an 8-bit palette PNG."""
    theme = THEMES[mode]
    style = {"figure.facecolor": theme.page, "axes.facecolor": theme.page, "axes.edgecolor": theme.solver,
             "text.color": theme.text, "axes.labelcolor": theme.text, "xtick.color": theme.text,
             "ytick.color": theme.text, "font.size": 11, "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip
    file = IMAGES / f"{name}-{mode}.png"
    with plt.rc_context(style):
        figure = FIGURES[name](theme)
        figure.savefig(file, dpi=160)
        plt.close(figure)
    Image.open(file).convert("RGB").quantize(255).save(file, optimize=True)
    return file


if __name__ == "__main__":
    for name in FIGURES:
        for mode in THEMES:
            print(save(name, mode))
