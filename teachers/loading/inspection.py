"""What can be refused from the files of a pipeline folder alone, for training, description and evaluation alike."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from teachers.loading.components import LIBRARIES, OPTIONAL, component_class, is_component
from teachers.loading.location import INDEX
from teachers.support.json_files import read_json
from teachers.support.limits import TABLE_BYTES
from teachers.support.listing import visible
from teachers.support.text import printable


def check_folder(path: str, pickles: bool = False, quantized: bool = False) -> None:
    """Check the files of a local pipeline folder; other paths are not checked.

    Args:
        path: The folder; its networks may have no weights, such as a configuration beside a single file.
        pickles: Whether .bin files are read where there are no .safetensors files.
        quantized: Whether networks may be quantized.

    Raises:
        ValueError: If a component has no folder, a network of a folder with weights has no safetensors weights, a
            network is quantized, or a tokenizer has tokens that its text encoder has no embedding for.
    """
    folder = Path(path)
    if not (folder / INDEX).is_file():
        return
    index = _json(folder / INDEX)
    components = stored_components(index)
    for name in components:
        if not (folder / name).is_dir():
            raise ValueError(f"{path} has no folder {name}, which its {INDEX} names; get the complete pipeline")
    check_networks_stored(folder, components, pickles, quantized)
    for tokenizer in visible(folder, "tokenizer*"):
        encoder = folder / tokenizer.name.replace("tokenizer", "text_encoder")
        if tokenizer.is_dir() and encoder.is_dir():
            check_tokenizer(tokenizer, encoder)


def stored_components(index: Mapping[str, Any]) -> list[str]:
    """The components that an index names and that have to be in the folder."""
    return [name for name in sorted(index) if is_component(index[name]) and name not in OPTIONAL]


def unusable_components(folder: Path, index: dict[str, Any]) -> list[str]:
    """The components of `OPTIONAL` that an index names but that cannot be loaded: without a folder or a class."""
    named = {name: index[name] for name in OPTIONAL if is_component(index.get(name))}
    # transformers 5 has no CLIPFeatureExtractor, which many folders of Stable Diffusion 1.x name.
    return [
        name
        for name, entry in named.items()
        if not (folder / name).is_dir() or (entry[0] in LIBRARIES and component_class(entry[0], entry[1], ()) is None)
    ]


def check_networks_stored(
    folder: Path, components: Iterable[str], pickles: bool = False, quantized: bool = False
) -> None:
    """Check that the networks of a folder have safetensors weights, if it has any weights, in full precision.

    Args:
        folder: The pipeline's folder.
        components: The names of its components.
        pickles, quantized: As in `check_folder`.

    Raises:
        ValueError: With the name of a component that has none, or quantized ones.
    """
    weights = any(file.suffix in (".safetensors", ".bin") for file in visible(folder, "*/*"))
    for name in components:
        config = folder / name / "config.json"
        if not config.is_file():
            continue
        if not quantized and (settings := _json(config).get("quantization_config")):
            method = settings.get("quant_method", "an unknown method")
            raise ValueError(f"{folder / name} must not be quantized, got {method}; use the weights in full precision")
        if weights and not pickles and not visible(config.parent, "*.safetensors"):
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
        widths_of_encoders = [embedding_width(folder / encoder) for encoder in encoders]
        found = [value for value in widths_of_encoders if value is not None]
        width = _entry(config, key)
        known = encoders and len(found) == len(encoders) and isinstance(width, int)
        if known and sum(found) != width:
            raise ValueError(
                f"{key} of {folder / network} must be the width of the embeddings of {' and '.join(encoders)}, "
                f"{sum(found)}, got {width}; the components are of different models"
            )


def check_tokenizer(tokenizer: Path, encoder: Path) -> None:
    """Check that a text encoder has an embedding for every token, and a position for every token of a prompt.

    Args:
        tokenizer: The tokenizer's folder.
        encoder: The text encoder's folder.

    Raises:
        ValueError: With the token that has none, or the number of positions.
    """
    rows, positions = embedding_rows(encoder), text_positions(encoder)
    added = added_tokens(tokenizer)
    for kind, tokens in (("token", vocabulary(tokenizer)), ("added token", added)):
        token, number = max(tokens.items(), key=lambda item: item[1], default=("", -1))
        if rows is not None and number >= rows:
            raise ValueError(
                f"{encoder} must have an embedding for every token of {tokenizer.name}, got {rows} rows and no row "
                f"{number} for the {kind} {printable(token)!r}; save the text encoder after resize_token_embeddings"
            )
    length = _json(tokenizer / "tokenizer_config.json").get("model_max_length")
    if positions is not None and length is not None and not (isinstance(length, int) and 2 <= length <= positions):
        raise ValueError(
            f"model_max_length of {tokenizer} must be a whole number from 2 to {positions}, the positions of "
            f"{encoder.name}, got {printable(length)[:40]}"
        )


def embedding_rows(encoder: Path) -> int | None:
    """Rows of a text encoder's token embedding: those of its weights, else of its config; None if neither says."""
    for file in visible(encoder, "*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if key.endswith(("token_embedding.weight", "embed_tokens.weight", "shared.weight", "wte.weight")):
                    return int(tensors.get_slice(key).get_shape()[0])
    config = _json(encoder / "config.json")
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def text_positions(encoder: Path) -> int | None:
    """The most tokens that a CLIP text encoder takes, by its config; None for other text encoders."""
    config = _json(encoder / "config.json")
    values = config.get("text_config") or config
    if not str(values.get("model_type", config.get("model_type", ""))).startswith("clip"):
        return None
    found = values.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def embedding_width(encoder: Path) -> int | None:
    """Width of a text encoder's embeddings by its config; None if the config does not say it."""
    config = _json(encoder / "config.json")
    for values in (config, config.get("text_config") or {}):
        for key in ("hidden_size", "d_model"):
            if isinstance(values.get(key), int):
                return int(values[key])
    return None


def vocabulary(tokenizer: Path) -> dict[str, int]:
    """The tokens of a tokenizer with their numbers; empty if its files do not list them as JSON."""
    found = _json(tokenizer / "vocab.json") or (_json(tokenizer / "tokenizer.json").get("model") or {}).get("vocab")
    if isinstance(found, list):  # pairs of a token and its score, in order
        found = {str(entry[0]): number for number, entry in enumerate(found) if isinstance(entry, list) and entry}
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(token): number for token, number in pairs if isinstance(number, int)}


def added_tokens(tokenizer: Path) -> dict[str, int]:
    """The tokens that were added to a tokenizer, with their numbers; empty if its files do not list any."""
    found = {str(token): int(number) for token, number in _json(tokenizer / "added_tokens.json").items()}
    for number, entry in (_json(tokenizer / "tokenizer_config.json").get("added_tokens_decoder") or {}).items():
        found[str(entry["content"])] = int(number)
    for entry in _json(tokenizer / "tokenizer.json").get("added_tokens") or []:
        found[str(entry["content"])] = int(entry["id"])
    return found


def _entry(config: Any, key: str) -> Any:
    """The entry of a config that a dotted key names, such as "caption_channels.0"; None if there is none."""
    for name in key.split("."):
        if isinstance(config, list):
            config = config[int(name)] if name.isdecimal() and int(name) < len(config) else None
        else:
            config = config.get(name) if isinstance(config, dict) else None
    return config


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = read_json(file, TABLE_BYTES, constants=True)
    except ValueError:
        return {}  # `check_configs` or transformers reports it
    return values if isinstance(values, dict) else {}
