"""What can be refused from the files of a pipeline folder alone, for training, description and evaluation alike."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from teachers.loading.components import LIBRARIES, component_class, is_component

INDEX = "model_index.json"
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # no family uses them


def check_folder(path: str) -> None:
    """Check the files of a local pipeline folder; other paths are not checked.

    Raises:
        ValueError: If a tokenizer has tokens that its text encoder has no embedding for.
    """
    folder = Path(path)
    if not (folder / INDEX).is_file():
        return
    for tokenizer in sorted(folder.glob("tokenizer*")):
        encoder = folder / tokenizer.name.replace("tokenizer", "text_encoder")
        if tokenizer.is_dir() and encoder.is_dir():
            check_tokenizer(tokenizer, encoder)


def unusable_components(folder: Path, index: dict[str, Any]) -> list[str]:
    """The components of `OPTIONAL` that an index names but that cannot be loaded: without a folder or a class."""
    named = {name: index[name] for name in OPTIONAL if is_component(index.get(name))}
    # transformers 5 has no CLIPFeatureExtractor, which many folders of Stable Diffusion 1.x name.
    return [
        name
        for name, entry in named.items()
        if not (folder / name).is_dir() or (entry[0] in LIBRARIES and component_class(entry[0], entry[1], ()) is None)
    ]


def check_component_weights(path: str) -> None:
    """Check that every model of a local pipeline folder has safetensors weights, if the folder has any weights at all.

    Raises:
        ValueError: With the name of the component that has none.
    """
    folder = Path(path)
    index = _json(folder / INDEX)
    if not any(file.suffix in (".safetensors", ".bin") for file in folder.glob("*/*")):
        return  # configuration alone, for a description or beside a single file
    for name, entry in sorted(index.items()):
        model = isinstance(entry, list) and entry[0] in ("diffusers", "transformers") and name not in OPTIONAL
        if model and (folder / name / "config.json").is_file() and not any((folder / name).glob("*.safetensors")):
            raise ValueError(f"{path} has no safetensors weights for {name}; save it again with save_pretrained")


def check_tokenizer(tokenizer: Path, encoder: Path) -> None:
    """Check that a text encoder has an embedding for every added token, as textual inversion needs.

    Args:
        tokenizer: The tokenizer's folder.
        encoder: The text encoder's folder.

    Raises:
        ValueError: With the token that has none.
    """
    rows = embedding_rows(encoder)
    added = added_tokens(tokenizer)
    if rows is None or not added:
        return
    token, number = max(added.items(), key=lambda item: item[1])
    if number >= rows:
        raise ValueError(
            f"{encoder} must have an embedding for every token of {tokenizer.name}, got {rows} rows and no row "
            f"{number} for the added token {token!r}; save the text encoder after resize_token_embeddings"
        )


def embedding_rows(encoder: Path) -> int | None:
    """Rows of a text encoder's token embedding: those of its weights, else of its config; None if neither says."""
    for file in sorted(encoder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if key.endswith(("token_embedding.weight", "embed_tokens.weight", "shared.weight", "wte.weight")):
                    return int(tensors.get_slice(key).get_shape()[0])
    config = _json(encoder / "config.json")
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def added_tokens(tokenizer: Path) -> dict[str, int]:
    """The tokens that were added to a tokenizer, with their numbers; empty if its files do not list any."""
    found = {str(token): int(number) for token, number in _json(tokenizer / "added_tokens.json").items()}
    for number, entry in (_json(tokenizer / "tokenizer_config.json").get("added_tokens_decoder") or {}).items():
        found[str(entry["content"])] = int(number)
    for entry in _json(tokenizer / "tokenizer.json").get("added_tokens") or []:
        found[str(entry["content"])] = int(entry["id"])
    return found


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # transformers reports it
    return values if isinstance(values, dict) else {}
