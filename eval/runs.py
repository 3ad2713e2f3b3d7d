"""Reading what a run left behind: a diffusers pipeline and the `distill.json` that says how to call and judge it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from teachers import pocket
from teachers.prompts import read_prompts

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """One student: `folder` is its pipeline, the rest is its distill.json. Relative paths were resolved on reading."""

    folder: Path
    name: str
    method: str
    teacher: str
    teacher_call: dict[str, Any]
    calls: list[dict[str, Any]]
    prompts: str | None
    features: str
    reference: str | None
    cost: dict[str, Any] | None


def read_run(path: Path) -> Run:
    """The run at `path`, a folder with `pipeline/` in it or a pipeline folder itself.

    Raises ValueError, one sentence, where the folder, its distill.json or an entry of that is missing or wrong.
    """
    folder = next((f for f in (path / "pipeline", path) if (f / "model_index.json").is_file()), None)
    if folder is None:
        what = "holds no pipeline" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{path} {what}; name a finished run's folder (with pipeline/ in it) or a diffusers pipeline's folder"
        )
    file = folder / "distill.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no distill.json, so eval cannot know its teacher; export it again with distill.train"
        )
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
    """The value of field `what` that all runs share. Raises ValueError where they differ."""
    first = runs[0]
    for run in runs[1:]:
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
    return getattr(first, what)


def teacher_folder(path: str) -> Path:
    """Where the teacher's pipeline lies: "pocket", a folder, or a hub id that is fetched into the hub's cache.

    Raises ValueError where there is no pipeline.
    """
    folder = pocket.PIPELINE if path == "pocket" else Path(path)
    if (folder / "model_index.json").is_file():
        return folder
    if path == "pocket":
        raise ValueError(f'the pocket teacher is not in {folder}; make it with "python -m teachers.pocket.make"')
    if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f'the teacher "{path}" is no diffusers pipeline; mend teacher.path in distill.json')
    try:
        return Path(DiffusionPipeline.download(path))
    except Exception as error:  # the hub's client raises whatever its many layers do
        raise ValueError(f'the teacher "{path}" is not on this machine and could not be fetched: {error}') from error


def prompts_for(source: str | None, count: int) -> list[str] | None:
    """`count` prompts of `source`, gone round again where there are fewer; None where there is no source."""
    if source is None:
        return None
    prompts = read_prompts(source)
    return [prompts[i % len(prompts)] for i in range(count)]
