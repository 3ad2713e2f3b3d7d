"""What a pipeline samples: from its distill.json, or by its family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from teachers.loading import registry
from teachers.loading.sketch import sketch
from teachers.media import ANY_IMAGE, Image, Medium, from_record


def stored_medium(record: Mapping[str, Any], file: Path) -> Medium:
    """What a pipeline with a distill.json samples; images are those of any size.

    Args:
        record: The contents of the file.
        file: Its name, for messages.

    Raises:
        ValueError: If the record has no valid medium.
    """
    try:
        return from_record(record.get("medium"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; export the pipeline again") from error


def usual_medium(folder: Path, kind: type[DiffusionPipeline]) -> Medium:
    """What a pipeline without a distill.json samples with the defaults of its call. No weights are read."""
    family = registry.family_of_class(kind)
    if family is None or family.medium_class is Image:
        return ANY_IMAGE
    return sketch(str(folder), family).medium
