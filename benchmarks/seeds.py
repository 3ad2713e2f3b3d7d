"""Every pocket recipe with several seeds: spread, precision and recall, quality against training cost, stability.

    pip install -e .
    python -m benchmarks.seeds [--seeds 5] [--recipes dmd scm rcm] [--samples 5000]

Trains recipes/pocket/RECIPE.yaml with each seed in runs/seeds/RECIPE-sSEED, compares all runs with `python -m eval`,
and writes seeds.json, seeds.md and seeds.png to benchmarks/results. Finished runs are kept.

Cost is counted in network evaluations per training sample, which does not depend on the machine: 1 for a forward, 3 for
a forward and its backward, 2.4 for an exact tangent (benchmarks/results/tangent.md), 2 for a guided forward;
twice as much where a gradient flows through a frozen network to its input.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import runs
from distill.config.recipe import Recipe, load, method_options

RUNS, RESULTS = Path("runs/seeds"), Path(__file__).parent / "results"
FIGURES = {
    "frechet_ratio": ("ratio to teacher", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "density": ("density", 3),
    "coverage": ("coverage", 3),
    "psnr_to_teacher": ("PSNR to teacher, dB", 1),
    "prompt_agreement": ("prompt agreement", 3),
}
FORWARD, BACKWARD, TANGENT, GUIDED, THROUGH = 1.0, 3.0, 2.4, 2.0, 2.0


def evaluations(recipe: Recipe, step: int) -> float:
    """Network evaluations of the training up to `step`, over all samples."""
    _, chosen = method_options(recipe)
    parts = [(recipe.method["name"], chosen)]
    if recipe.method["name"] == "rcm":
        parts = [("scm", chosen.scm), ("dmd", chosen.dmd)]
    adapting = min(step, getattr(parts[0][1], "adaptation_steps", 0))
    total = adapting * (GUIDED + BACKWARD)
    for name, part in parts:
        if name == "scm":
            total += (step - adapting) * (GUIDED + TANGENT + BACKWARD)
        elif name == "lcm":
            total += (step - adapting) * (GUIDED + FORWARD + BACKWARD)
        else:
            scores = (GUIDED + FORWARD) * (THROUGH if name == "sid" else 1)
            total += (step - adapting) * (part.fake_score_updates * (FORWARD + BACKWARD) + BACKWARD + scores)
    return total * recipe.train.batch_size


def run(recipe: str, seed: int) -> Path:
    """The run's folder, trained if it is not finished."""
    folder = RUNS / f"{recipe}-s{seed}"
    if not (folder / "pipeline" / "distill.json").is_file():
        runs.train(recipe, folder, f"seed={seed}")
    return folder


def spread(values: list[float | None], digits: int) -> str:
    """Mean and standard deviation of the known values, as text."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def table(report: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, a row for each recipe and number of steps, and the teacher."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        if row["solver"]:
            continue
        name, _, steps = row["name"].partition(", ")
        groups.setdefault(f"{name.rsplit('-s', 1)[0]}, {steps}", []).append(row)
    lines = [
        "| | " + " | ".join(label for label, _ in FIGURES.values()) + " | highest ratio |",
        "| --- |" + " ---: |" * (len(FIGURES) + 1),
    ]
    for name, rows in groups.items():
        cells = [spread([row[key] for row in rows], digits) for key, (_, digits) in FIGURES.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {max(row['frechet_ratio'] for row in rows):.2f} |")
    return "\n".join(lines)


def curves(names: list[str], seeds: int) -> dict[str, dict[str, list[Any]]]:
    """For each recipe and number of steps: network evaluations, and each seed's held-out distance at them."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name in names:
        recipe = load(f"pocket/{name}")
        histories = [runs.history(RUNS / f"{name}-s{seed}") for seed in range(seeds)]
        for count in histories[0][0]["held_out_frechet"]:
            steps = [record["step"] for record in histories[0] if record["step"]]
            found[f"{name}, {count} step{'s' if count != '1' else ''}"] = {
                "evaluations": [evaluations(recipe, step) for step in steps],
                "distances": [
                    [record["held_out_frechet"][count] for record in history if record["step"] in steps]
                    for history in histories
                ],
            }
    return found


def plot(found: dict[str, dict[str, list[Any]]]) -> None:
    """Write seeds.png: median and range of the held-out distance against training cost."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for label, curve in found.items():
        columns = list(zip(*curve["distances"], strict=True))
        middle = [statistics.median(column) for column in columns]
        millions = [value / 1e6 for value in curve["evaluations"]]
        (line,) = axes.plot(millions, middle, marker="o", markersize=3, label=label)
        axes.fill_between(
            millions, list(map(min, columns)), list(map(max, columns)), alpha=0.15, color=line.get_color()
        )
    axes.set(
        xlabel="network evaluations in training, millions",
        ylabel="Frechet distance to the teacher's samples",
        yscale="log",
        title="Quality against training cost: median and range over seeds",
    )
    axes.set_yticks([0.2, 0.3, 0.5, 1, 2, 5], labels=["0.2", "0.3", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "seeds.png", dpi=130)


def at_equal_cost(found: dict[str, dict[str, list[Any]]]) -> str:
    """Each curve's median distance at the total cost of the cheapest recipe, at half of it, and at its end."""
    end = min(curve["evaluations"][-1] for curve in found.values())
    lines = ["| | " + " | ".join(f"{part * end / 1e6:.2f} M" for part in (0.5, 1.0)) + " | at the end of the run |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for label, curve in found.items():
        middle = [statistics.median(column) for column in zip(*curve["distances"], strict=True)]
        cells = [f"{interpolate(curve['evaluations'], middle, part * end):.3f}" for part in (0.5, 1.0)]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {middle[-1]:.3f} |")
    return "\n".join(lines)


def interpolate(xs: list[float], ys: list[float], x: float) -> float:
    """Linear interpolation at `x`, constant outside."""
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return ys[0] if x < xs[0] else ys[-1]


def main() -> None:
    """Train, evaluate, write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each recipe (default: 5)")
    parser.add_argument("--recipes", nargs="+", default=["dmd", "scm", "rcm"], help="names under recipes/pocket")
    parser.add_argument("--samples", type=int, default=5000, help="images per row of the evaluation (default: 5000)")
    args = parser.parse_args()
    folders = [run(recipe, seed) for recipe in args.recipes for seed in range(args.seeds)]
    report = runs.evaluate(folders, RUNS / "report", args.samples)
    found = curves(args.recipes, args.seeds)
    plot(found)
    keys = ["name", "method", "num_steps", "nfe", "samples", "frechet_distance", "training", *FIGURES]
    rows = [{key: row.get(key) for key in keys} for row in report["rows"]]
    stored = {"machine": report["machine"], "samples": args.samples, "seeds": args.seeds, "rows": rows, "curves": found}
    (RESULTS / "seeds.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "seeds.md").write_text(
        f"# Several seeds\n\n`python -m benchmarks.seeds --seeds {args.seeds} --recipes {' '.join(args.recipes)}`: "
        f"the pocket recipes, {args.seeds} seeds each, {args.samples:,} samples per row against real photographs in "
        f"the pocket classifier's features; mean and standard deviation over seeds.\n\n{table(report)}\n\n"
        "Held-out Frechet distance to the teacher's own samples at equal cost, in millions of network "
        f"evaluations (median over seeds):\n\n{at_equal_cost(found)}\n\n![quality against training cost](seeds.png)\n",
        encoding="utf-8",
    )
    print((RESULTS / "seeds.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
