"""The front matter of a model card: what the Hub reads of a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from teachers.loading.embedded import EMBEDDED
from teachers.loading.location import config_source
from teachers.support.regular import read_bytes
from teachers.support.text import cleaned
from teachers.support.yaml_files import parse_value

README = "README.md"
INHERITED = ("license", "license_name", "license_link", "base_model", "language")
LARGEST = 2**20  # bytes of a model card that is read
OWN_LICENSE = "apache-2.0"  # of the teachers that are part of this project


def teacher_metadata(path: str) -> dict[str, Any]:
    """What the model card of a teacher says about its licence and its own base.

    Args:
        path: The teacher: an embedded one such as "pocket", a folder, a .safetensors file or a Hub id, of which only
            the cache is read.

    Returns:
        The keys of INHERITED that its front matter has; empty if there is no readable card.
    """
    if path in EMBEDDED:
        return {"license": OWN_LICENSE}
    local = Path(config_source(path))
    found = local / README if local.is_dir() else None
    if found is None and path.count("/") == 1:
        cached = try_to_load_from_cache(path, README)
        found = Path(cached) if isinstance(cached, str) else None
    if found is None or not found.is_file():
        return {}
    values = front_matter(read_bytes(found, LARGEST).decode("utf-8", errors="replace"))
    kept = {key: cleaned(values[key]) for key in INHERITED if isinstance(values.get(key), str | list)}
    return {key: value for key, value in kept.items() if value}


def front_matter(text: str) -> dict[str, Any]:
    """The front matter of a model card; empty if it has none, or none that can be read."""
    head, _, rest = text.partition("---\n")
    front, end, _ = rest.partition("\n---")
    if head.strip() or not end:
        return {}
    try:
        values = parse_value(front)
    except (ValueError, yaml.YAMLError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def is_hub_id(path: str) -> bool:
    """Whether a teacher or a fine-tune is a model on the Hub, not a file or folder of this machine."""
    parts = path.split("/")
    return len(parts) == 2 and all(parts) and parts[0][0] not in ".~" and not Path(path).exists()


def base_models(record: Mapping[str, Any]) -> list[str]:
    """The Hub ids that the student comes from: the teacher, or what its card names, and its fine-tunes.

    Args:
        record: The contents of `distill.json`.
    """
    teacher = record["teacher"]
    inherited = teacher.get("card", {}).get("base_model") or []
    known = [teacher["path"]] if is_hub_id(teacher["path"] or "") else inherited
    tuned = ["/".join(lora["path"].split("/")[:2]) for lora in teacher.get("loras", ())]
    found = [*([known] if isinstance(known, str) else known), *filter(is_hub_id, tuned)]
    return list(dict.fromkeys(str(name) for name in found))


def metadata(record: Mapping[str, Any], tag: str, widgets: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The front matter of a student's card.

    Args:
        record: The contents of `distill.json`.
        tag: The Hub's pipeline_tag.
        widgets: Entries of `widget`: a text and the file of its sample.
    """
    inherited = record["teacher"].get("card", {})
    values: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": tag}
    if bases := base_models(record):
        values["base_model"] = bases[0] if len(bases) == 1 else bases
        values["base_model_relation"] = "finetune"
    values |= {key: inherited[key] for key in ("license", "license_name", "license_link") if key in inherited}
    if source := record.get("data", {}).get("hub"):
        values["datasets"] = [source]
    values["tags"] = ["distillation", record["method"], "few-step", *(["lora"] if "lora" in record else [])]
    values["inference"] = {"parameters": record["calls"][0]["call"]}
    if widgets:
        values["widget"] = [dict(widget) for widget in widgets]
    return values


def written(values: Mapping[str, Any]) -> str:
    """The front matter as the beginning of a card."""
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"
