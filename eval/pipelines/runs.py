"""Reading what a run left behind: a diffusers pipeline and the `distill.json` that says how to call and judge it.

A diffusers pipeline without one is a stranger's: it is judged too, called as its class or the command line says.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from eval.pipelines.generate import pipeline_class
from teachers import pocket
from teachers.loading.prompts import read_prompts
from teachers.loading.source import loading_errors

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """One pipeline: `folder` is where it lies, the rest is its distill.json. Relative paths were resolved on reading.

    A pipeline that came without one has no teacher, and says nothing of prompts, features or a reference.
    """

    folder: Path
    name: str
    method: str
    teacher: str | None
    teacher_call: dict[str, Any] | None
    calls: list[dict[str, Any]]
    prompts: str | None
    features: str | None
    reference: str | None
    cost: dict[str, Any] | None


def read_run(path: Path, often: Sequence[int] = (), guidance: float | None = None) -> Run:
    """The run at `path`: a folder with `pipeline/` in it, a diffusers pipeline's folder, or a hub id.

    `often` and `guidance` say how a pipeline without a distill.json is called: in how many steps, a row for each
    number, and with which guidance_scale; its class's defaults stand in for them. Raises ValueError, one sentence,
    where the folder, its distill.json or an entry of that is missing or wrong.
    """
    folder = pipeline_folder(path)
    file = folder / "distill.json"
    if not file.is_file():
        return _external_pipeline(path, folder, often, guidance)
    try:
        stored = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); export the pipeline again") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(
            f"{file} is not of format {FORMAT}, the one that this version reads; export the pipeline again"
        )
    teacher = _entry(stored, "teacher", dict, file)
    judged = _entry(stored, "evaluation", dict, file)
    calls = _entry(stored, "calls", list, file)
    if not calls:
        raise ValueError(f'{file} lists no calls; give at least one, such as {{"num_steps": 1, "call": {{...}}}}')
    for call in calls:
        _entry(call, "num_steps", int, file)
        _entry(call, "call", dict, file)
    teacher_call = _entry(teacher, "call", dict, file)
    _entry(teacher_call, "num_inference_steps", int, file)
    return Run(
        folder=folder,
        name=_entry(stored, "name", str, file),
        method=_entry(stored, "method", str, file),
        teacher=_near(_entry(teacher, "path", str, file), folder),
        teacher_call=teacher_call,
        calls=calls,
        prompts=None if judged.get("prompts") is None else _near(_entry(judged, "prompts", str, file), folder),
        features=judged.get("features") or "pixels",
        reference=None if judged.get("reference") is None else _near(_entry(judged, "reference", str, file), folder),
        cost=stored.get("cost"),
    )


def pipeline_folder(path: Path) -> Path:
    """Where the pipeline of a run lies; a hub id is fetched into the hub's cache. Raises ValueError where none is."""
    folder = next((f for f in (path / "pipeline", path) if (f / "model_index.json").is_file()), None)
    if folder is not None:
        return folder
    if path.exists() or path.is_absolute() or len(path.parts) != 2 or path.parent.exists() or str(path)[0] in ".~":
        what = "holds no pipeline" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{path} {what}; name a finished run's folder (with pipeline/ in it), a diffusers pipeline's folder, or "
            "the hub id of one"
        )
    return fetched(str(path), f"{path} is no folder here, and as a hub id it could not be fetched")


def fetched(path: str, otherwise: str) -> Path:
    """The folder of a pipeline from the hub. Raises ValueError that begins with `otherwise` where that fails."""
    try:
        with loading_errors(path):
            return Path(DiffusionPipeline.download(path))
    except Exception as error:  # the hub's client raises whatever its many layers do
        raise ValueError(f"{otherwise}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _external_pipeline(path: Path, folder: Path, often: Sequence[int], guidance: float | None) -> Run:
    """A pipeline that no export of ours made. Its weights are not read."""
    kind = pipeline_class(folder)
    if kind is None:
        raise ValueError(f"{folder}/model_index.json names a class that this version of diffusers lacks; upgrade it")
    takes = inspect.signature(kind.__call__).parameters
    usual = takes["num_inference_steps"].default if "num_inference_steps" in takes else None
    if not isinstance(usual, int):
        raise ValueError(f"{kind.__name__} takes no number of steps, so eval cannot call it alike; judge its images")
    if guidance is not None and "guidance_scale" not in takes:
        raise ValueError(f"{kind.__name__} takes no guidance_scale; leave out --guidance")
    more = {} if guidance is None else {"guidance_scale": guidance}
    local = path.resolve()
    return Run(
        folder=folder,
        name=(local.parent if local.name == "pipeline" else local).name if path.exists() else str(path),
        method="other pipeline",
        teacher=None,
        teacher_call=None,
        calls=[{"num_steps": n, "call": {"num_inference_steps": n} | more} for n in often or (usual,)],
        prompts=None,
        features=None,
        reference=None,
        cost=None,
    )


def _entry(mapping: Any, key: str, kind: type, file: Path) -> Any:
    if not isinstance(mapping, dict) or not isinstance(mapping.get(key), kind):
        raise ValueError(f'{file} lacks the entry "{key}" ({kind.__name__}); export the pipeline again')
    return mapping[key]


def _near(path: str, folder: Path) -> str:
    """A path as written where it leads somewhere from here, else as seen from the pipeline, else as written."""
    if path != "pocket" and not Path(path).exists() and (folder / path).exists():
        return str(folder / path)
    return path


def same(runs: list[Run], what: str) -> Any:
    """The value of field `what` that all runs of one teacher share; None where no run has a teacher.

    Raises ValueError where they differ.
    """
    ours = [run for run in runs if run.teacher is not None]
    for run in ours[1:]:
        first = ours[0]
        one, two = getattr(first, what), getattr(run, what)
        if one == two:
            continue
        if what == "teacher":
            raise ValueError(
                f'{first.name} was distilled from "{one}" and {run.name} from "{two}"; '
                "compare runs of one teacher at a time"
            )
        raise ValueError(
            f'{first.name} asks for {what} "{one}" and {run.name} for "{two}"; say which to use with --{what}'
        )
    return getattr(ours[0], what) if ours else None


def teacher_folder(path: str) -> Path:
    """Where the teacher's pipeline lies: "pocket", a folder, or a hub id that is fetched into the hub's cache.

    Raises ValueError where there is no pipeline.
    """
    folder = pocket.PIPELINE if path == "pocket" else Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if path == "pocket":
        raise ValueError(f'the pocket teacher is not in {folder}; make it with "python -m benchmarks.pocket.make"')
    if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f'the teacher "{path}" is no diffusers pipeline; mend teacher.path in distill.json')
    return fetched(path, f'the teacher "{path}" is not on this machine and could not be fetched')


def step_counts(words: str | None) -> list[int]:
    """ "4" or "1,2,4" as numbers; None is no number. Raises ValueError for other words."""
    if words is None:
        return []
    try:
        counts = [int(word) for word in words.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ValueError(f'--steps takes whole numbers from 1 on, such as 4 or 1,2,4, and not "{words}"')
    return list(dict.fromkeys(counts))


def prompts_for(source: str | None, count: int) -> tuple[list[str] | None, int]:
    """`count` prompts of `source`, gone round again where there are fewer, and how many it holds; None and 0 without a
    source."""
    if source is None:
        return None, 0
    prompts = read_prompts(source)
    return [prompts[i % len(prompts)] for i in range(count)], len(prompts)
