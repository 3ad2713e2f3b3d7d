"""Reads runs: a diffusers pipeline and its `distill.json`, which contains its calls and evaluation settings.

An external pipeline has no distill.json. It is called with the defaults of its class or the command line's options.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from eval.pipelines.signatures import argument, pipeline_class
from teachers import pocket
from teachers.loading import registry
from teachers.loading.prompts import read_prompts
from teachers.loading.source import loading_errors
from teachers.support.errors import reads

FORMAT = 1
EXTERNAL = "external pipeline"  # the method of a pipeline without a distill.json


@dataclass(frozen=True)
class Run:
    """A pipeline and the contents of its distill.json. An external pipeline has no teacher and no settings.

    Attributes:
        folder: The pipeline's folder.
        name: The run's name.
        method: The distillation method.
        teacher: The teacher: "pocket", a folder or a Hub id.
        teacher_call: Arguments of the teacher's usual call.
        teacher_steps: The number of steps of that call; 0 without a teacher.
        calls: The pipeline's calls, each with "num_steps" and "call", the arguments.
        prompts: The source of prompts.
        features: The feature extractor.
        reference: The reference.
        cost: The cost of training, as the run recorded it.
        teacher_contents: Hashes of the teacher's files as they were in training, by name.
    """

    folder: Path
    name: str
    method: str
    teacher: str | None
    teacher_call: dict[str, Any] | None
    teacher_steps: int
    calls: list[dict[str, Any]]
    prompts: str | None
    features: str | None
    reference: str | None
    cost: dict[str, Any] | None
    teacher_contents: dict[str, str] = field(default_factory=dict)


@reads
def read_run(path: Path, step_counts: Sequence[int] = (), guidance: float | None = None) -> Run:
    """Read a run. Relative paths in its distill.json are resolved.

    Args:
        path: A folder with `pipeline/` in it, a diffusers pipeline's folder, or a Hub id.
        step_counts: The numbers of steps that an external pipeline is called with; empty: the default of its class.
        guidance: The guidance_scale that an external pipeline is called with; None: the default of its class.

    Raises:
        ValueError: The folder, its distill.json or one of its entries is missing or invalid.
    """
    folder = pipeline_folder(path)
    file = folder / "distill.json"
    if not file.is_file():
        return _external_pipeline(path, folder, step_counts, guidance)
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); export the pipeline again") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"{file} must have format {FORMAT}; export the pipeline again with this version")
    teacher = _entry(stored, "teacher", dict, file)
    evaluation = _entry(stored, "evaluation", dict, file)
    calls = _entry(stored, "calls", list, file)
    if not calls:
        raise ValueError(f'{file} must list at least one call, such as {{"num_steps": 1, "call": {{...}}}}')
    for call in calls:
        _entry(call, "num_steps", int, file)
        _entry(call, "call", dict, file)
    teacher_call = _entry(teacher, "call", dict, file)
    steps = teacher.get("num_steps")
    if not isinstance(steps, int):
        steps = _entry(teacher_call, "num_inference_steps", int, file)
    return Run(
        folder=folder,
        name=_entry(stored, "name", str, file),
        method=_entry(stored, "method", str, file),
        teacher=_resolve(_entry(teacher, "path", str, file), folder),
        teacher_call=teacher_call,
        teacher_steps=steps,
        calls=calls,
        prompts=None
        if evaluation.get("prompts") is None
        else _resolve(_entry(evaluation, "prompts", str, file), folder),
        features=evaluation.get("features") or "pixels",
        reference=None
        if evaluation.get("reference") is None
        else _resolve(_entry(evaluation, "reference", str, file), folder),
        cost=stored.get("cost"),
        teacher_contents=dict(teacher.get("contents") or {}),
    )


def pipeline_folder(path: Path) -> Path:
    """The folder of a run's pipeline; that of a Hub id is downloaded. Raises ValueError if there is no pipeline."""
    folder = next((f for f in (path / "pipeline", path) if (f / "model_index.json").is_file()), None)
    if folder is not None:
        return folder
    if path.exists() or path.is_absolute() or len(path.parts) != 2 or path.parent.exists() or str(path)[0] in ".~":
        problem = "contains no pipeline" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{path} {problem}; a run must be a folder with pipeline/ in it, a diffusers pipeline's folder, or a Hub id"
        )
    return download_pipeline(str(path), f"{path} is not a folder and cannot be downloaded from the Hub")


def download_pipeline(hub_id: str, problem: str) -> Path:
    """Download a pipeline into the Hub's cache.

    Args:
        hub_id: Its Hub id.
        problem: The beginning of the error message.

    Returns:
        Its folder.

    Raises:
        ValueError: The download failed.
    """
    try:
        with loading_errors(hub_id):
            kind = registry.pipeline_class(str(DiffusionPipeline.load_config(hub_id).get("_class_name")))
            return Path((kind or DiffusionPipeline).download(hub_id))
    except Exception as error:  # the Hub's client raises exceptions of many libraries
        raise ValueError(f"{problem}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _external_pipeline(path: Path, folder: Path, step_counts: Sequence[int], guidance: float | None) -> Run:
    """A pipeline without a distill.json. Its weights are not read."""
    kind = pipeline_class(folder)
    steps, scale = argument(kind, "num_inference_steps"), argument(kind, "guidance_scale")
    default_steps = inspect.signature(kind.__call__).parameters[steps].default if steps else None
    if not steps or not isinstance(default_steps, int):
        raise ValueError(f"{kind.__name__} takes no number of steps; evaluate its images with python -m eval images")
    if guidance is not None and not scale:
        raise ValueError(f"{kind.__name__} takes no guidance_scale; omit --guidance")
    more = {} if guidance is None or scale is None else {scale: guidance}
    local = path.resolve()
    return Run(
        folder=folder,
        name=(local.parent if local.name == "pipeline" else local).name if path.exists() else str(path),
        method=EXTERNAL,
        teacher=None,
        teacher_call=None,
        teacher_steps=0,
        calls=[{"num_steps": n, "call": {steps: n} | more} for n in step_counts or (default_steps,)],
        prompts=None,
        features=None,
        reference=None,
        cost=None,
    )


def _entry(mapping: Any, key: str, kind: type, file: Path) -> Any:
    if not isinstance(mapping, dict) or not isinstance(mapping.get(key), kind):
        raise ValueError(f'{file} must have the entry "{key}" ({kind.__name__}); export the pipeline again')
    return mapping[key]


def _resolve(path: str, folder: Path) -> str:
    """A path relative to the pipeline's folder if it exists only there, otherwise unchanged."""
    if path != "pocket" and not Path(path).exists() and (folder / path).exists():
        return str(folder / path)
    return path


def shared_setting(runs: list[Run], name: str) -> Any:
    """The value of a setting that all runs with a teacher must agree on.

    Args:
        runs: The runs.
        name: The name of an attribute of `Run`.

    Returns:
        The value; None if no run has a teacher.

    Raises:
        ValueError: The values differ.
    """
    distilled = [run for run in runs if run.teacher is not None]
    for run in distilled[1:]:
        first = distilled[0]
        one, two = getattr(first, name), getattr(run, name)
        if one == two:
            continue
        if name == "teacher":
            raise ValueError(
                f'all runs of a comparison must have one teacher, {first.name} has "{one}" and {run.name} "{two}"'
            )
        raise ValueError(f'{first.name} has {name} "{one}" and {run.name} "{two}"; select one with --{name}')
    return getattr(distilled[0], name) if distilled else None


@reads
def teacher_folder(path: str) -> Path:
    """The folder of the teacher's pipeline.

    Args:
        path: "pocket", a folder, or a Hub id, which is downloaded.

    Raises:
        ValueError: There is no pipeline.
    """
    folder = pocket.PIPELINE if path == "pocket" else Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if path == "pocket":
        raise ValueError(f'the pocket teacher is not in {folder}; create it with "python -m benchmarks.pocket.make"')
    if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f'teacher.path in distill.json must be a diffusers pipeline, got "{path}"')
    return download_pipeline(path, f'the teacher "{path}" is not on this machine and cannot be downloaded')


def prompts_for(source: str | None, count: int) -> tuple[list[str] | None, int]:
    """`count` prompts, repeated from the first if the source has fewer.

    Args:
        source: A source of prompts (`teachers.loading.prompts`), or None.
        count: The number of samples.

    Returns:
        The prompts, and how many the source has; None and 0 without a source.
    """
    if source is None:
        return None, 0
    prompts = read_prompts(source)
    return [prompts[i % len(prompts)] for i in range(count)], len(prompts)
