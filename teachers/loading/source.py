"""Loading pipelines from a folder, a Hub id or one .safetensors file.

Only safetensors are loaded, and no code from a repository. `teachers.loading.weights` loads the networks of folders
and Hub ids, and checks them against their files. A single file contains tensors but neither configuration nor
tokenizers. They come from the pipeline folder with the same name without `.safetensors` (it needs no weights); if there
is no such folder, diffusers fetches the usual configuration from the Hub.
"""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import FromSingleFileMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from teachers.loading.components import absent_components, check_components, is_setting
from teachers.loading.corrections import correct_autoencoder
from teachers.loading.inspection import check_folder, unusable_components
from teachers.loading.load_errors import loading_errors
from teachers.loading.location import INDEX, configuration
from teachers.loading.markers import apply_markers
from teachers.loading.notices import without_notices
from teachers.loading.sizes import check_configs, check_sizes
from teachers.loading.trust import check_pipeline_files
from teachers.loading.weights import LOADING, check_finite, load_networks, network_classes
from teachers.support.listing import visible
from teachers.support.regular import check_special

Pipelines: TypeAlias = tuple[type[DiffusionPipeline], ...]
# How the names of a pipeline's components begin: those that encode prompts and condition images, and all others.
TEXT_COMPONENTS = ("text_encoder", "tokenizer", "siglip")
AUTOENCODERS = ("vae", "movq")
OTHER_COMPONENTS = (
    *("unet", "transformer", *AUTOENCODERS, "vocoder", "image_encoder"),
    *("safety_checker", "feature_extractor"),
)
DECODERS = (*AUTOENCODERS, "vocoder")  # components that decode latents to samples


def class_name(path: str) -> str | None:
    """The class of the pipeline at `path`.

    Args:
        path: As `local_or_hub` returns it.

    Returns:
        The class name; None for a single file without a configuration folder.

    Raises:
        ValueError: If the pipeline's index cannot be read, or its folder holds a special file.
    """
    if Path(path).is_file():
        path = str(configuration(path))
        if not Path(path).is_dir():
            return None
    if Path(path).is_dir():
        check_special(Path(path))
        check_configs(Path(path))
    with loading_errors(path):
        try:
            name = DiffusionPipeline.load_config(path)["_class_name"]
        except KeyError as error:
            raise ValueError(f"{path}/{INDEX} has no _class_name; save the pipeline again") from error
    if not isinstance(name, str):  # diffusers takes a list for a class in a file of the repository
        raise ValueError(f"_class_name of {path} must be the name of one class, got {name!r}")
    return name


def check_trusted(
    path: str, owners: Iterable[type[Any]], kind: type[DiffusionPipeline] | None = None
) -> dict[str, Any]:
    """Check everything that a pipeline's files name, before anything is loaded. Every loader calls it.

    Args:
        path: A pipeline folder or a Hub id, of which only the index is checked here and the files when it is loaded.
        owners: Classes of installed packages whose components may be loaded.
        kind: The pipeline's class, if it is known.

    Returns:
        The contents of model_index.json.

    Raises:
        ValueError: If the pipeline names a class of another package, code of its own, or a file outside its folder.
    """
    if Path(path).is_dir():
        check_special(Path(path))
        check_configs(Path(path))
    index: dict[str, Any] = DiffusionPipeline.load_config(path)
    if kind is not None and index.get("_class_name") != kind.__name__:
        raise ValueError(f"_class_name of {path} must be {kind.__name__}, got {index.get('_class_name')!r}")
    check_components(index, owners, path, kind)
    if Path(path).is_dir():
        check_pipeline_files(Path(path), index)
    return index


def download(kind: type[DiffusionPipeline], hub_id: str, pickles: bool = False, **parts: None) -> Path:
    """Download a pipeline into the Hub's cache. None of its code is run; `check_trusted` checks its files.

    Args:
        kind: The pipeline's class, or `DiffusionPipeline`.
        hub_id: Its Hub id.
        pickles: Whether .bin files are downloaded where there are no .safetensors files.
        parts: Components that are not needed, as None.

    Returns:
        Its folder.
    """
    safe = None if pickles else True
    return Path(kind.download(hub_id, use_safetensors=safe, trust_remote_code=False, **parts))


def load_pipeline(
    accepted: Pipelines,
    path: str,
    skip: tuple[str, ...] = (),
    owners: tuple[type[Any], ...] = (),
    pickles: bool = False,
    quantized: bool = False,
    **options: Any,
) -> Any:
    """Load the pipeline at `path`.

    In bfloat16 autoencoder and vocoder stay in float32 (except from single files), because their rounding is visible in
    images and audible in sounds.

    Args:
        accepted: The pipeline classes that are allowed.
        path: As `local_or_hub` returns it.
        skip: How the names of components begin that are not loaded; they are None.
        owners: Further classes of packages whose components may be loaded (`components.check_components`).
        pickles: Whether .bin files are read where there are no .safetensors files.
        quantized: Whether networks may be quantized.
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
    folder = str(configuration(path)) if Path(path).is_file() else path
    index = check_trusted(folder, (*accepted, *owners), kind) if name else {}
    check_weights(path)
    if name:
        options |= dict.fromkeys(absent_components(kind, index, path))
        if Path(path).is_dir():
            options |= dict.fromkeys(unusable_components(Path(path), index))
    check_folder(folder, pickles, quantized)
    components = inspect.signature(kind.__init__).parameters
    # such as text_encoder_select_layers of Krea 2
    settings = {key for key, value in index.items() if value is not None and is_setting(value)}
    options |= {part: None for part in components if skip and part.startswith(skip) and part not in settings}
    is_file = Path(path).is_file()
    decoders = [part for part in DECODERS if part in components and part not in options]
    if decoders and options.get("dtype") == torch.bfloat16 and not is_file:
        options["dtype"] = {"default": torch.bfloat16, **dict.fromkeys(decoders, torch.float32)}
    with loading_errors(path):
        if is_file:
            return _single_file(kind, path, name, options)
        pipeline = from_folder(kind, path, options, (*accepted, *owners), pickles)
    correct_autoencoder(pipeline)
    return pipeline


def from_folder(
    kind: type[DiffusionPipeline],
    path: str,
    options: dict[str, Any],
    owners: tuple[type[Any], ...] = (),
    pickles: bool = False,
) -> Any:
    """Load a pipeline from a folder or a Hub id; its networks are checked against their files.

    Args:
        kind: The pipeline class.
        path: The folder or the Hub id.
        options: Further arguments of `from_pretrained`, among them dtype; components given as None or as a network are
            not loaded.
        owners: Classes of packages whose components may be loaded.
        pickles: Whether .bin files are read where there are no .safetensors files.

    Returns:
        The pipeline.

    Raises:
        ValueError: If the parameters of a network are not exactly those of its files.
    """
    parts = {name: value for name, value in options.items() if value is None or isinstance(value, nn.Module)}
    folder = Path(path) if Path(path).is_dir() else download(kind, path, pickles, **dict.fromkeys(parts))
    check_configs(folder)
    check_trusted(str(folder), owners, kind)
    check_sizes(folder, {name: kind for name, kind in network_classes(folder, owners).items() if name not in parts})
    networks = load_networks(folder, parts, options["dtype"], pickles, owners)
    safe = None if pickles else True
    with without_notices(), LOADING:
        return kind.from_pretrained(str(folder), use_safetensors=safe, trust_remote_code=False, **(options | networks))


def _single_file(kind: Any, path: str, name: str | None, options: dict[str, Any]) -> Any:
    if not issubclass(kind, FromSingleFileMixin):
        raise ValueError(f"{kind.__name__} cannot be loaded from a single file; give a pipeline folder")
    config = {"config": str(configuration(path)), "local_files_only": True} if name else {}
    pipeline: Any = kind.from_single_file(path, **config, **options)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            check_finite(Path(path), part)
    pipeline.scheduler = apply_markers(pipeline.scheduler, path)
    return pipeline


def check_weights(path: str) -> None:
    """Check the headers of the local .safetensors files at `path`.

    Raises:
        ValueError: With the name of a file that is corrupt, incomplete or not a regular file.
    """
    local = Path(path)
    if local.is_dir():
        check_special(local)
    for file in visible(local, "**/*.safetensors") if local.is_dir() else [local] if local.is_file() else []:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the weights {file} are corrupt or incomplete ({error}); get the file again") from error
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"the weights {file} are too large to be mapped into memory ({error})") from error
