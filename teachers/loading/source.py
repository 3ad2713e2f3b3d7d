"""Where weights come from: a folder, a hub id, or one .safetensors file; and every way to fail as one clear sentence.

Safetensors only, and no code from a repository. A single file holds tensors but no configuration and no tokenizers:
lay a folder of the same name without `.safetensors` beside it (a pipeline's folder; its weights may be left out), or
let diffusers fetch the usual one from the hub.
"""

import hashlib
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

Pipelines: TypeAlias = tuple[type[DiffusionPipeline], ...]
INDEX = "model_index.json"
TEXT = ("text_encoder", "tokenizer")  # how the names of the components begin that turn prompts into embeddings
REST = ("unet", "transformer", "vae", "image_encoder", "safety_checker", "feature_extractor")


def local_or_hub(path: str) -> str:
    """`path` as the loader takes it, or a ValueError with one clear sentence where it looks local and is not there."""
    place = Path(path)
    if place.is_dir():
        if not (place / INDEX).is_file():
            raise ValueError(f"{path} is a folder but no diffusers pipeline: it has no {INDEX}")
        return str(place)
    if place.exists():
        if place.suffix != ".safetensors":
            raise ValueError(
                f"{path} is a file of a kind that is not loaded; a teacher is the folder of a diffusers pipeline, "
                "a hub id, or one .safetensors file"
            )
        return str(place)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ValueError(
            f"there is no pipeline folder {path}; give the folder that save_pretrained wrote, or a hub id owner/name"
        )
    return path


def configuration(path: str) -> Path:
    """The folder of configuration files that belongs to a single file, whether it is there or not."""
    return Path(path).with_suffix("")


def class_name(path: str) -> str | None:
    """The class of the pipeline at `path`; None for a single file with no configuration beside it.

    ValueError where nothing can be read there.
    """
    if Path(path).is_file():
        path = str(configuration(path))
        if not Path(path).is_dir():
            return None
    with explained(path):
        try:
            return str(DiffusionPipeline.load_config(path)["_class_name"])
        except KeyError as error:
            raise ValueError(f"{path}/{INDEX} does not say which pipeline it is; save the pipeline again") from error


def load_pipeline(accepted: Pipelines, path: str, leave: tuple[str, ...] = (), **options: Any) -> Any:
    """The pipeline at `path`, whose class has to be one of `accepted`. ValueError, one sentence, where it is not.

    Components whose names begin with one of `leave` are not read: they are None. An autoencoder in bfloat16 can be seen
    in its pictures, so that where all else is in bfloat16 it is in float32 (but for single files).
    """
    name = class_name(path)
    known = {kind.__name__: kind for kind in accepted}
    if name not in (None, *known):
        raise ValueError(f"{path} is a {name}; this family takes {' or '.join(known)}")
    kind = known[name] if name else accepted[0]
    check_weights(path)
    parts = inspect.signature(kind.__init__).parameters
    options |= {part: None for part in parts if leave and part.startswith(leave)}
    if "vae" in parts and "vae" not in options and options.get("dtype") == torch.bfloat16 and not Path(path).is_file():
        options["dtype"] = {"default": torch.bfloat16, "vae": torch.float32}
    with explained(path):
        if not Path(path).is_file():
            return kind.from_pretrained(path, use_safetensors=True, trust_remote_code=False, **options)
        if not issubclass(kind, FromSingleFileMixin):
            raise ValueError(f"diffusers loads no {kind.__name__} from a single file; give a pipeline's folder")
        beside = {"config": str(configuration(path)), "local_files_only": True} if name else {}
        return kind.from_single_file(path, **beside, **options)


def check_weights(path: str) -> None:
    """ValueError that names the file where a local .safetensors is corrupt or cut short. Reads headers only."""
    place = Path(path)
    for file in sorted(place.rglob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the weights {file} are corrupt or cut short ({error}); get the file again") from error


def contents(path: str, begins: tuple[str, ...]) -> str:
    """A hash of the files of those components at `path` whose names begin so; of a single file, of all of it."""
    single = Path(path).is_file()
    folder = configuration(path) if single else Path(path)
    if not single and not folder.is_dir():  # a hub id, whose files are in the hub's cache once they have been loaded
        index = try_to_load_from_cache(path, INDEX)
        folder = Path(index).parent if isinstance(index, str) else folder
    total = hashlib.sha256(path.encode() if not folder.is_dir() else b"")
    places = [place for place in sorted(folder.glob("*")) if place.is_dir() and place.name.startswith(begins)]
    for file in [Path(path)] * single + [file for place in places for file in sorted(place.rglob("*"))]:
        if file.is_file():
            total.update(f"{file.name if single else file.relative_to(folder)} {_hash(file)}\n".encode())
    return total.hexdigest()


def _hash(file: Path) -> str:
    known = file.resolve().name
    if file.is_symlink() and len(known) == 64:
        return known  # the hub's cache names weights by their SHA-256
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


@contextmanager
def explained(path: str) -> Iterator[None]:
    """The many failures of loading as a ValueError of one sentence that says what to do."""
    try:
        yield
    except (OSError, SafetensorError, SingleFileComponentError, json.JSONDecodeError, NotImplementedError) as error:
        raise ValueError(_sentence(error, path)) from error


def _sentence(error: BaseException, path: str) -> str:
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    text = " ".join(" ".join(str(link) for link in chain).split())
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if any(isinstance(link, GatedRepoError) for link in chain):
        return f"{path} is gated: accept its terms on its page at the hub, log in (hf auth login), and run again"
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return f"the hub has no {path}, or it is private: check the spelling, or log in (hf auth login)"
    if "no file named" in text or "Could not find the necessary `safetensors`" in text:
        return f"{path} lacks a file of safetensors weights ({first}); save the pipeline again with save_pretrained"
    if "meta tensor" in text:
        return f"{path} lacks the weights of a component that its configuration names; get the whole file"
    if any(isinstance(link, ConnectionError) for link in chain) or "connect" in text.lower():
        lacking = (
            f"{path} and no configuration beside it ({configuration(path)})"
            if Path(path).is_file()
            else f"no complete copy of {path}"
        )
        return f"the hub cannot be reached and there is {lacking} here; get it where there is a network"
    return f"the pipeline {path} could not be loaded: {first}"
