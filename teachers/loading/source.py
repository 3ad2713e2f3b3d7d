"""Loading pipelines from a folder, a Hub id or one .safetensors file, with one-line errors.

Only safetensors are loaded, and no code from a repository. A single file contains tensors but neither configuration nor
tokenizers. They come from the pipeline folder with the same name without `.safetensors` (it needs no weights); if there
is no such folder, diffusers fetches the usual configuration from the Hub.
"""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import FromSingleFileMixin
from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from teachers.loading.inspection import check_component_weights, check_folder
from teachers.support.files import sha256, sha256_file

Pipelines: TypeAlias = tuple[type[DiffusionPipeline], ...]
INDEX = "model_index.json"
# How the names of a pipeline's components begin: those that encode prompts, and all others.
TEXT_COMPONENTS = ("text_encoder", "tokenizer")
OTHER_COMPONENTS = ("unet", "transformer", "vae", "image_encoder", "safety_checker", "feature_extractor")


def local_or_hub(path: str) -> str:
    """Check that `path` can be a pipeline, without loading anything.

    Args:
        path: A pipeline folder, a .safetensors file or a Hub id.

    Returns:
        The path for the other functions of this module.

    Raises:
        ValueError: If it looks like a local path and there is no pipeline.
    """
    local = Path(path)
    if local.is_dir():
        if not (local / INDEX).is_file():
            raise ValueError(f"{path} is a folder without {INDEX}, so it is not a diffusers pipeline")
        return str(local)
    if local.exists():
        if local.suffix != ".safetensors":
            raise ValueError(
                f"{path} must be a diffusers pipeline folder, a Hub id or a .safetensors file, got another kind of file"
            )
        return str(local)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ValueError(
            f"there is no pipeline folder {path}; give a folder that save_pretrained wrote, or a Hub id owner/name"
        )
    return path


def configuration(path: str) -> Path:
    """The folder with the configuration of a single file; it need not exist."""
    return Path(path).with_suffix("")


def class_name(path: str) -> str | None:
    """The class of the pipeline at `path`.

    Args:
        path: As `local_or_hub` returns it.

    Returns:
        The class name; None for a single file without a configuration folder.

    Raises:
        ValueError: If the pipeline's index cannot be read.
    """
    if Path(path).is_file():
        path = str(configuration(path))
        if not Path(path).is_dir():
            return None
    with loading_errors(path):
        try:
            return str(DiffusionPipeline.load_config(path)["_class_name"])
        except KeyError as error:
            raise ValueError(f"{path}/{INDEX} has no _class_name; save the pipeline again") from error


def load_pipeline(accepted: Pipelines, path: str, skip: tuple[str, ...] = (), **options: Any) -> Any:
    """Load the pipeline at `path`.

    In bfloat16 the autoencoder stays in float32 (except from single files), because its rounding is visible in images.

    Args:
        accepted: The pipeline classes that are allowed.
        path: As `local_or_hub` returns it.
        skip: How the names of components begin that are not loaded; they are None.
        options: Further arguments of `from_pretrained`.

    Returns:
        The pipeline.

    Raises:
        ValueError: If it is of another class, or cannot be loaded.
    """
    name = class_name(path)
    known = {kind.__name__: kind for kind in accepted}
    if name not in (None, *known):
        raise ValueError(f"{path} is a {name}; this family takes {' or '.join(known)}")
    kind = known[name] if name else accepted[0]
    check_weights(path)
    check_folder(str(configuration(path)) if Path(path).is_file() else path)
    check_component_weights(path)
    components = inspect.signature(kind.__init__).parameters
    options |= {part: None for part in components if skip and part.startswith(skip)}
    is_file = Path(path).is_file()
    if "vae" in components and "vae" not in options and options.get("dtype") == torch.bfloat16 and not is_file:
        options["dtype"] = {"default": torch.bfloat16, "vae": torch.float32}
    with loading_errors(path):
        if not is_file:
            return kind.from_pretrained(path, use_safetensors=True, trust_remote_code=False, **options)
        if not issubclass(kind, FromSingleFileMixin):
            raise ValueError(f"{kind.__name__} cannot be loaded from a single file; give a pipeline folder")
        config = {"config": str(configuration(path)), "local_files_only": True} if name else {}
        return kind.from_single_file(path, **config, **options)


def check_weights(path: str) -> None:
    """Check the headers of the local .safetensors files at `path`.

    Raises:
        ValueError: With the name of a file that is corrupt or incomplete.
    """
    local = Path(path)
    for file in sorted(local.rglob("*.safetensors")) if local.is_dir() else [local] if local.is_file() else []:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the weights {file} are corrupt or incomplete ({error}); get the file again") from error


def components_hash(path: str, prefixes: tuple[str, ...]) -> str:
    """A hash of the files of some components.

    Args:
        path: A pipeline folder, a Hub id whose files are in the Hub's cache, or a single file, which is hashed as a
            whole.
        prefixes: How the names of the components begin.

    Returns:
        64 hexadecimal digits.
    """
    single = Path(path).is_file()
    folder = configuration(path) if single else Path(path)
    if not single and not folder.is_dir():  # a Hub id: its files are in the cache once they have been loaded
        index = try_to_load_from_cache(path, INDEX)
        folder = Path(index).parent if isinstance(index, str) else folder
    parts = [path.encode() if not folder.is_dir() else b""]
    components = [item for item in sorted(folder.glob("*")) if item.is_dir() and item.name.startswith(prefixes)]
    for file in [Path(path)] * single + [file for item in components for file in sorted(item.rglob("*"))]:
        if file.is_file():
            name = file.name if single else file.relative_to(folder)
            parts.append(f"{name} {_file_hash(file)}\n".encode())
    return sha256(parts)


def _file_hash(file: Path) -> str:
    blob = file.resolve().name
    if file.is_symlink() and len(blob) == 64:
        return blob  # the Hub's cache names weights by their SHA-256
    return sha256_file(file)


@contextmanager
def loading_errors(path: str) -> Iterator[None]:
    """A context that turns errors of loading the pipeline at `path` into one-line ValueErrors."""
    try:
        yield
    except (OSError, SafetensorError, SingleFileComponentError, json.JSONDecodeError, NotImplementedError) as error:
        raise ValueError(_message(error, path)) from error


def _message(error: BaseException, path: str) -> str:
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    text = " ".join(" ".join(str(link) for link in chain).split())
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if any(isinstance(link, GatedRepoError) for link in chain):
        return f"{path} is gated: accept its terms on its page at the Hub, log in (hf auth login), and run again"
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return f"the Hub has no {path}, or it is private: check the spelling, or log in (hf auth login)"
    if "no file named" in text or "Could not find the necessary `safetensors`" in text:
        return f"{path} has no safetensors weights for a component ({first}); save it again with save_pretrained"
    if "meta tensor" in text:
        return f"{path} has no weights for a component of its configuration; get the complete file"
    if any(isinstance(link, ConnectionError) for link in chain) or "connect" in text.lower():
        missing = f"configuration folder {configuration(path)}" if Path(path).is_file() else f"complete copy of {path}"
        return f"the Hub cannot be reached and there is no {missing} on this machine; download it first"
    return f"the pipeline {path} could not be loaded: {first}"
