"""Reads runs: a diffusers pipeline and its `distill.json`, which contains its calls and evaluation settings.

An external pipeline has no distill.json. It is called with the defaults of its class or the command line's options.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.pipelines.folders import pipeline_folder
from eval.pipelines.run_media import stored_medium, usual_medium
from eval.pipelines.signatures import argument, pipeline_class
from teachers.loading.contents import pipeline_contents
from teachers.loading.embedded import EMBEDDED
from teachers.loading.lora_files import Lora, recorded_loras
from teachers.loading.record import RECORD, read_record
from teachers.media import ANY_IMAGE, Medium
from teachers.support.errors import reads
from teachers.support.keys import file_content, key
from teachers.support.regular import is_inside

FORMAT = 1
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
        shared_prompts: How many of its own evaluation prompts are training prompts; None if it is not recorded.
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
    shared_prompts: int | None = None


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
        ValueError: If the folder, its distill.json or one of its entries is missing or invalid.
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
    prompts, shared = evaluation.get("prompts"), evaluation.get("shared_with_training")
    if prompts is not None:
        prompts = _resolve(_entry(evaluation, "prompts", str, file), folder, first=True)
    return Run(
        folder=folder,
        name=_entry(stored, "name", str, file),
        method=_entry(stored, "method", str, file),
        teacher=None if in_memory else _resolve(_entry(teacher, "path", str, file), folder),
        teacher_call=None if in_memory else teacher_call,
        teacher_steps=0 if in_memory else steps,
        calls=calls,
        prompts=prompts,
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
        shared_prompts=shared if isinstance(shared, int) else None,
    )


def pipeline_identity(folder: Path) -> str:
    """A key of a pipeline's files and of its distill.json, by which a report says what it evaluated."""
    file = folder / RECORD
    return key(pipeline_contents(str(folder)), file_content(file) if file.is_file() else None)


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
