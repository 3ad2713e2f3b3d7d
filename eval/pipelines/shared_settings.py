"""What all runs of a comparison must agree on: settings, and the teacher with its fine-tunes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.config.run_files import RECIPE
from eval.pipelines.folders import teacher_folder
from eval.pipelines.runs import Run
from eval.pipelines.signatures import pipeline_class
from teachers.loading import registry
from teachers.loading.lora_files import Lora
from teachers.loading.loras import FUSED, fused_folder


def shared_setting(runs: list[Run], name: str) -> Any:
    """The value of a setting that all runs with a teacher must agree on.

    Args:
        runs: The runs.
        name: The name of an attribute of `Run`.

    Returns:
        The value; None if no run has a teacher.

    Raises:
        ValueError: If the values differ.
    """
    distilled = [run for run in runs if run.teacher is not None]
    for run in distilled[1:]:
        first = distilled[0]
        one, two = getattr(first, name), getattr(run, name)
        if one == two:
            continue
        if name == "teacher_loras":
            raise ValueError(
                f"all runs of a comparison must have one teacher with the same fine-tunes, {first.name} has "
                f"{_listed(one)} and {run.name} {_listed(two)}"
            )
        if name == "teacher":
            raise ValueError(
                f'all runs of a comparison must have one teacher, {first.name} has "{one}" and {run.name} "{two}"'
            )
        raise ValueError(f'{first.name} has {name} "{one}" and {run.name} "{two}"; select one with --{name}')
    return getattr(distilled[0], name) if distilled else None


def _listed(loras: Sequence[Lora]) -> str:
    return ", ".join(f"{lora.path} at {lora.scale:g}" for lora in loras) or "none"


def tuned_teacher_folder(runs: Sequence[Run], allow_pickle: bool = False) -> Path:
    """The folder of the teacher of a comparison, with the fine-tunes of its runs fused into it.

    Args:
        runs: The runs; all with a teacher must have the same one, with the same fine-tunes.
        allow_pickle: Whether pickled weights are downloaded where there are no safetensors files.

    Raises:
        ValueError: If the runs have other teachers or fine-tunes, or one does not exist.
    """
    listed = list(runs)
    folder = teacher_folder(shared_setting(listed, "teacher"), allow_pickle)
    loras = shared_setting(listed, "teacher_loras")
    family = registry.family_of_class(pipeline_class(folder)) if loras else None
    if family is None:
        return folder
    run = next(run for run in listed if run.teacher is not None).folder.parent
    is_run = (run / RECIPE).is_file()
    cache = run.parent / ".cache" if is_run else Path.home() / ".cache" / "fewstep"
    return fused_folder(family, str(folder), loras, cache / FUSED)
