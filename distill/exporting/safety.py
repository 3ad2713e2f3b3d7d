"""The safety checker of Stable Diffusion 1.x, which an exported pipeline keeps unless the recipe drops it."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from teachers.core.teacher import Teacher
from teachers.loading.location import INDEX
from teachers.loading.source import download
from teachers.support.json_files import read_json
from teachers.support.text import read_text

CHECKER, EXTRACTOR = "safety_checker", "feature_extractor"
KEPT, DROPPED, ABSENT = "kept", "dropped", "absent"


def add_safety_checker(teacher: Teacher, folder: Path, keep: bool) -> str:
    """Copy the safety checker of a teacher's pipeline into an exported one.

    Args:
        teacher: The teacher.
        folder: The exported pipeline.
        keep: Whether it is kept; if not, nothing is copied.

    Returns:
        KEPT, DROPPED, or ABSENT if the teacher has none.
    """
    loaded, source = _loaded(teacher), _source(teacher)
    if loaded is None and source is None:
        return ABSENT
    if not keep:
        return DROPPED
    index = json.loads(read_text(folder / INDEX))
    if loaded is not None:
        for name, part in loaded.items():
            part.save_pretrained(folder / name)
        index[CHECKER] = ["stable_diffusion", type(loaded[CHECKER]).__name__]
        index[EXTRACTOR] = ["transformers", type(loaded[EXTRACTOR]).__name__]
    elif source is not None:
        listed = read_json(source / INDEX, constants=True)
        for name in (CHECKER, EXTRACTOR):
            if (source / name).is_dir() and isinstance(listed.get(name), list):
                shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
                index[name] = listed[name]
    index["requires_safety_checker"] = True
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return KEPT


def _loaded(teacher: Teacher) -> dict[str, Any] | None:
    """The safety checker and its feature extractor of a teacher that was built from a pipeline in memory."""
    components = getattr(vars(teacher).get("stock"), "components", {})
    parts = {name: components.get(name) for name in (CHECKER, EXTRACTOR)}
    return parts if all(part is not None for part in parts.values()) else None


def _source(teacher: Teacher) -> Path | None:
    """The folder of the teacher's pipeline if it has a safety checker."""
    if teacher.origin is None:
        return None
    path = teacher.origin[0]
    folder = Path(path)
    if not folder.is_dir() and path.count("/") == 1 and not folder.exists():
        try:
            folder = download(DiffusionPipeline, path)
        except Exception:  # the Hub's client raises exceptions of many libraries; the teacher itself was in its cache
            return None
    return folder if (folder / CHECKER).is_dir() else None


def without_checker(kind: type[DiffusionPipeline]) -> dict[str, Any]:
    """The arguments of `from_pretrained` without the safety checker, which would replace images by black ones."""
    takes = inspect.signature(kind.__init__).parameters
    options = {CHECKER: None, "requires_safety_checker": False}
    return {name: value for name, value in options.items() if name in takes}
