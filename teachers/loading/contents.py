"""The identity of a teacher, for keys of cached values: the contents of what loading it reads, and its settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import try_to_load_from_cache

from teachers.loading.load_errors import loading_errors
from teachers.loading.location import INDEX, configuration
from teachers.loading.source import download
from teachers.support.canonical import plain_attributes
from teachers.support.json_files import read_json
from teachers.support.keys import code, file_content, folder_contents, key

Contents = Mapping[str, str]
ALL = ("",)  # how the names of all components begin
RUNTIME = ("origin", "offloaded", "null_cache", "device", "_text_pipeline", "_said_overflow", "export_schedule")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx", ".onnx_data", ".gguf")


def pipeline_contents(path: str, whole: bool = False, **options: Any) -> dict[str, str]:
    """The hashes of the files that loading the pipeline at `path` reads.

    Args:
        path: A pipeline folder, a .safetensors file with the folder of its configuration, or a Hub id, whose files are
            downloaded if they are not in the Hub's cache.
        whole: Whether all files of a folder count, not only the index and the components in it.
        options: Arguments of `from_pretrained`; components that are None are not read.

    Returns:
        SHA-256 in hexadecimal digits, by the file's name relative to the folder. A single file is called "weights". A
        name that is not a path, such as that of a built-in teacher, stands for itself.

    Raises:
        ValueError: If the Hub's files cannot be read.
    """
    local = Path(path)
    if local.is_file():
        folder = configuration(path)
        return {"weights": file_content(local)} | (pipeline_contents(str(folder), whole) if folder.is_dir() else {})
    if not local.is_dir():
        snapshot = _snapshot(path, options) if path.count("/") == 1 else None
        if snapshot is None:
            return {"name": path}
        local = snapshot
    components = None if whole else _components(local / INDEX)
    if components is None:
        return folder_contents(local)
    found = {INDEX: file_content(local / INDEX)}
    for name in sorted(components):
        if (local / name).is_dir() and options.get(name, True) is not None:
            found |= {f"{name}/{file}": value for file, value in folder_contents(local / name).items()}
    return found


def stored_files(contents: Contents) -> dict[str, str]:
    """The entries of a teacher's contents that are files of a pipeline folder."""
    return {name: value for name, value in contents.items() if name == INDEX or "/" in name}


def changed_files(folder: Path, stored: Contents) -> list[str]:
    """The names of the files in `stored` that are missing in a pipeline's folder or have other contents there."""
    files = {name: folder / name for name in stored}
    return [name for name, file in files.items() if not _is_stored(file, folder) or file_content(file) != stored[name]]


def _is_stored(file: Path, folder: Path) -> bool:
    """Whether a file exists and its name, which comes from a distill.json, does not lead out of the folder."""
    return ".." not in file.parts and file.is_relative_to(folder) and file.is_file()


def encoder_key(teacher: Any, contents: Contents, method: str, *makers: Any) -> str:
    """A key of everything that a teacher's "condition" or "encode" computes with.

    Args:
        teacher: The teacher.
        contents: The contents of the whole teacher.
        method: "condition" or "encode".
        *makers: What else computes the result, for `teachers.support.keys.code`.
    """
    kind = type(teacher)
    known = kind.__module__.startswith("teachers.") or "encoder_components" in vars(kind)
    components = kind.encoder_components.get(method, ALL) if known else ALL
    return key(method, without_weights(contents, components), settings(teacher), teacher_code(teacher, *makers))


def autoencoder_key(teacher: Any, contents: Contents) -> str | None:
    """A key of the weights that a teacher's "encode" reads; None if they are not files of their own."""
    components = type(teacher).encoder_components.get("encode", ())
    names = [name for name in contents if components and name.startswith(components) and name.endswith(WEIGHT_ENDINGS)]
    return key(sorted(contents[name] for name in names)) if names else None


def teacher_key(teacher: Any, contents: Contents, inputs: Any, *makers: Any) -> str:
    """A key of what a whole teacher computes from `inputs`; see `encoder_key` for the other arguments."""
    return key(contents, settings(teacher), inputs, teacher_code(teacher, *makers))


def teacher_code(teacher: Any, *makers: Any) -> str:
    """A key of the code of a teacher: its family, its pipelines, its network, and `makers`."""
    return code(type(teacher), *type(teacher).pipelines, type(teacher.denoiser.network), *makers)


def settings(teacher: Any) -> dict[str, Any]:
    """A teacher's numbers and strings, such as `shape` and sigma_data, which do not come from files alone."""
    plain = without_runtime(plain_attributes(teacher))
    path, medium = teacher.denoiser.path, teacher.medium
    sizes: dict[str, Any] = {"shape": teacher.shape, "image_size": teacher.image_size}
    if medium.name != "image":
        sizes["medium"] = repr(medium)
    return plain | sizes | {"sigma_data": path.sigma_data}


def without_runtime(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a teacher without those that say where it is and where it comes from."""
    return {name: value for name, value in attributes.items() if name not in RUNTIME}


def without_weights(contents: Contents, components: tuple[str, ...]) -> dict[str, str]:
    """The contents without the weights of components whose names do not begin with one of `components`."""
    return {
        name: value
        for name, value in contents.items()
        if "/" not in name or not name.endswith(WEIGHT_ENDINGS) or name.startswith(components)
    }


def _components(index: Path) -> list[str] | None:
    """The components of a pipeline that have a folder, or None if there is no readable index."""
    try:
        stored = read_json(index, constants=True)
        return [
            name for name, value in stored.items() if isinstance(value, list) and any(value) and name.isidentifier()
        ]
    except (OSError, ValueError, AttributeError):
        return None


def _snapshot(path: str, options: dict[str, Any]) -> Path | None:
    """The folder of a Hub id in the Hub's cache, with all files that loading reads."""
    try:
        with loading_errors(path):
            return download(DiffusionPipeline, path, **options)
    except ValueError:
        index = try_to_load_from_cache(path, INDEX)  # an incomplete copy; loading says what is missing
        return Path(index).parent if isinstance(index, str) else None
