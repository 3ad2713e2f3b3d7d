"""Sample images, clips or sounds from a finished run.

The exported pipeline is called with the arguments in its `distill.json`.

fewstep sample runs/pocket-scm --prompt "a photo of an ankle boot" --num-steps 2 --out boot.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config.run_files import PIPELINE
from eval.config.options import check_options
from eval.pipelines.generate import arguments, largest_batch, seeded
from eval.pipelines.loading import load_pipeline
from eval.pipelines.locks import hold_pipelines
from eval.pipelines.run_media import stored_medium
from eval.pipelines.signatures import source_names, takes_prompts
from eval.pipelines.sources import source_shape
from teachers.loading.record import RECORD, read_record
from teachers.loading.sources import read_source
from teachers.media import Medium
from teachers.media.video_writing import import_av
from teachers.support.errors import reads
from teachers.support.text import counted, printable

MOST_SAMPLES = 10_000  # of one prompt; all are in memory together
ENDINGS = {"image": ".png", "video": ".webp", "audio": ".wav"}  # of the default of --out


def stored_call(folder: Path, num_steps: int | None) -> tuple[dict[str, Any], Medium]:
    """The call arguments in a pipeline's `distill.json`, and what the pipeline samples.

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
    return calls[chosen], stored_medium(record, file)


@torch.no_grad()
@reads
def sample_run(
    run: Path,
    prompts: list[str],
    count: int,
    num_steps: int | None,
    seed: int,
    device: torch.device,
    allow_pickle: bool = False,
    image: Path | None = None,
    mask: Path | None = None,
) -> tuple[Tensor, Medium]:
    """Sample with an exported pipeline.

    Args:
        run: The folder of a run or of a pipeline.
        prompts: The prompts; empty for pipelines without prompts.
        count: Number of samples for each prompt.
        num_steps: Number of sampling steps; None: the fewest.
        seed: Seed of the noise.
        device: The device of the pipeline.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.
        image: The source image, for pipelines that take one.
        mask: Its mask, for pipelines that take one: white areas are repainted.

    Returns:
        Samples (N, *medium.shape) in the judged range, such as images in [0, 1], with N = count *
        max(1, len(prompts)); and their medium.

    Raises:
        ValueError: If prompts or a source image are missing, or given to a pipeline without them.
    """
    folder = pipeline_of(run)
    with hold_pipelines([run]):
        call, medium = stored_call(folder, num_steps)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        pipe = load_pipeline(folder, device, dtype, allow_pickle)
    prompted = takes_prompts(type(pipe))
    if prompted and not prompts:
        raise ValueError(f"--prompt is required for {type(pipe).__name__}")
    if prompts and not prompted:
        raise ValueError(f"--prompt must be omitted for {type(pipe).__name__}, which takes no prompts")
    sources = _source(folder, type(pipe), image, mask)
    repeated = [prompt for prompt in prompts for _ in range(count)] if prompted else None
    total = len(repeated) if repeated else count
    size, samples = largest_batch(pipe, total), []
    for first in range(0, total, size):
        indices = range(first, min(first + size, total))
        own = repeated[first : first + size] if repeated else None
        with seeded(indices, seed):
            images = None if sources is None else sources.expand(len(indices), *sources.shape[1:])
            samples.append(medium.received(pipe(**arguments(pipe, call, own, indices, seed, sources=images))))
    return torch.cat(samples), medium


def _source(folder: Path, kind: type[Any], image: Path | None, mask: Path | None) -> Tensor | None:
    """The source image (1, ...) of a call; None for pipelines without source images."""
    names = source_names(kind)
    for flag, file, needed in (("--image", image, len(names) > 0), ("--mask", mask, len(names) > 1)):
        if needed and file is None:
            raise ValueError(f"{flag} is required for {kind.__name__}")
        if file is not None and not needed:
            raise ValueError(f"{flag} must be omitted for {kind.__name__}, which takes no such image")
        if file is not None and not file.is_file():
            raise ValueError(f"{flag} must be the file of an image, {printable(file)} does not exist")
    return None if image is None else read_source(image, mask, source_shape(folder))[None]


def sample_to_file(
    run: Path,
    prompts: Sequence[str],
    count: int,
    num_steps: int | None,
    seed: int,
    out: Path | None,
    allow_pickle: bool = False,
    image: Path | None = None,
    mask: Path | None = None,
) -> None:
    """Sample and save the images or clips as one grid, or the sounds as one file each; see `fewstep sample --help`.

    Args:
        run, prompts, count, num_steps, seed, allow_pickle, image, mask: As for `sample_run`.
        out: The file, or, of several sounds, the file without their numbers; None: sample.png, .webp or .wav.

    Raises:
        ValueError: If an argument is wrong.
    """
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    if count > MOST_SAMPLES:
        raise ValueError(f"--count must be at most {MOST_SAMPLES}, got {count}")
    check_options(seed=seed)
    folder = pipeline_of(run)
    with hold_pipelines([run]):
        _, medium = stored_call(folder, num_steps)
    out = Path(f"sample{ENDINGS[medium.name]}") if out is None else out
    check_ending(out, medium)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples, medium = sample_run(run, list(prompts), count, num_steps, seed, device, allow_pickle, image, mask)
    out.parent.mkdir(parents=True, exist_ok=True)
    files = medium.save(samples.cpu(), out, count if prompts else None)
    listed = f"{files[0]}" if len(files) == 1 else f"{files[0]} to {files[-1].name}"
    print(f"{counted(len(samples), medium.noun, medium.plural)}: {listed}")


def pipeline_of(run: Path) -> Path:
    """The folder of a run's pipeline; a pipeline's folder itself."""
    return run / PIPELINE if (run / PIPELINE).is_dir() else run


def check_ending(out: Path, medium: Medium) -> None:
    """Raise ValueError if the medium cannot be written to a file with this ending, or not on this machine."""
    endings = [ending for ending in medium.save_endings if ending != ".jpeg"]
    if out.suffix.lower() not in medium.save_endings:
        *others, last = endings
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"--out must end in {allowed}, got {out}")
    if out.suffix.lower() == ".mp4":
        import_av(f"{out} cannot be written")


if __name__ == "__main__":
    from distill.cli import main

    main("sample")
