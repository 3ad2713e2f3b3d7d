"""Memory plan and cost of the shipped recipes at full size, from architectures on the meta device.

    python -m benchmarks.plans [RECIPE ...]

Nothing is allocated or trained. The memory is that of one process with one sample at a time, as `fewstep memory` prints
it. The cost counts the floating-point operations of one training step, without evaluations. Writes plans.json and
plans.md to benchmarks/results; recipes that are not named keep their stored rows.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import full_size, full_size_images, full_size_media
from distill.config.recipe import Recipe, load
from distill.config.registry import TEACHERS, find
from distill.config.sections import DTYPES
from distill.config.shipped import shipped
from distill.data.batch import Batch, Pairs
from distill.data.batch_random import BatchRandom
from distill.training import memory_plan
from distill.training.meta_device import META, build_on_meta
from distill.training.state import build_distiller

RESULTS = Path(__file__).parent / "results"
MODELS = {  # recipe: function that writes the folder of its teacher
    "sd15_dmd": full_size.sd15,
    "sd15_dmd2": full_size.sd15,
    "sd15_dmd_24gb": full_size.sd15,
    "sd15_scm": full_size.sd15,
    "sd15_lcm": full_size.sd15,
    "sdxl_dmd2_lora": full_size.sdxl,
    "sd3_scm": full_size_images.sd3,
    "sd35_dmd": full_size_images.sd35,
    "pixart_dmd": full_size_images.pixart,
    "sana_scm": full_size_images.sana,
    "flux_dmd_lora": full_size_images.flux,
    "qwen_image_dmd_lora": full_size_images.qwen_image,
    "z_image_dmd_lora": full_size_images.z_image,
    "wan21_1_3b_dmd": full_size_media.wan,
    "wan21_1_3b_scm": full_size_media.wan,
    "wan21_1_3b_rcm": full_size_media.wan,
    "ltx_dmd": full_size_media.ltx,
    "cogvideox_dmd": full_size_media.cogvideox,
    "stable_audio_dmd": full_size_media.stable_audio,
    "stable_audio_scm": full_size_media.stable_audio,
}
CARDS = {"24 GB": 24e9, "48 GB": 48e9, "80 GB": 80e9}
MARGIN = 0.92  # of a card's memory that a plan may take: it excludes workspaces and fragmentation
PEAK, SHARE = 989e12, 0.4  # bfloat16 operations per second of an H100, and the share of them that training reaches
TIERS = (("full", False), ("full", True), ("lora", True))  # memory.tier, memory.checkpointing


def with_memory(recipe: Recipe, tier: str, checkpointing: bool) -> Recipe:
    """The recipe in another memory tier; a frozen base of adapters is stored as the recipe says."""
    changed = memory_plan.in_tier(recipe, tier)
    return dataclasses.replace(changed, memory=dataclasses.replace(changed.memory, checkpointing=checkpointing))


def operations(recipe: Recipe) -> float:
    """Floating-point operations of one training step for each sample: all phases of one student update."""
    family = find(TEACHERS, recipe.teacher.family)
    size = family.size_argument(recipe.teacher.size)
    teacher = build_on_meta(family, str(recipe.teacher.path), DTYPES["float32"], **size)
    distiller = build_distiller(recipe, teacher, META, report=lambda _: None)
    cond = teacher.condition([""])
    teacher.null_condition(cond)
    latents, total = torch.empty(1, *teacher.shape, device=META), 0
    known: dict[tuple[int, str], int] = {}
    rollouts = range(
        max(map(len, distiller.sampling_schedules()))
    )  # a student of several steps draws how many it makes
    for rollout, phase in itertools.product(rollouts, distiller.phases(memory_plan.LATE_STEP)):
        if (rollout, phase) not in known:
            batch = Batch(cond, BatchRandom((phase,), 0, 1, 1, META), latents, lambda: Pairs(latents, latents, cond))
            with FlopCounterMode(display=False) as counter, patch.object(BatchRandom, "pick", return_value=rollout):
                distiller(phase, batch, memory_plan.LATE_STEP)[0].backward()
            known[rollout, phase] = counter.get_total_flops()
            distiller.zero_grad(set_to_none=True)
        total += known[rollout, phase]
    return total / len(rollouts)


def settings(name: str) -> dict[str, Any]:
    """What the plan of a shipped recipe depends on."""
    stored = yaml.safe_load(shipped()[name].read_text(encoding="utf-8"))
    teacher = {key: value for key, value in stored["teacher"].items() if key in ("family", "precision", "size")}
    train = {key: stored["train"][key] for key in ("steps", "batch_size")}
    return {"teacher": teacher, "method": stored["method"], "memory": stored.get("memory", {}), "train": train}


def measure(name: str) -> dict[str, Any]:
    """The plans and the cost of one recipe."""
    with tempfile.TemporaryDirectory() as folder:
        MODELS[name](Path(folder))
        recipe = load(name, [f"teacher.path={folder}"])
        plans = {}
        for tier, checkpointing in TIERS:
            try:
                planned = memory_plan.plan(with_memory(recipe, tier, checkpointing), 1)
            except ValueError as error:
                if "memory.tier" not in str(error):  # else the method does not have this tier
                    raise
                print(name, tier, error, flush=True)
                continue
            plans[f"{tier}{', checkpointing' * checkpointing}"] = dataclasses.asdict(planned)
            print(name, tier, checkpointing, f"{planned.total / memory_plan.GIB:.1f} GiB", flush=True)
        flops = operations(dataclasses.replace(recipe, memory=dataclasses.replace(recipe.memory, checkpointing=False)))
    print(name, f"{flops / 1e12:,.0f} TFLOP a sample", flush=True)
    days = flops * recipe.train.steps * recipe.train.batch_size / (PEAK * SHARE) / 86400
    return {
        "settings": settings(name),
        "medium": find(TEACHERS, recipe.teacher.family).medium_class.name,
        "plans": plans,
        "cards": {tier: fitting(sum(planned.values())) for tier, planned in plans.items()},
        "flops": flops,
        "h100_days": days,
    }


def fitting(total: float) -> str:
    """The smallest card that a plan fits into."""
    return next((name for name, size in CARDS.items() if total <= MARGIN * size), "more than 80 GB")


def report(rows: dict[str, dict[str, Any]]) -> str:
    """plans.md from the contents of plans.json."""
    parts = [field.name for field in dataclasses.fields(memory_plan.MemoryPlan)]
    head = ["recipe", "tier", *parts, "total", "smallest card"]
    table = [head, ["---"] * 2 + ["---:"] * (len(parts) + 1) + ["---"]]
    for name, row in rows.items():
        for tier, planned in row["plans"].items():
            sizes = [f"{planned[part] / memory_plan.GIB:.2f}" for part in parts]
            total = f"{sum(planned.values()) / memory_plan.GIB:.2f}"
            table.append([f"`{name}`", tier, *sizes, total, row["cards"][tier]])
    cost = [["recipe", "TFLOP for each sample and step", "steps", "batch", "H100 days"], ["---"] + ["---:"] * 4]
    for name, row in rows.items():
        train = row["settings"]["train"]
        days = f"{row['h100_days']:,.2f}"
        numbers = [f"{row['flops'] / 1e12:,.1f}", f"{train['steps']:,}", str(train["batch_size"]), days]
        cost.append([f"`{name}`", *numbers])
    lines = ["\n".join(f"| {' | '.join(cells)} |" for cells in cells_of) for cells_of in (table, cost)]
    return f"""# Shipped recipes at full size

`python -m benchmarks.plans`: the shipped recipes with full-size architectures on the meta device. **Planned, not run**:
nothing was allocated or trained at this size. Measured peaks of Stable Diffusion are in [memory.md](memory.md).

## Memory

GiB of one process with one sample at a time and bfloat16 autocast, at the size in the recipe (Wan: 480 x 832, 81
frames). A plan fits a card if it takes at most {MARGIN:.0%} of its memory, because workspaces and fragmentation are not
planned. A tier that a recipe cannot have is left out.

{lines[0]}

## Cost

Floating-point operations of one training step for each sample (attention included, without checkpointing's second
forward passes and without evaluations; the mean over the numbers of steps that a student draws), and days of one H100
that reaches {SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s.
Checkpointing adds up to a third.

{lines[1]}
"""


def main() -> None:
    """Plan the named recipes, or all, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(MODELS)} (default: all)")
    args = parser.parse_args()
    if unknown := [name for name in args.recipes if name not in MODELS]:
        parser.error(f"RECIPE must be one of {', '.join(MODELS)}, got {unknown[0]}")
    path = RESULTS / "plans.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in args.recipes or list(MODELS):
        stored[name] = measure(name)
        ordered = {key: stored[key] for key in MODELS if key in stored}
        path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "plans.md").write_text(report(ordered), encoding="utf-8")
    print((RESULTS / "plans.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
