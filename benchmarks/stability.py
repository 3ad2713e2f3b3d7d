"""Runs five times longer than their recipe: whether quality stays, or images over-saturate as reported for DMD.

    python -m benchmarks.stability [--recipes dmd scm] [--times 5]

Trains recipes/pocket/RECIPE.yaml for a multiple of its steps in runs/stability (resumable), then generates 1,000 images
with the exported pipeline and with the teacher from the same prompts, and compares the mean and the standard deviation
of the pixels. Writes stability.json and stability.md to benchmarks/results.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from benchmarks.runs import exported, history, train
from distill.config.recipe import load
from teachers import pocket

RUNS, RESULTS = Path("runs/stability"), Path(__file__).parent / "results"
BATCH = 50


def pixels(folder: Path, call: dict[str, Any], count: int) -> tuple[float, float]:
    """Mean and standard deviation of the pixels of `count` images, in [0, 1]."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    prompts = pocket.balanced_prompts(count)
    images = [
        pipeline(
            prompts[i : i + BATCH], generator=torch.Generator().manual_seed(i), output_type="pt", **call
        ).images.float()
        for i in range(0, count, BATCH)
    ]
    whole = torch.cat(images)
    return whole.mean().item(), whole.std().item()


def longer(name: str, times: int) -> Path:
    """The folder of the run of pocket/`name` with `times` times its steps, trained if it does not exist."""
    folder = RUNS / f"{name}-x{times}"
    steps = load(f"pocket/{name}").train.steps * times
    train(name, folder, f"train.steps={steps}", "train.evaluate_every=200")
    return folder


def main() -> None:
    """Train, compare the images, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["dmd", "scm"], help="names under recipes/pocket")
    parser.add_argument("--times", type=int, default=5, help="multiple of the recipe's steps (default: 5)")
    parser.add_argument("--samples", type=int, default=1000, help="images per row (default: 1000)")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.recipes:
        run = longer(name, args.times)
        record = exported(run)
        if not rows:
            mean, std = pixels(pocket.PIPELINE, record["teacher"]["call"], args.samples)
            rows.append({"name": "teacher", "mean": mean, "std": std})
        records = history(run)
        for entry in record["calls"]:
            count = str(entry["num_steps"])
            mean, std = pixels(run / "pipeline", entry["call"], args.samples)
            distances = {record["step"]: record["held_out_frechet"][count] for record in records}
            usual = load(f"pocket/{name}").train.steps
            rows.append(
                {
                    "name": f"{run.name}, {count} step(s)",
                    "mean": mean,
                    "std": std,
                    "frechet": {"recipe's length": distances.get(usual), "end": records[-1]["held_out_frechet"][count]},
                    "worst after the first fifth": max(d for step, d in distances.items() if step >= usual),
                }
            )
    lines = [
        "| | pixel mean | / teacher | pixel std | / teacher | held-out Frechet at the recipe's steps | at the end "
        "| maximum in between |",
        "| --- |" + " ---: |" * 7,
    ]
    for row in rows:
        ratios = [row[key] / rows[0][key] for key in ("mean", "std")]
        cells = [f"{row['mean']:.4f}", f"{ratios[0]:.3f}", f"{row['std']:.4f}", f"{ratios[1]:.3f}"]
        found = [*row["frechet"].values(), row["worst after the first fifth"]] if "frechet" in row else []
        cells += [f"{value:.3f}" if value is not None else "–" for value in found] or ["–"] * 3
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stability.json").write_text(
        json.dumps({"times": args.times, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    (RESULTS / "stability.md").write_text(
        f"# Runs {args.times} times longer than their recipes\n\n`python -m benchmarks.stability --recipes "
        f"{' '.join(args.recipes)} --times {args.times}`: one seed, {args.samples:,} images per row, pixels in "
        "[0, 1].\n\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
    print((RESULTS / "stability.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
