"""Folders of pipelines: those of runs, of teachers, and of Hub ids, which are downloaded."""

from pathlib import Path

from diffusers import DiffusionPipeline

from teachers.loading import registry
from teachers.loading.embedded import EMBEDDED
from teachers.loading.load_errors import loading_errors
from teachers.loading.location import INDEX
from teachers.loading.source import class_name, download
from teachers.support.errors import reads


def pipeline_folder(path: Path, allow_pickle: bool = False) -> Path:
    """The folder of a run's pipeline, an embedded teacher or a Hub id, which is downloaded.

    Raises:
        ValueError: If there is no pipeline.
    """
    folder = next((f for f in (path / "pipeline", path) if (f / INDEX).is_file()), None)
    if folder is not None:
        return folder
    if str(path) in EMBEDDED and not path.exists():
        return EMBEDDED[str(path)].pipeline()
    if path.exists() or path.is_absolute() or len(path.parts) != 2 or path.parent.exists() or str(path)[0] in ".~":
        problem = "contains no pipeline" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{path} {problem}; a run must be a folder with pipeline/ in it, a diffusers pipeline's folder, a Hub id, "
            f"or one of {', '.join(EMBEDDED)}"
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
        ValueError: If the download failed.
    """
    try:
        with loading_errors(hub_id):
            kind = registry.pipeline_class(class_name(hub_id) or "")
            return download(kind or DiffusionPipeline, hub_id, allow_pickle)
    except Exception as error:  # the Hub's client raises exceptions of many libraries
        raise ValueError(f"{problem}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


@reads
def teacher_folder(path: str, allow_pickle: bool = False) -> Path:
    """The folder of the teacher's pipeline.

    Args:
        path: An embedded teacher such as "pocket", a folder, or a Hub id, which is downloaded.
        allow_pickle: Whether pickled weights are downloaded where there are no safetensors files.

    Raises:
        ValueError: If there is no pipeline.
    """
    folder = EMBEDDED[path].pipeline() if path in EMBEDDED else Path(path)
    if (folder / INDEX).is_file():
        return folder
    if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f'teacher.path in distill.json must be a diffusers pipeline, got "{path}"')
    return download_pipeline(
        path, f'the teacher "{path}" is not on this machine and cannot be downloaded', allow_pickle
    )
