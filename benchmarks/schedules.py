"""Native against bent exports of the same trained students, and the held-out curve of the second step's angle.

    python -m benchmarks.schedules [--seeds 5] [--recipes dmd scm rcm] [--samples 5000] [KEY=VALUE]...

Trains recipes/pocket/RECIPE.yaml with each seed in runs/schedules/RECIPE-sSEED, which exports it with
`export.schedule=native`; a copy of the run, RECIPE-sSEED-bent, exports the same weights with `bent`. `fewstep eval`
compares all of them. What is finished is kept, so the command continues after an interruption. Writes schedules.json
and schedules.md to benchmarks/results.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.seeds import spread

RUNS, RESULTS = Path("runs/schedules"), Path(__file__).parent / "results"
SCHEDULES = ("native", "bent")


def run(recipe: str, seed: int, schedule: str, overrides: list[str]) -> Path:
    """The folder of a run that is exported with a schedule; trained, copied or exported if it is not yet."""
    native = RUNS / f"{recipe}-s{seed}"
    folder = native if schedule == "native" else RUNS / f"{recipe}-s{seed}-bent"
    if (folder / "pipeline" / "distill.json").is_file() and runs.exported(folder)["export"] == schedule:
        return folder
    if schedule == "bent" and not (folder / "checkpoints").is_dir():
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(native, temporary, ignore=shutil.ignore_patterns("pipeline", "exported.json", "*.lock"))
        temporary.rename(folder)
    runs.train(recipe, folder, f"seed={seed}", f"export.schedule={schedule}", *overrides)
    return folder


def table(report: dict[str, Any], recipes: list[str], seeds: int) -> list[str]:
    """Ratios to the teacher's distance by schedule, and the mean difference over seeds with its 95% interval."""
    rows = {row["name"]: row["frechet_ratio"] for row in report["rows"]}
    lines = ["| | native | bent | native - bent (95%) |", "| --- | ---: | ---: | ---: |"]
    for recipe in recipes:
        for steps in ("1 step", "2 steps"):
            pairs = [
                tuple(rows.get(f"{recipe}-s{seed}{tail}, {steps}") for tail in ("", "-bent")) for seed in range(seeds)
            ]
            known = [(a, b) for a, b in pairs if a is not None and b is not None]
            if known:
                native, bent = ([pair[i] for pair in known] for i in (0, 1))
                cells = [spread(list(native), 3), spread(list(bent), 3), interval([a - b for a, b in known])]
                lines.append(f"| {recipe}, {steps} | {' | '.join(cells)} |")
    return lines


def interval(values: list[float]) -> str:
    """Mean and 95% interval by Student's t; the mean alone for one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def curve(folders: list[Path]) -> list[str]:
    """Held-out distances by the angle of the second step: mean and standard deviation over the runs that have it."""
    found: dict[float, list[float]] = {}
    for folder in folders:
        for times, distance in runs.exported(folder).get("candidates", []):
            if len(times) == 2 and distance is not None:
                found.setdefault(round(times[1], 2), []).append(distance)
    lines = ["| second step, rad | held-out distance | runs |", "| ---: | ---: | ---: |"]
    return lines + [f"| {angle:.2f} | {spread(list(d), 3)} | {len(d)} |" for angle, d in sorted(found.items())]


def main() -> None:
    """Train, export twice, evaluate, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each recipe (default: 5)")
    parser.add_argument("--recipes", nargs="+", default=["dmd", "scm", "rcm"], help="names under recipes/pocket")
    parser.add_argument("--samples", type=int, default=5000, help="images per row of the evaluation (default: 5000)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of both files")
    args, overrides = parser.parse_known_args()
    named = {
        schedule: [run(r, seed, schedule, overrides) for r in args.recipes for seed in range(args.seeds)]
        for schedule in SCHEDULES
    }
    report = runs.evaluate([*named["native"], *named["bent"]], RUNS / "report", args.samples)
    text = [
        "# Native against bent exports",
        "",
        f"`python -m benchmarks.schedules --seeds {args.seeds} --recipes {' '.join(args.recipes)} --samples "
        f"{args.samples}{' '.join(['', *overrides])}`: the same trained students, exported twice; ratio of the Frechet "
        "distance to the teacher's, mean and standard deviation over seeds.",
        "",
        *table(report, args.recipes, args.seeds),
    ]
    for schedule in SCHEDULES:
        for recipe in args.recipes:
            folders = [folder for folder in named[schedule] if folder.name.startswith(f"{recipe}-s")]
            lines = curve(folders)
            if len(lines) > 2:
                text += ["", f"## Second step of {recipe}, {schedule}", "", *lines]
    keys = ("name", "frechet_ratio", "frechet_distance", "samples")
    rows = [{key: row.get(key) for key in keys} for row in report["rows"]]
    stored = {"machine": report["machine"], "samples": args.samples, "seeds": args.seeds, "rows": rows}
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "schedules.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (args.results / "schedules.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
