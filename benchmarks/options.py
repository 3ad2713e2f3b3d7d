"""The options of the methods, one at a time, on the pocket teacher: one run for each, otherwise as in its recipe.

    python -m benchmarks.options [--only dmd+gan ...]

Trains in runs/options (finished runs are kept) and writes options.json and options.md to benchmarks/results: the
held-out Frechet distance to the teacher's own samples at the end of the run, its minimum, and the cost of the run. One
seed: differences within the spread over seeds (seeds.md) are not significant.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.runs import exported, history, train

RUNS, RESULTS = Path("runs/options"), Path(__file__).parent / "results"
IMAGES = ["data.images=pocket", "data.prompts=null"]
OPTIONS: dict[str, tuple[str, list[str]]] = {
    "dmd": ("dmd", []),
    "dmd, 5 fake-score updates": ("dmd", ["method.fake_score_updates=5"]),
    "dmd + GAN on the fake score": ("dmd", ["method.gan_weight=0.003", *IMAGES]),
    "dmd + GAN on the teacher, R1": (
        "dmd",
        ["method.gan_weight=0.003", "method.gan_features=teacher", "method.r1_weight=0.01", *IMAGES],
    ),
    "dmd + regression by LPIPS": ("dmd", ["method.regression_weight=0.25"]),
    "dmd + regression of latents": ("dmd", ["method.regression_weight=0.25", "method.regression_distance=latent"]),
    "dmd, 2 steps by backward simulation": ("dmd", ["method.timesteps=[700,350]"]),
    "dmd, Karras noise levels": ("dmd", ["method.noise_levels=karras", "method.noise_range=[0.2,0.75]"]),
    "dmd, uniform weighting": ("dmd", ["method.weighting=uniform"]),
    "dmd, 2 steps, guidance at the remaining noise levels": (
        "dmd",
        ["method.timesteps=[700,350]", "method.guidance_noise=remaining", "method.guidance_noise_range=[0.02,0.8]"],
    ),
    "dmd, fake score aligned with the student": ("dmd", ["method.fake_score_alignment=0.03"]),
    "scm": ("scm", []),
    "scm, finite differences": ("scm", ["method.tangent=finite_difference"]),
    "scm, learned weighting": ("scm", ["method.learned_weighting=true"]),
    "scm, guidance sampled from 1.5, 2, 3": ("scm", ["method.guidances=[1.5,2.0,3.0]"]),
    "scm from data (sCT), no guidance": ("scm", ["method.drift=data", "teacher.guidance=1.0"]),
    "rcm": ("rcm", []),
    "sid": ("sid", []),
    "sid, alpha 1.2": ("sid", ["method.alpha=1.2"]),
    "sid + GAN on the fake score (SiDA)": ("sid", ["method.gan_weight=0.003", *IMAGES]),
    "f-distill, Jensen-Shannon": ("f_distill", []),
    "f-distill, forward KL": ("f_distill", ["method.divergence=forward_kl"]),
    "lcm": ("lcm", []),
    "lcm, an average as target": ("lcm", ["method.target_ema=0.95"]),
    "lcm, squared error": ("lcm", ["method.loss=l2"]),
}


def run(name: str) -> dict[str, Any]:
    """Train one option; a row of the table."""
    recipe, overrides = OPTIONS[name]
    folder = RUNS / "".join(c if c.isalnum() else "-" for c in name)
    train(recipe, folder, *overrides)
    records, cost = history(folder), exported(folder)["cost"]
    last = records[-1]["held_out_frechet"]
    return {
        "recipe": recipe,
        "overrides": overrides,
        "end": last,
        "best": {count: min(record["held_out_frechet"][count] for record in records) for count in last},
        "minutes": cost["seconds"] / 60,
        "steps": cost["steps"],
    }


def main() -> None:
    """Train the chosen options and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), metavar="NAME", help="rows to train"
    )
    args = parser.parse_args()
    stored = RESULTS / "options.json"
    found: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    for name in args.only:
        found[name] = run(name)
        stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = [
        "| | overrides | held-out Frechet at the end | minimum | steps | minutes |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name in [name for name in OPTIONS if name in found]:
        row = found[name]
        end, best = (", ".join(f"{v:.3f} ({n})" for n, v in row[key].items()) for key in ("end", "best"))
        keys = " ".join(f"`{override}`" for override in row["overrides"]) or "–"
        lines.append(f"| {name} | {keys} | {end} | {best} | {row['steps']} | {row['minutes']:.1f} |")
    (RESULTS / "options.md").write_text(
        "# Options, one at a time\n\n`python -m benchmarks.options`: the pocket recipes with seed 0 and the overrides"
        " in the table; the number of sampling steps is in brackets.\nOne seed; minutes on a machine with other load."
        "\n\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
    print((RESULTS / "options.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
