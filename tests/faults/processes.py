"""Compare two processes with one: the same losses for DDP and FSDP2, with accumulation, resumed in the middle.

    python -m tests.faults.processes [--steps 50] [--teacher pocket] [--only fsdp2-scm]

The methods are DMD, DMD with a GAN and R1 ("gan"), f-distill, sCM with its adaptive weighting, rCM, LCM with an average
as its target, and SiD with its adversarial term and an aligned fake score ("sid"). Prints the largest relative
difference of any logged loss, one line for each case. Exit code 1 if it is above 1e-4.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from distill.config.recipe import load
from distill.train import train
from tests.forks import Fork

LOOP = sys.modules["distill.train"]
RECIPES = Path(__file__).parents[2] / "recipes" / "pocket"

NAMES = ("dmd", "gan", "sid", "f_distill", "scm", "rcm", "lcm")
CASES = [(engine, method) for engine in ("ddp", "fsdp2") for method in NAMES]
SETTINGS = [
    "train.batch_size=8",
    "train.accumulation=2",
    "train.log_every=1",
    "train.evaluate_every=0",
    "train.evaluate_samples=4",
    "train.evaluate_teacher_steps=2",
    "train.tracker=none",
    "train.checkpoint_every=1000",
    "train.precision=no",
]
IMAGES = ["data.prompts=null", "data.images=pocket"]
CONSTANT = ["optimizers.student.schedule=constant", "optimizers.fake_score.schedule=constant"]
SOON = ["adaptation_steps=2", "tangent_warmup=2", "second_times=[0.5]"]  # every stage of sCM in few steps
METHODS = {  # the recipe and its overrides
    "dmd": ("dmd", CONSTANT),
    "gan": ("dmd", [*CONSTANT, *IMAGES, "method.gan_weight=0.01", "method.r1_weight=0.1"]),
    "f_distill": ("f_distill", [*CONSTANT, "method.divergence=forward_kl"]),
    "scm": ("scm", [CONSTANT[0], "method.learned_weighting=true", *(f"method.{key}" for key in SOON)]),
    "lcm": ("lcm", [CONSTANT[0], "method.target_ema=0.9", "method.second_times=[0.5]"]),
    "rcm": ("rcm", [*CONSTANT, *(f"method.scm.{key}" for key in SOON)]),
    "sid": ("sid", [*CONSTANT, *IMAGES, "method.gan_weight=0.01", "method.fake_score_alignment=0.05"]),
}
LOSSES = ("loss", "adversarial", "discriminator")


def run(name: str, method: str, steps: list[int], teacher: str, output: Path, exports: bool = True) -> None:
    """Train until each of `steps`; all but the first resume, and the last is exported, if `exports`."""
    for until in steps:
        extra = [f"name={name}", f"output={output}", f"teacher.path={teacher}", f"train.steps={until}"]
        recipe, overrides = METHODS[method]
        with nullcontext() if exports and until == steps[-1] else patch.object(LOOP, "finish"):
            train(load(RECIPES / f"{recipe}.yaml", [*SETTINGS, *overrides, *extra]))


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key.endswith(LOSSES)} for line in lines]


def largest_difference(one: list[dict[str, float]], two: list[dict[str, float]]) -> float:
    """The largest relative difference of values with the same step and key."""
    assert [set(a) for a in one] == [set(b) for b in two] and one
    return max(abs(a[key] - b[key]) / (abs(a[key]) + 1e-6) for a, b in zip(one, two, strict=True) for key in a)


def worker(cases: list[tuple[str, str]], steps: int, teacher: str, output: Path) -> None:
    for engine, method in cases:
        os.environ["ACCELERATE_USE_FSDP"] = str(engine == "fsdp2").lower()
        run(f"{engine}-{method}", method, [steps // 2, steps], teacher, output)


def compare(cases: list[tuple[str, str]], steps: int, teacher: str, output: Path) -> dict[str, float]:
    """The differences by case; ValueError if the processes fail."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    variables |= {"FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "true"}
    workers = [
        Fork(
            output / rank,
            worker,
            *(cases, steps, teacher, output),
            variables=variables | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    codes = [process.wait(1e6) for process in workers]
    if any(codes):
        raise ValueError(f"the two processes ended with {codes}: {workers[0].error}")
    for method in dict.fromkeys(method for _, method in cases):
        run(f"one-{method}", method, [steps], teacher, output, exports=False)
    return {
        f"{engine}-{method}": largest_difference(
            losses(output / f"one-{method}"), losses(output / f"{engine}-{method}")
        )
        for engine, method in cases
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"{engine}-{method}" for engine, method in CASES]
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline with the same shapes')
    parser.add_argument("--output", type=Path, help="default: a temporary folder")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    cases = [case for case in CASES if "-".join(case) in args.only]
    with tempfile.TemporaryDirectory() as temporary:
        differences = compare(cases, args.steps, args.teacher, args.output or Path(temporary))
    print(f"two processes against one, {args.steps} steps, accumulation 2, resumed at {args.steps // 2}:")
    for name, difference in differences.items():
        print(f"  {name}: largest relative difference of a loss {difference:.1e}")
    sys.exit(int(max(differences.values()) > 1e-4))


if __name__ == "__main__":
    main()
