"""Draw with a finished run: the exported pipeline, called as its `distill.json` says.

python -m distill.sample runs/pocket-scm --prompt "a photo of an ankle boot" --num-steps 2 --out boot.png
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.pipelines.generate import arguments, images_of, load_pipeline, parameters


def stored_call(folder: Path, num_steps: int | None) -> dict[str, Any]:
    """The call arguments of `num_steps` steps that a pipeline's `distill.json` names; the fewest steps by default.

    ValueError where there is no such record or no such number of steps.
    """
    file = folder / "distill.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no exported student (no distill.json); name a finished run's folder")
    try:
        calls = {entry["num_steps"]: entry["call"] for entry in json.loads(file.read_text())["calls"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no record of an export; export the run again ({error})") from error
    chosen = min(calls) if num_steps is None else num_steps
    if chosen not in calls:
        known = " or ".join(str(n) for n in sorted(calls))
        raise ValueError(f"this student takes {known} steps, not {chosen}; give --num-steps {known}")
    return calls[chosen]


@torch.no_grad()
def draw(run: Path, prompts: list[str], count: int, num_steps: int | None, seed: int, device: torch.device) -> Tensor:
    """Images (len(prompts) * count, 3, H, W) in [0, 1], `count` for each prompt; `count` in all where none is taken."""
    folder = run / "pipeline" if (run / "pipeline").is_dir() else run
    call = stored_call(folder, num_steps)
    pipe = load_pipeline(folder, device, torch.float16 if device.type == "cuda" else torch.float32)
    prompted = bool(parameters(type(pipe)) & {"prompt", "class_labels"})
    if prompted and not prompts:
        raise ValueError(f"{type(pipe).__name__} draws from words: give --prompt")
    if prompts and not prompted:
        raise ValueError(f"{type(pipe).__name__} draws without words: leave out --prompt")
    asked = [prompt for prompt in prompts for _ in range(count)] if prompted else None
    indices = range(len(asked) if asked else count)
    torch.manual_seed(seed)  # some stock pipelines take the noise of later steps from here, not from their generator
    return images_of(pipe(**arguments(pipe, call, asked, indices, seed)))


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images (B, 3, H, W) in [0, 1] as one picture, `columns` side by side."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    width = rows[0].shape[2]
    rows = [torch.nn.functional.pad(row, (0, width - row.shape[2])) for row in rows]
    pixels = (torch.cat(rows, dim=1).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def draw_to_file(run: Path, prompts: Sequence[str], count: int, num_steps: int | None, seed: int, out: Path) -> None:
    """Draw `count` images a prompt with the student of `run` and save them as one grid; see `fewstep sample --help`."""
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--out must end in .png, .jpg or .webp, got {out}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = draw(run, list(prompts), count, num_steps, seed, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(images, count if prompts else math.ceil(math.sqrt(len(images)))).save(out)
    print(f"{len(images)} image{'s' * (len(images) > 1)}: {out}")


if __name__ == "__main__":
    from distill.cli import main

    main("sample")
