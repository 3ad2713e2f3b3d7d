"""Registry of teacher families, and `load_teacher`, which finds the family of a pipeline by its class."""

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
    """All installed teacher families by name, including those of other packages."""
    return {point.name: point.load() for point in sorted(entry_points(group=GROUP))}


def locate(path: str) -> str:
    """Resolve `path`, which may be "pocket", for `family_of` and loaders, without loading anything.

    Raises:
        ValueError: If no pipeline can be at `path`.
    """
    return str(pocket.PIPELINE) if path == "pocket" else local_or_hub(path)


def load_teacher(
    source: Any,
    scheduler: Any = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sigma_data: float = 1.0,
) -> Teacher:
    """Load a teacher from a path, a diffusers pipeline in memory, or a UNet and its scheduler.

    Args:
        source: A pipeline folder, a Hub id, a .safetensors file or "pocket"; a `DiffusionPipeline`; or a `UNet2DModel`.
        scheduler: The scheduler that a `UNet2DModel` was trained with; unused for other sources.
        device: Where the teacher's networks go.
        dtype: Precision of weights that are loaded from a path; pipelines in memory keep theirs.
        sigma_data: Standard deviation of the native latents or pixels.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: If no installed family takes the pipeline.

    Example:
        >>> teacher = load_teacher(unet, DDPMScheduler())
    """
    target = torch.device(device)
    if isinstance(source, str | Path):
        path = locate(str(source))
        return installed()[family_of(path)].load(path, target, dtype, sigma_data)
    if isinstance(source, UNet2DModel):
        if scheduler is None:
            raise ValueError("scheduler must be the one that the UNet was trained with: load_teacher(unet, scheduler)")
        source = DDPMPipeline(source, scheduler)
    if not isinstance(source, DiffusionPipeline):
        raise ValueError(f"source must be a path, a diffusers pipeline or a UNet2DModel, got {type(source).__name__}")
    return installed()[_family_by_class(type(source).__name__)].wrap(source.to(target), sigma_data)


def family_of(path: str) -> str:
    """The name of the family that takes a pipeline. No weights are read.

    Args:
        path: The pipeline, as `locate` returns it.

    Returns:
        The family's name in the entry-point group.

    Raises:
        ValueError: If no installed family takes it; the message lists the known families and says how to add one.
    """
    name = class_name(path)
    if name is None:
        raise ValueError(
            f"{path} does not contain the pipeline's class; put the pipeline's folder next to it, with the same name "
            "without .safetensors, or set teacher.family"
        )
    return _family_by_class(name)


def _family_by_class(name: str) -> str:
    families = installed()
    for family, cls in families.items():
        declared = "pipelines" in vars(cls)  # subclasses of a family that inherit it are selected by name only
        if declared and name in [kind.__name__ for kind in cls.pipelines]:
            return family
    known = "; ".join(
        f"{family} ({', '.join(kind.__name__ for kind in cls.pipelines)})"
        for family, cls in families.items()
        if cls.pipelines
    )
    raise ValueError(
        f"no installed family takes a {name}; known are {known}; to add a family, write a class such as "
        f"teachers/families/dit.py and register it in the entry-point group {GROUP} (see CONTRIBUTING.md)"
    )
