"""Sample images from a finished run: the exported pipeline with the call arguments in its `distill.json`.

fewstep sample runs/pocket-scm --prompt "a photo of an ankle boot" --num-steps 2 --out boot.png
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.config.options import check_options
from eval.pipelines.generate import arguments, images_of, load_pipeline, seeded
from eval.pipelines.locks import hold_pipelines
from eval.pipelines.signatures import takes_prompts
from teachers.loading.record import RECORD, read_record
from teachers.support.errors import reads
from teachers.support.files import atomic_write

MOST_IMAGES = 10_000  # of one prompt; all are in memory together


def stored_call(folder: Path, num_steps: int | None) -> dict[str, Any]:
    """The call arguments in a pipeline's `distill.json`.

    Args:
        folder: The pipeline's folder.
        num_steps: Number of sampling steps; None: the fewest.

    Raises:
        ValueError: If there is no such file, or no call with this number of steps.
    """
    file = folder / RECORD
    if not file.is_file():
        raise ValueError(f"RUN must be the folder of a finished run; {folder} has no distill.json")
    record = read_record(folder)
    try:
        calls = {entry["num_steps"]: entry["call"] for entry in record["calls"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not readable ({error}); export the run again") from error
    chosen = min(calls) if num_steps is None else num_steps
    if chosen not in calls:
        known = " or ".join(str(n) for n in sorted(calls))
        raise ValueError(f"--num-steps must be {known} for this student, got {chosen}")
    return calls[chosen]


@torch.no_grad()
@reads
def sample_images(
    run: Path,
    prompts: list[str],
    count: int,
    num_steps: int | None,
    seed: int,
    device: torch.device,
    allow_pickle: bool = False,
) -> Tensor:
    """Sample images with an exported pipeline.

    Args:
        run: The folder of a run or of a pipeline.
        prompts: The prompts; empty for pipelines without prompts.
        count: Number of images for each prompt.
        num_steps: Number of sampling steps; None: the fewest.
        seed: Seed of the noise.
        device: The device of the pipeline.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.

    Returns:
        Images (N, 3, H, W) in [0, 1], with N = count * max(1, len(prompts)).

    Raises:
        ValueError: If prompts are missing, or given to a pipeline without prompts.
    """
    folder = run / "pipeline" if (run / "pipeline").is_dir() else run
    with hold_pipelines([run]):
        call = stored_call(folder, num_steps)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        pipe = load_pipeline(folder, device, dtype, allow_pickle)
    prompted = takes_prompts(type(pipe))
    if prompted and not prompts:
        raise ValueError(f"--prompt is required for {type(pipe).__name__}")
    if prompts and not prompted:
        raise ValueError(f"--prompt must be omitted for {type(pipe).__name__}, which takes no prompts")
    repeated = [prompt for prompt in prompts for _ in range(count)] if prompted else None
    indices = range(len(repeated) if repeated else count)
    with seeded(indices, seed):
        return images_of(pipe(**arguments(pipe, call, repeated, indices, seed)))


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images (B, 3, H, W) in [0, 1] as one image with `columns` images in each row."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    width = rows[0].shape[2]
    rows = [torch.nn.functional.pad(row, (0, width - row.shape[2])) for row in rows]
    pixels = (torch.cat(rows, dim=1).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def sample_to_file(
    run: Path,
    prompts: Sequence[str],
    count: int,
    num_steps: int | None,
    seed: int,
    out: Path,
    allow_pickle: bool = False,
) -> None:
    """Sample images and save them as one grid; see `fewstep sample --help`.

    Args:
        run, prompts, count, num_steps, seed, allow_pickle: As for `sample_images`.
        out: The image file.

    Raises:
        ValueError: If an argument is wrong.
    """
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    if count > MOST_IMAGES:
        raise ValueError(f"--count must be at most {MOST_IMAGES}, got {count}")
    check_options(seed=seed)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--out must end in .png, .jpg or .webp, got {out}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = sample_images(run, list(prompts), count, num_steps, seed, device, allow_pickle)
    out.parent.mkdir(parents=True, exist_ok=True)
    image = grid(images, count if prompts else math.ceil(math.sqrt(len(images))))
    with atomic_write(out, concurrent=True) as temporary:
        image.save(temporary, format=Image.registered_extensions()[out.suffix.lower()])
    print(f"{len(images)} image{'s' * (len(images) > 1)}: {out}")


if __name__ == "__main__":
    from distill.cli import main

    main("sample")
