"""What can be refused from the files of a pipeline folder alone, for training, description and evaluation alike."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from teachers.loading.components import LIBRARIES, component_class, is_component
from teachers.support.text import read_text

INDEX = "model_index.json"
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # no family uses them


def check_folder(path: str, pickles: bool = False) -> None:
    """Check the files of a local pipeline folder; other paths are not checked.

    Args:
        path: The folder; its networks may have no weights, such as a configuration beside a single file.
        pickles: Whether the pipeline is loaded as diffusers does: with .bin files and quantized networks.

    Raises:
        ValueError: If a component has no folder, a network of a folder with weights has no safetensors weights, a
            network is quantized, or a tokenizer has tokens that its text encoder has no embedding for.
    """
    folder = Path(path)
    if not (folder / INDEX).is_file():
        return
    index = _json(folder / INDEX)
    components = [name for name in sorted(index) if is_component(index[name]) and name not in OPTIONAL]
    for name in components:
        if not (folder / name).is_dir():
            raise ValueError(f"{path} has no folder {name}, which its {INDEX} names; get the complete pipeline")
    if not pickles:
        check_networks_stored(folder, components)
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


def check_networks_stored(folder: Path, components: Iterable[str]) -> None:
    """Check that the networks of a folder have safetensors weights, if it has any weights, in full precision.

    Raises:
        ValueError: With the name of a component that has none, or quantized ones.
    """
    weights = any(file.suffix in (".safetensors", ".bin") for file in folder.glob("*/*"))
    for name in components:
        config = folder / name / "config.json"
        if not config.is_file():
            continue
        if quantized := _json(config).get("quantization_config"):
            method = quantized.get("quant_method", "an unknown method")
            raise ValueError(f"{folder / name} must not be quantized, got {method}; use the weights in full precision")
        if weights and not any(config.parent.glob("*.safetensors")):
            raise ValueError(f"{folder} has no safetensors weights for {name}; save it again with save_pretrained")


def check_text_widths(path: str, network: str, widths: Mapping[str, tuple[str, ...]]) -> None:
    """Check that a network takes embeddings of the width of its text encoders, by the configs of a local folder.

    Args:
        path: The pipeline; other paths than folders are not checked.
        network: Name of the network's component.
        widths: `Contract.text_widths` of the pipeline's family.

    Raises:
        ValueError: With the key of the network's config, the width of the text encoders and that of the network.
    """
    folder = Path(path)
    index, config = _json(folder / INDEX), _json(folder / network / "config.json")
    for name, names in widths.items():
        key = "encoder_hid_dim" if name == "cross_attention_dim" and config.get("encoder_hid_dim") else name
        encoders = [encoder for encoder in names if is_component(index.get(encoder))]
        found = [width for encoder in encoders if (width := embedding_width(folder / encoder)) is not None]
        known = encoders and len(found) == len(encoders) and isinstance(config.get(key), int)
        if known and sum(found) != config[key]:
            raise ValueError(
                f"{key} of {folder / network} must be the width of the embeddings of {' and '.join(encoders)}, "
                f"{sum(found)}, got {config[key]}; the components are of different models"
            )


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


def embedding_width(encoder: Path) -> int | None:
    """Width of a text encoder's embeddings by its config; None if the config does not say it."""
    config = _json(encoder / "config.json")
    for values in (config, config.get("text_config") or {}):
        for key in ("hidden_size", "d_model"):
            if isinstance(values.get(key), int):
                return int(values[key])
    return None


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
        values = json.loads(read_text(file))
    except ValueError:
        return {}  # transformers reports it
    return values if isinstance(values, dict) else {}
