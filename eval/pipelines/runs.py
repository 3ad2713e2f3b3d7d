"""Reads runs: a diffusers pipeline and its `distill.json`, which contains its calls and evaluation settings.

An external pipeline has no distill.json. It is called with the defaults of its class or the command line's options.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from eval.pipelines.run_media import stored_medium, usual_medium
from eval.pipelines.signatures import argument, pipeline_class
from teachers.loading import registry
from teachers.loading.contents import pipeline_contents
from teachers.loading.embedded import EMBEDDED
from teachers.loading.lora_files import Lora, recorded_loras
from teachers.loading.loras import FUSED, fused_folder
from teachers.loading.prompts import read_prompts
from teachers.loading.record import RECORD, read_record
from teachers.loading.source import class_name, download, loading_errors
from teachers.media import ANY_IMAGE, Medium
from teachers.support.errors import reads
from teachers.support.keys import file_content, key
from teachers.support.regular import is_inside

FORMAT = 1
TRAINING_PROMPTS = "training_prompts.txt"  # in a pipeline's folder
EXTERNAL = "external pipeline"  # the method of a pipeline without a distill.json


@dataclass(frozen=True)
class Run:
    """A pipeline and the contents of its distill.json.

    An external pipeline has no teacher and no settings; a student of a teacher in memory has no teacher.

    Attributes:
        folder: The pipeline's folder.
        name: The run's name.
        method: The distillation method.
        teacher: The teacher: an embedded one such as "pocket", a folder or a Hub id.
        teacher_call: Arguments of the teacher's usual call.
        teacher_steps: The number of steps of that call; 0 without a teacher.
        calls: The pipeline's calls, each with "num_steps" and "call", the arguments.
        prompts: The source of prompts; it is read only if it is in the run's folder (`own_prompts`).
        features: The feature extractor.
        reference: The reference.
        cost: The cost of training, as the run recorded it.
        teacher_contents: Hashes of the teacher's files as they were in training, by name.
        teacher_loras: Fine-tunes that were fused into the teacher.
        lora_hashes: Their hashes as they were in training.
        key: The key of the training run, which the records of its logs have too.
        medium: What it samples; images are those of any size.
        shared_prompts: How many of its own evaluation prompts are training prompts, as far as it is recorded.
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
    teacher_loras: list[Lora] = field(default_factory=list)
    lora_hashes: list[str] = field(default_factory=list)
    key: str | None = None
    medium: Medium = ANY_IMAGE
    shared_prompts: int = 0


@reads
def read_run(
    path: Path, step_counts: Sequence[int] = (), guidance: float | None = None, allow_pickle: bool = False
) -> Run:
    """Read a run. Relative paths in its distill.json are resolved.

    Args:
        path: A folder with `pipeline/` in it, a diffusers pipeline's folder, or a Hub id.
        step_counts: The numbers of steps that an external pipeline is called with; empty: the default of its class.
        guidance: The guidance_scale that an external pipeline is called with; None: the default of its class.
        allow_pickle: Whether pickled weights of a Hub id are downloaded where there are no safetensors files.

    Raises:
        ValueError: The folder, its distill.json or one of its entries is missing or invalid.
    """
    folder = pipeline_folder(path, allow_pickle)
    file = folder / RECORD
    if not file.exists() and not file.is_symlink():
        return _external_pipeline(path, folder, step_counts, guidance)
    if not is_inside(file, folder):
        raise ValueError(f"{file} must be a file, got a link to a file outside of its folder; replace it by the file")
    stored = read_record(folder)
    if stored.get("format") != FORMAT:
        raise ValueError(f"{file} must have format {FORMAT}; export the pipeline again with this version")
    teacher = _entry(stored, "teacher", dict, file)
    evaluation = _entry(stored, "evaluation", dict, file)
    calls = _entry(stored, "calls", list, file)
    if not calls:
        raise ValueError(f'{file} must list at least one call, such as {{"num_steps": 1, "call": {{...}}}}')
    for call in calls:
        _entry(call, "num_steps", int, file)
        _entry(call, "call", dict, file)
    in_memory = teacher.get("path", "") is None  # nothing names the teacher, so it cannot be evaluated
    teacher_call = _entry(teacher, "call", dict, file)
    steps = teacher.get("num_steps")
    if not isinstance(steps, int):
        steps = _entry(teacher_call, "num_inference_steps", int, file)
    return Run(
        folder=folder,
        name=_entry(stored, "name", str, file),
        method=_entry(stored, "method", str, file),
        teacher=None if in_memory else _resolve(_entry(teacher, "path", str, file), folder),
        teacher_call=None if in_memory else teacher_call,
        teacher_steps=0 if in_memory else steps,
        calls=calls,
        prompts=None
        if evaluation.get("prompts") is None
        else _resolve(_entry(evaluation, "prompts", str, file), folder, first=True),
        features=evaluation.get("features") or "pixels",
        reference=None if evaluation.get("reference") is None else _reference(evaluation, file),
        cost=stored.get("cost"),
        teacher_contents=dict(teacher.get("contents") or {}),
        teacher_loras=[
            replace(lora, path=_resolve(lora.path, folder)) for lora in recorded_loras(teacher.get("loras"), file)
        ],
        lora_hashes=[str(entry.get("sha256")) for entry in teacher.get("loras") or ()],
        key=stored.get("run"),
        medium=stored_medium(stored, file),
        shared_prompts=shared if isinstance(shared := evaluation.get("shared_with_training"), int) else 0,
    )


def pipeline_identity(folder: Path) -> str:
    """A key of a pipeline's files and of its distill.json, by which a report says what it evaluated."""
    file = folder / RECORD
    return key(pipeline_contents(str(folder)), file_content(file) if file.is_file() else None)


def pipeline_folder(path: Path, allow_pickle: bool = False) -> Path:
    """The folder of a run's pipeline; that of a Hub id is downloaded. Raises ValueError if there is no pipeline."""
    folder = next((f for f in (path / "pipeline", path) if (f / "model_index.json").is_file()), None)
    if folder is not None:
        return folder
    if path.exists() or path.is_absolute() or len(path.parts) != 2 or path.parent.exists() or str(path)[0] in ".~":
        problem = "contains no pipeline" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{path} {problem}; a run must be a folder with pipeline/ in it, a diffusers pipeline's folder, or a Hub id"
        )
    return download_pipeline(str(path), f"{path} is not a folder and cannot be downloaded from the Hub", allow_pickle)


def download_pipeline(hub_id: str, problem: str, allow_pickle: bool = False) -> Path:
    """Download a pipeline into the Hub's cache.

    Args:
        hub_id: Its Hub id.
        problem: The beginning of the error message.
        allow_pickle: Whether pickled weights are downloaded where there are no safetensors files.

    Returns:
        Its folder.

    Raises:
        ValueError: The download failed.
    """
    try:
        with loading_errors(hub_id):
            kind = registry.pipeline_class(class_name(hub_id) or "")
            return download(kind or DiffusionPipeline, hub_id, allow_pickle)
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
        medium=usual_medium(folder, kind),
    )


def _entry(mapping: Any, key: str, kind: type, file: Path) -> Any:
    if not isinstance(mapping, dict) or not isinstance(mapping.get(key), kind):
        raise ValueError(f'{file} must have the entry "{key}" ({kind.__name__}); export the pipeline again')
    return mapping[key]


def _reference(evaluation: dict[str, Any], file: Path) -> str:
    """The reference; a folder that contains the run, such as "/", would be searched whole."""
    found = _resolve(_entry(evaluation, "reference", str, file), file.parent)
    if Path(found).is_dir() and file.resolve().is_relative_to(Path(found).resolve()):
        raise ValueError(
            f"the reference in {file} must be an .npz or a folder of images, got {found!r}, which holds it"
        )
    return found


def _resolve(path: str, folder: Path, first: bool = False) -> str:
    """A path relative to the pipeline's folder if it exists only there, or `first` there; otherwise unchanged."""
    if path not in EMBEDDED and (first or not Path(path).exists()) and (folder / path).exists():
        return str(folder / path)
    return path


def own_prompts(runs: list[Run]) -> str | None:
    """The source of prompts that all runs with a teacher agree on, by name or by content.

    A distill.json may come from a stranger, and prompts are shown in reports, so no file outside of its folder is read.

    Raises:
        ValueError: The runs name different prompts, or a file outside of their folders.
    """
    files = {run.prompts: run.folder for run in runs if run.prompts is not None and run.prompts not in EMBEDDED}
    for source, folder in files.items():
        if not is_inside(Path(str(source)), folder):
            raise ValueError(
                f"the distill.json in {folder} names the prompts {source!r}, which are not in its folder; "
                "give --prompts to choose prompts"
            )
    first, *others = [run.prompts for run in runs if run.teacher is not None] or [None]
    if first in files and all(other in files and read_prompts(other) == read_prompts(first) for other in others):
        return first
    shared: str | None = shared_setting(runs, "prompts")
    return shared


def training_prompts(run: Run) -> set[str] | None:
    """The training prompts of a run, or None if they are not stored with its pipeline."""
    if run.prompts == "pocket":
        return set(read_prompts("pocket"))
    file = run.folder / TRAINING_PROMPTS
    return set(read_prompts(str(file))) if is_inside(file, run.folder) and file.is_file() else None


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


@reads
def teacher_folder(path: str, allow_pickle: bool = False) -> Path:
    """The folder of the teacher's pipeline.

    Args:
        path: An embedded teacher such as "pocket", a folder, or a Hub id, which is downloaded.
        allow_pickle: Whether pickled weights are downloaded where there are no safetensors files.

    Raises:
        ValueError: There is no pipeline.
    """
    folder = EMBEDDED[path].pipeline() if path in EMBEDDED else Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f'teacher.path in distill.json must be a diffusers pipeline, got "{path}"')
    return download_pipeline(
        path, f'the teacher "{path}" is not on this machine and cannot be downloaded', allow_pickle
    )


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
    is_run = (run / "recipe.yaml").is_file()
    cache = run.parent / ".cache" if is_run else Path.home() / ".cache" / "fewstep"
    return fused_folder(family, str(folder), loras, cache / FUSED)


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
