"""Saving pipelines so that stock diffusers loads them in float32."""

import json
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from teachers.loading.notices import without_notices
from teachers.support.text import read_text


def save_pipeline(pipeline: DiffusionPipeline, folder: Path, **options: Any) -> None:
    """Save a pipeline as safetensors so that `from_pretrained` without a dtype loads all of it in float32.

    diffusers loads its models in float32 by default, but transformers uses the dtype in a model's config. A
    half-precision text encoder would then be combined with a float32 network, so the stored configs say float32.
    diffusers also writes the folder from which it loaded each component; it is left out, because it is a path of this
    machine.

    Args:
        pipeline: The pipeline.
        folder: Where to save it.
        options: Further arguments of `save_pretrained`, such as `max_shard_size`.
    """
    with without_notices():
        pipeline.save_pretrained(folder, safe_serialization=True, **options)
    for config in (folder / DiffusionPipeline.config_name, *folder.glob("*/*config.json")):
        leave_out_origin(config)
    for config in folder.glob("*/config.json"):
        declare_float32(config)


def leave_out_origin(config: Path) -> None:
    """Remove from a configuration the name or path from which its component was loaded."""
    values = json.loads(read_text(config))
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def declare_float32(config: Path) -> None:
    """Write into a component's config that it is in float32, if transformers loads the component."""
    values = json.loads(read_text(config))
    if "transformers_version" in values:
        config.write_text(json.dumps(values | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
