"""How a pipeline class's `__call__` takes its inputs: diffusers' names, or those that its teacher family declares."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from teachers.loading import registry
from teachers.loading.location import INDEX
from teachers.support.errors import reads
from teachers.support.json_files import read_json


def parameters(kind: type[DiffusionPipeline]) -> set[str]:
    """The names of the arguments of a pipeline class's `__call__`."""
    return set(inspect.signature(kind.__call__).parameters)


def argument(kind: type[DiffusionPipeline], name: str) -> str | None:
    """The argument of a pipeline class's `__call__` for which diffusers' name is `name`; None if it takes none."""
    own = registry.call_names(kind).get(name, name)
    return own if own in parameters(kind) else None


def takes_prompts(kind: type[DiffusionPipeline]) -> bool:
    """Whether pipelines of the class take prompts, or class labels, which are read from prompts."""
    return any(argument(kind, name) is not None for name in ("prompt", "class_labels"))


def source_names(kind: type[DiffusionPipeline]) -> tuple[str, ...]:
    """The arguments with the source image and the mask, as its teacher family declares them; empty for others."""
    family = registry.family_of_class(kind)
    return () if family is None else family.source


def check_call(kind: type[DiffusionPipeline], call: Mapping[str, Any], prompted: bool) -> None:
    """Check a call before any weights are loaded.

    Args:
        kind: The pipeline class.
        call: Call arguments by name.
        prompted: Whether the samples have prompts.

    Raises:
        ValueError: If the class has no such argument, needs prompts, or takes none.
    """
    unknown = sorted(set(call) - parameters(kind))
    if unknown:
        raise ValueError(f'{kind.__name__} takes no argument "{unknown[0]}"; correct the call in distill.json')
    if prompted and not takes_prompts(kind):
        raise ValueError(f"{kind.__name__} takes no prompts; evaluate it with --prompts none")
    if not prompted and argument(kind, "prompt") is not None:
        raise ValueError(f"{kind.__name__} needs prompts; name a file of prompts with --prompts")
    if not takes_prompts(kind) and argument(kind, "batch_size") is None:
        raise ValueError(
            f"{kind.__name__} must take prompt, class_labels or batch_size to be evaluated; a teacher family can "
            "declare other names (Teacher.call_names)"
        )


@reads
def pipeline_class(folder: Path) -> type[DiffusionPipeline]:
    """The class named in a pipeline's model_index.json, of diffusers or of an installed teacher family.

    Raises:
        ValueError: If model_index.json cannot be read, or names another class.
    """
    file = folder / INDEX
    try:
        name = str(read_json(file, constants=True)["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not the index of a diffusers pipeline; save the pipeline again ({error})"
        ) from error
    kind = registry.pipeline_class(name)
    if kind is None:
        broken = "".join(f"; {problem}" for problem in registry.plugins().problems.values())
        raise ValueError(
            f"{file} names a class that is not in this version of diffusers and not one of an installed teacher "
            f"family, {name}; upgrade diffusers, or install the package of that family{broken}"
        )
    return kind
