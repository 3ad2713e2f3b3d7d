"""Registry of teacher families: `load_teacher` and `family_of` find a pipeline's family by its class."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline, DiffusionPipeline, UNet2DModel

from teachers.core.contract import FeatureModel
from teachers.core.schedule import is_edm
from teachers.core.teacher import Teacher
from teachers.loading.embedded import locate, usual_size
from teachers.loading.in_memory import check_pipeline
from teachers.loading.source import class_name
from teachers.loading.unsupported import unsupported_reason
from teachers.support.plugins import Plugins, is_own_class, load_plugins, report

GROUP = "distill.teachers"
_families: dict[type[DiffusionPipeline], type[Teacher] | None] = {}


def check_family(family: Any) -> None:
    """Raise TypeError or ValueError if an entry point of `GROUP` does not name a usable family."""
    if not (isinstance(family, type) and issubclass(family, Teacher)):
        raise TypeError("an entry point must name a subclass of teachers.core.teacher.Teacher")
    kinds = family.pipelines
    if not isinstance(kinds, tuple) or not all(isinstance(k, type) and issubclass(k, DiffusionPipeline) for k in kinds):
        raise TypeError(f"{family.__name__}.pipelines must be a tuple of DiffusionPipeline classes")
    for kind in kinds:
        if getattr(diffusers, kind.__name__, kind) is not kind:
            raise ValueError(
                f"the pipeline class {kind.__module__}.{kind.__name__} must have another name than diffusers' "
                f"{kind.__name__}, because model_index.json stores the name only"
            )
    if problems := family.problems():
        raise TypeError("; ".join(problems))


def plugins() -> Plugins:
    """The installed families, and a sentence for each entry point that is left out."""
    return load_plugins(GROUP, "teacher family", check_family)


def installed() -> dict[str, type[Teacher]]:
    """All installed teacher families by name, including those of other packages. Broken ones are logged by name."""
    found = plugins()
    report(found.problems)
    return found.classes


def load_teacher(
    source: Any,
    scheduler: Any = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sigma_data: float | None = None,
    size: Mapping[str, float] | None = None,
) -> Teacher:
    """Load a teacher from a path, a diffusers pipeline in memory, or a UNet and its scheduler.

    Args:
        source: A pipeline folder, a Hub id, a .safetensors file or "pocket"; a `DiffusionPipeline`; or a `UNet2DModel`.
        scheduler: The scheduler that a `UNet2DModel` was trained with; unused for other sources.
        device: Where the teacher's networks go.
        dtype: Precision of weights that are loaded from a path; pipelines in memory keep theirs.
        sigma_data: Standard deviation of the native latents or pixels; None: that of an EDM scheduler,
            else the family's, 1.0 for those of diffusers.
        size: Size of a clip or sound, such as {"height": 480, "width": 832, "frames": 81}; None: the default of the
            pipeline's call.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: If no installed family takes the pipeline, or a pipeline in memory cannot be copied and exported.

    Example:
        >>> teacher = load_teacher(unet, DDPMScheduler())
    """
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'device must be one of torch, such as "cpu" or "cuda:0", got {device!r}') from error
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be one of torch, such as torch.bfloat16, got {dtype!r}")
    if isinstance(source, str | Path):
        path = locate(str(source))
        family, size = installed()[family_of(path)], size or usual_size(str(source))
        return family.load(path, target, dtype, sigma_data, **family.size_argument(size))
    if isinstance(source, UNet2DModel):
        if scheduler is None:
            raise ValueError("scheduler must be the one that the UNet was trained with: load_teacher(unet, scheduler)")
        source = (ConsistencyModelPipeline if is_edm(scheduler) else DDPMPipeline)(source, scheduler)
    if not isinstance(source, DiffusionPipeline):
        raise ValueError(f"source must be a path, a diffusers pipeline or a UNet2DModel, got {type(source).__name__}")
    family = installed()[family_by_class(type(source).__name__)]
    check_pipeline(source)
    return family.wrap(source.to(target), sigma_data, **family.size_argument(size))


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
    return family_by_class(name)


def family_by_class(name: str) -> str:
    """The name of the family that takes pipelines of the class `name`; see `family_of`."""
    found = plugins()
    takers = [family for family, cls in found.classes.items() if name in _declared(cls)]
    own = [family for family in takers if is_own_class(found.classes[family])]
    if takers and (own or len(takers) == 1):
        return (own or takers)[0]
    if takers:
        raise ValueError(f"several families take a {name}: {', '.join(takers)}; select one with teacher.family")
    broken = "".join(f"; {problem}" for problem in found.problems.values())
    raise ValueError(
        f"no installed family takes a {name}{unsupported_reason(name)} (fewstep families lists those that one takes); "
        f"to add a family, write a class such as teachers/families/dit.py and register it in the entry-point group "
        f"{GROUP} (see CONTRIBUTING.md){broken}"
    )


def pipeline_class(name: str) -> type[DiffusionPipeline] | None:
    """The pipeline class called `name`, of diffusers or of an installed family; None if there is none.

    Nothing is imported because of the name, so an index cannot execute code.

    Raises:
        ValueError: If several installed packages have a pipeline class of that name.
    """
    stock = getattr(diffusers, name, None)
    if isinstance(stock, type) and issubclass(stock, DiffusionPipeline):
        return stock
    kinds = {kind: family for family, cls in installed().items() for kind in cls.pipelines if kind.__name__ == name}
    if len(kinds) > 1:
        raise ValueError(
            f"several pipeline classes are called {name}: "
            + " and ".join(f"{kind.__module__} (family {family})" for kind, family in kinds.items())
            + "; uninstall all but one of their packages"
        )
    return next(iter(kinds), None)


def owners() -> list[type[Any]]:
    """Classes of the installed families: the families, their pipelines, and the components that they declare."""
    return [kind for cls in installed().values() for kind in (cls, *cls.pipelines, *cls.components)]


def family_of_class(kind: type[DiffusionPipeline]) -> type[Teacher] | None:
    """The family that takes pipelines of the class `kind`, for what it declares about them; None if there is none."""
    if kind not in _families:  # evaluations ask for every batch, and reading all entry points takes milliseconds
        takers = [cls for cls in installed().values() if kind in cls.pipelines and kind.__name__ in _declared(cls)]
        _families[kind] = next((cls for cls in takers if is_own_class(cls)), takers[0] if takers else None)
    return _families[kind]


def feature_models() -> dict[str, Callable[[torch.device], FeatureModel]]:
    """The feature extractors that installed families declare, by name; a subclass may share those of its family.

    A name that families declare with different extractors is left out and logged, so that only an evaluation with
    these features stops.
    """
    found: dict[str, dict[Callable[[torch.device], FeatureModel], str]] = {}
    for family, cls in installed().items():
        for name, load in cls.feature_models.items():
            found.setdefault(name, {}).setdefault(load, family)
    report(
        {
            name: f"the feature extractor {name!r} is left out: the families {' and '.join(loaders.values())} declare "
            "different ones; rename all but one"
            for name, loaders in found.items()
            if len(loaders) > 1
        }
    )
    return {name: next(iter(loaders)) for name, loaders in found.items() if len(loaders) == 1}


def call_names(kind: type[DiffusionPipeline]) -> Mapping[str, str]:
    """The names that a pipeline class's `__call__` uses in place of diffusers' usual ones; see `Teacher.call_names`."""
    family = family_of_class(kind)
    return {} if family is None else family.call_names


def _declared(cls: type[Teacher]) -> list[str]:
    """The pipelines that a family declares itself; a family that inherits them is selected by its name only."""
    return [kind.__name__ for kind in vars(cls).get("pipelines", ())]
