"""What the files of a model folder may name: checked before anything of it is loaded.

Model folders come from strangers. Their files are data: no file names code to run, and every file that is read is
inside the folder. The libraries that load the folder make some of these checks too; here they hold for every loader and
every version of these libraries.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers

from teachers.loading.components import is_component
from teachers.loading.location import INDEX
from teachers.support.json_files import read_json
from teachers.support.limits import CONFIG_BYTES, TABLE_BYTES

# Keys by which a configuration names code of its repository.
CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "custom_generate", "_module")
TRUST = "trust_remote_code"  # some configurations pass it on to the model that they name
# Keys whose value is the name of a class of diffusers or transformers.
CLASSES = ("_class_name", "tokenizer_class", "processor_class", "image_processor_type", "feature_extractor_type")
# Keys whose value can name compiled code in a repository of the Hub, as "owner/name".
KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
# Keys whose value names files that a tokenizer reads.
FILES = ("vocab_file", "merges_file", "tokenizer_file", "spm_file", "fast_tokenizer_files", "configuration_files")
MODEL_TYPE = re.compile(r"[\w.-]*")
CACHE = re.compile(r"(models|datasets|spaces|kernels)--.+")  # the folder of a repository in the Hub's cache


def check_pipeline_files(folder: Path, index: Mapping[str, Any]) -> None:
    """Check the files of a pipeline's components.

    Args:
        folder: The pipeline's folder.
        index: The contents of its model_index.json, after `components.check_components`.

    Raises:
        ValueError: With the name of a file that is outside the folder, names code, or is code.
    """
    check_inside(folder / INDEX, folder)
    check_config(folder / INDEX)
    for name, entry in index.items():
        if not is_component(entry):
            continue
        if (folder / name / f"{entry[0]}.py").exists():  # diffusers would take the component's class from it
            raise ValueError(
                f"{folder / name / entry[0]}.py is code, which is never run; use a component without code of its own"
            )
        check_files(folder / name, folder)


def check_model_files(folder: Path) -> None:
    """Check the files of a folder with one model of transformers, such as CLIP or DINOv2.

    Raises:
        ValueError: With the name of a file that is outside the folder or names code.
    """
    check_files(folder, folder)


def check_files(folder: Path, root: Path) -> None:
    """Check all files of a component.

    Args:
        folder: The component's folder; it need not exist.
        root: The folder that every file must be inside of.
    """
    check_no_adapter(folder)
    for file in _walk(folder):
        check_inside(file, root)
        if file.suffix != ".json" or not file.is_file():
            continue
        if file.name.startswith("._"):  # macOS writes these beside others; no loader reads them
            continue
        if ".index." in file.name:
            check_weight_index(file)
        elif "config" in file.name:
            check_config(file)


def check_no_adapter(folder: Path) -> None:
    """Check that a component is not an adapter: its configuration could name any folder or repository as base model."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter (adapter_config.json); merge the adapter into the weights and save it again"
        )


def check_inside(path: Path, root: Path) -> None:
    """Check that a file or folder is not a link to outside of `root`, other than to blobs of the Hub's cache.

    Raises:
        ValueError: With the path and where it leads.
    """
    real, base = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    allowed = [base]
    if base.parent.name == "snapshots" and CACHE.fullmatch(base.parent.parent.name):
        repository = base.parent.parent
        allowed += [repository / "blobs", repository.parent / "blobs"]  # the second is shared by all repositories
    if not any(real == folder or folder in real.parents for folder in allowed):
        raise ValueError(f"{path} must not be a link to outside of {root}, got {real}; replace it by a copy")


def check_weight_index(file: Path) -> None:
    """Check that the index of sharded weights names files next to it, in its own format.

    Raises:
        ValueError: With the name that leads elsewhere.
    """
    shards = _values(file).get("weight_map")
    ending = ".safetensors" if ".safetensors." in file.name else ""
    for shard in shards.values() if isinstance(shards, dict) else [shards]:
        plain = isinstance(shard, str) and os.path.basename(shard) == shard and "\\" not in shard and shard[:1] != "."
        if not plain or not str(shard).endswith(ending):
            raise ValueError(
                f"{file} must list {ending.removeprefix('.') or 'weight'} files in its own folder, got {shard!r}"
            )


def check_config(file: Path) -> None:
    """Check that a configuration names no code.

    Raises:
        ValueError: With the key that does.
    """
    for key, value in _entries(_values(file)):
        if (key in CODE and isinstance(value, str | list | dict) and value) or (key == TRUST and value):
            raise ValueError(
                f"{file} names code of its repository ({key}), which is never run; use a model of diffusers, "
                "transformers or an installed teacher family"
            )
        if key in CLASSES and value is not None and not _is_class_name(value, key):
            raise ValueError(f"{key} in {file} must be the name of a class, got {value!r}")
        if key == "model_type" and value is not None and not (isinstance(value, str) and MODEL_TYPE.fullmatch(value)):
            raise ValueError(f"{key} in {file} must be the name of an architecture, got {value!r}")
        if key in FILES and (outside := next((name for name in _names(value) if _is_elsewhere(file, name)), None)):
            raise ValueError(f"{key} in {file} must be a file in its own folder, got {outside!r}; remove the key")
        if key in KERNELS and any(mark in json.dumps(value) for mark in "/@"):
            raise ValueError(f"{key} in {file} must not name code of a repository, got {value!r}; remove the key")


def _names(value: Any) -> list[str]:
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]


def _is_elsewhere(file: Path, name: str) -> bool:
    """Whether `name` leads to an existing file in another folder. Paths on an author's machine are of no effect."""
    return os.path.basename(name) != name and (os.path.exists(name) or (file.parent / name).exists())


def _is_class_name(value: Any, key: str) -> bool:
    """Whether a value can name a class. The class need not exist: it may be one of a plug-in or another version."""
    if not (isinstance(value, str) and value.isidentifier()):
        return False
    found = getattr(diffusers if key == "_class_name" else transformers, value, None)
    return found is None or isinstance(found, type)


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested JSON objects."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _walk(folder: Path) -> Iterator[Path]:
    """A folder, and the files and folders in it; links to folders are not followed."""
    if folder.is_symlink() or folder.exists():
        yield folder
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in sorted((*folders, *files)))


def _values(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it holds another value."""
    values = read_json(file, TABLE_BYTES if ".index." in file.name else CONFIG_BYTES, constants=True)
    return values if isinstance(values, dict) else {}
