"""Which family takes which pipeline: the installed teacher families, found by the class that a pipeline names."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, UNet2DModel

from teachers import pocket
from teachers.core.teacher import Teacher
from teachers.loading.source import class_name, local_or_hub

GROUP = "distill.teachers"


def installed() -> dict[str, type[Teacher]]:
    """Every installed family by name, those of other packages too."""
    return {point.name: point.load() for point in sorted(entry_points(group=GROUP))}


def locate(path: str) -> str:
    """`path` as `family_of` and loaders take it, "pocket" too; ValueError where nothing can be there."""
    return str(pocket.PIPELINE) if path == "pocket" else local_or_hub(path)


def load_teacher(
    source: Any,
    scheduler: Any = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sigma_data: float = 1.0,
) -> Teacher:
    """A teacher from a path, from a diffusers pipeline in memory, or from a UNet and its scheduler.

    Args:
        source: A pipeline folder, a Hub id, a .safetensors file or "pocket"; a `DiffusionPipeline`; or a `UNet2DModel`.
        scheduler: The scheduler that a `UNet2DModel` was trained with.
        device: Where the teacher's networks go.
        dtype: Precision of weights that are loaded from a path.
        sigma_data: Standard deviation of the native latents or pixels.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: Where no installed family takes the pipeline.

    Example:
        >>> teacher = load_teacher(unet, DDPMScheduler())
    """
    place = torch.device(device)
    if isinstance(source, str | Path):
        path = locate(str(source))
        return installed()[family_of(path)].load(path, place, dtype, sigma_data)
    if isinstance(source, UNet2DModel):
        if scheduler is None:
            raise ValueError("a UNet needs the scheduler that it was trained with: load_teacher(unet, scheduler)")
        source = DDPMPipeline(source, scheduler)
    if not isinstance(source, DiffusionPipeline):
        raise ValueError(f"a teacher is a path, a diffusers pipeline or a UNet2DModel, got {type(source).__name__}")
    return installed()[_family_by_class(type(source).__name__)].wrap(source.to(place), sigma_data)


def family_of(path: str) -> str:
    """The name of the family that takes the pipeline at `path` (as `Teacher.locate` returns it). Reads no weights.

    Raises:
        ValueError: Where no installed family takes it, with the known families and how to add one.
    """
    name = class_name(path)
    if name is None:
        raise ValueError(
            f"{path} does not name its pipeline class; put the pipeline's folder beside it, under the same name without "
            ".safetensors, or set teacher.family"
        )
    return _family_by_class(name)


def _family_by_class(name: str) -> str:
    families = installed()
    for family, cls in families.items():
        declared = "pipelines" in vars(cls)  # a variation of another family inherits them and is used only by name
        if declared and name in [kind.__name__ for kind in cls.pipelines]:
            return family
    known = "; ".join(
        f"{family} ({', '.join(kind.__name__ for kind in cls.pipelines)})"
        for family, cls in families.items()
        if cls.pipelines
    )
    raise ValueError(
        f"no installed family takes a {name}; known are {known}; a new family is one class, such as "
        f"teachers/families/dit.py, and a line in the entry-point group {GROUP} of a package (see CONTRIBUTING.md)"
    )
