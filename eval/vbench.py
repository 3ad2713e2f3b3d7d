"""Write the clips that VBench evaluates.

    fewstep eval vbench RUN FOLDER --prompts all_dimension.txt

VBench's own prompts are in its repository. Each prompt has several clips from different noise.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eval.config.options import check_options
from eval.pipelines.generate import arguments, largest_batch, seeded
from eval.pipelines.loading import check_pipeline, load_pipeline
from eval.pipelines.locks import hold_pipelines
from eval.pipelines.machine import PRECISIONS, choose_device, choose_precision
from eval.pipelines.runs import Run, read_run
from eval.pipelines.vbench import create_folder, save_for_vbench, vbench_name
from teachers.loading.prompts import read_prompts
from teachers.media import Video
from teachers.media.video_writing import import_av
from teachers.support.files import remove_stale
from teachers.support.locks import replaced
from teachers.support.text import counted

MOST_CLIPS = 100  # of one prompt; VBench uses at most 25


@torch.inference_mode()
def write_clips(
    run: Path,
    folder: Path,
    prompts: str,
    count: int = 5,
    num_steps: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    allow_pickle: bool = False,
) -> str:
    """Write `count` clips of every prompt that are not in the folder yet.

    Args:
        run: A run, a pipeline's folder or a Hub id.
        folder: The folder, which is created.
        prompts: The source of prompts.
        count: Clips of each prompt.
        num_steps: Number of sampling steps; None: the fewest.
        batch_size: Clips generated at once.
        seed: Seed of the noise; a clip depends on it, its prompt's position and its number only.
        device: A torch device; None: a GPU if there is one.
        precision: The precision of the weights; None: float16 on a GPU, float32 on a CPU.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.

    Returns:
        A sentence that says what was written.

    Raises:
        ValueError: If an option is invalid, or the run makes no clips.
    """
    check_options(seed=seed, batch_size=batch_size)
    if not 1 <= count <= MOST_CLIPS:
        raise ValueError(f"--count must be from 1 to {MOST_CLIPS}, got {count}")
    import_av("clips for VBench cannot be written")
    texts = list(dict.fromkeys(read_prompts(prompts)))
    with ExitStack() as locks:
        with hold_pipelines([run]):
            read = read_run(run, allow_pickle=allow_pickle)
            if not isinstance(read.medium, Video):
                raise ValueError(f"RUN must make clips for VBench, {read.name} makes {read.medium.plural}")
            call = _call(read, num_steps)
            names = [(k, n, vbench_name(text, n)) for k, text in enumerate(texts) for n in range(count)]
            create_folder(folder)
            locks.enter_context(replaced(folder))  # locks the folder itself, so no file is added to it
            remove_stale(folder, [".*.tmp"])
            missing = [(k, n) for k, n, name in names if not (folder / name).exists()]
            target = choose_device(device)
            dtype = PRECISIONS[choose_precision(precision, target)]
            if missing:
                check_pipeline(read.folder, allow_pickle)
                pipe = load_pipeline(read.folder, target, dtype, allow_pickle)
                size = largest_batch(pipe, batch_size)
        for first in tqdm(range(0, len(missing), size), unit="batch") if missing else ():
            part = missing[first : first + size]
            indices = [k * MOST_CLIPS + n for k, n in part]
            wanted = [texts[k] for k, _ in part]
            with seeded(indices, seed):
                output = pipe(**arguments(pipe, call, wanted, indices, seed))
            clips = read.medium.received(output).cpu()
            for (k, n), clip in zip(part, clips, strict=True):  # a number may be missing between existing ones
                save_for_vbench(clip[None], [texts[k]], folder, read.medium, {texts[k]: n})
    written, there = counted(len(missing), "clip"), len(names) - len(missing)
    return f"{written} written to {folder}, {there} already there; run VBench on this folder"


def _call(run: Run, num_steps: int | None) -> dict[str, Any]:
    """The arguments of the pipeline's call with `num_steps` steps; None: the fewest."""
    calls: dict[int, dict[str, Any]] = {entry["num_steps"]: entry["call"] for entry in run.calls}
    steps = min(calls) if num_steps is None else num_steps
    if steps not in calls:
        raise ValueError(f"--num-steps must be {' or '.join(map(str, sorted(calls)))} for this run, got {steps}")
    return calls[steps]
