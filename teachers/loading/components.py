"""The classes that a pipeline's index names. Nothing is imported because an index names it.

A component's class is a model, scheduler, tokenizer or processor of diffusers or transformers, or a class of a package
that registers a teacher family, which has imported it already.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import diffusers.pipelines
from diffusers import ModelMixin, SchedulerMixin
from diffusers.guiders.guider_utils import BaseGuidance
from torch import nn
from transformers import FeatureExtractionMixin, ImageProcessingMixin, PreTrainedModel, ProcessorMixin
from transformers import PreTrainedTokenizerBase as Tokenizer

from teachers.support.private_api import required_packages

LIBRARIES = ("diffusers", "transformers")
# Components that a pipeline works without, although it has to be loaded with them as None explicitly.
DISPENSABLE = ("text_encoder_3", "tokenizer_3")  # T5 of Stable Diffusion 3
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # no family uses them
NETWORKS = (ModelMixin, PreTrainedModel)
PROCESSORS = (Tokenizer, ProcessorMixin, ImageProcessingMixin, FeatureExtractionMixin)
KINDS = (*NETWORKS, SchedulerMixin, BaseGuidance, *PROCESSORS)
# What a component must be by its name, such as unet, prior_scheduler or text_encoder_2; others may be any of KINDS.
ROLES: Mapping[str, tuple[str, tuple[type[Any], ...]]] = {
    "scheduler": ("a scheduler", (SchedulerMixin,)),
    "tokenizer": ("a tokenizer", (Tokenizer, ProcessorMixin)),
    "text_encoder": ("a network", NETWORKS),
    "unet": ("a network", NETWORKS),
    "transformer": ("a network", NETWORKS),
    "vae": ("a network", NETWORKS),
    "movq": ("a network", NETWORKS),
}
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def check_components(
    index: Mapping[str, Any], owners: Iterable[type[Any]], path: str, kind: type[Any] | None = None
) -> None:
    """Check the components that an index names, before anything is loaded.

    Args:
        index: The contents of model_index.json.
        owners: Classes of installed packages whose classes are allowed too: pipelines, families, components.
        path: The pipeline, for the message.
        kind: The pipeline's class, whose components must be entries [library, class] or null.

    Raises:
        ValueError: If a component is not a class of an allowed package, or a class of the wrong kind for its name.
    """
    owners = tuple(owners)
    if not isinstance(index.get("_class_name", ""), str):
        raise ValueError(f"_class_name of {path} must be the name of one class, got {index['_class_name']!r}")
    known = set() if kind is None else component_names(kind)
    for name, value in index.items():
        if is_component(value):
            _check_component(name, value, owners, path)
        elif name in known and not (isinstance(value, list | tuple) and value and value[0] is None):
            raise ValueError(f"the component {name} of {path} must be a library and a class of it, got {value!r}")


def _check_component(name: str, entry: list[str], owners: tuple[type[Any], ...], path: str) -> None:
    library, class_name = entry
    allowed = packages(owners)
    if not name.isidentifier():
        raise ValueError(f"the components of {path} must have names without dots and slashes, got {name!r}")
    module = _module(library, allowed)
    if module is None:
        known = ", ".join([*LIBRARIES, *sorted(allowed - {*LIBRARIES})])
        raise ValueError(
            f"{path}: the component {name} must be a class of {known}, got {library}.{class_name}; "
            "install the package of its teacher family, which must import that class"
        )
    found = getattr(module, class_name, None) if class_name.isidentifier() else None
    if found is None and class_name.isidentifier():
        if name in OPTIONAL:
            return  # `unusable_components` leaves it out
        raise ValueError(f"{library} has no class {class_name} in the installed version; upgrade it")
    if found is not None and (missing := required_packages(found)):
        raise ValueError(f"{path}: {class_name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if not _is_loadable(found, library):
        raise ValueError(
            f"{path}: the component {name} must be a model, scheduler, tokenizer or processor, got "
            f"{library}.{class_name}"
        )
    for part, (role, kinds) in ROLES.items():
        if re.fullmatch(rf"(\w+_)?{part}(_\d+)?", name) and library in LIBRARIES and not issubclass(found, kinds):  # type: ignore[arg-type]
            raise ValueError(f"{path}: the component {name} must be {role}, got {library}.{class_name}")


def component_names(kind: type[Any]) -> set[str]:
    """The names of a pipeline class's components: its parameters without a default, and those it declares optional."""
    parameters = inspect.signature(kind.__init__).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind not in variable and n != "self"}
    return needed | set(getattr(kind, "_optional_components", ()))


def absent_components(kind: type[Any], index: Mapping[str, Any], path: str) -> list[str]:
    """The components of `DISPENSABLE` that are null in an index.

    Raises:
        ValueError: With the name of a null component that the pipeline class needs.
    """
    absent = []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        null = isinstance(index.get(name), list | tuple) and not is_component(index[name])
        if null and name in DISPENSABLE:
            absent.append(name)
        elif null and parameter.default is parameter.empty and name not in getattr(kind, "_optional_components", ()):
            raise ValueError(f"{path}: a {kind.__name__} must have a {name}, got null in model_index.json")
    return absent


def component_class(library: str, name: str, owners: Iterable[type[Any]]) -> type[Any] | None:
    """The class of a component, from its entry [library, name] in an index; None if it is not allowed or unknown."""
    found = getattr(_module(library, packages(owners)), name, None)
    return found if _is_loadable(found, library) else None


def installed_class(entry: Any, owners: Iterable[type[Any]] = ()) -> type[Any] | None:
    """`component_class` of an index's value; None if it names no class of an allowed package.

    Raises:
        ValueError: If diffusers or transformers has no such class, or the class needs a package that is not installed.
    """
    if not is_component(entry):
        return None
    kind = component_class(entry[0], entry[1], owners)
    if kind is not None and (needed := required_packages(kind)):
        raise ValueError(f"{entry[1]} needs {' and '.join(needed)}: pip install {' '.join(needed)}")
    if kind is None and entry[0] in LIBRARIES:
        raise ValueError(f"{entry[0]} has no class {entry[1]} in the installed version; upgrade it")
    return kind


def is_component(value: Any) -> bool:
    """Whether a value of an index names a component that is present."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def is_setting(value: Any) -> bool:
    """Whether a value of an index is a setting of the pipeline, not a component that is present or null."""
    return not isinstance(value, list | tuple) or not all(part is None or isinstance(part, str) for part in value)


def packages(owners: Iterable[type[Any]]) -> set[str]:
    """The top-level packages of some classes."""
    return {owner.__module__.partition(".")[0] for owner in owners}


def _module(library: str, allowed: set[str]) -> ModuleType | None:
    if library in LIBRARIES:
        return import_module(library)
    if library.isidentifier() and isinstance(module := getattr(diffusers.pipelines, library, None), ModuleType):
        return module  # such as stable_diffusion, for its safety checker
    if not MODULE.fullmatch(library) or library.partition(".")[0] not in allowed - {*LIBRARIES}:
        return None
    return sys.modules.get(library)


def _is_loadable(found: Any, library: str) -> bool:
    """Whether `found` is a class that a pipeline of `library` can have as a component."""
    if not isinstance(found, type):
        return False
    package = found.__module__.partition(".")[0]
    if package in LIBRARIES:
        return issubclass(found, KINDS)
    return package == library.partition(".")[0] and (issubclass(found, nn.Module) or hasattr(found, "from_pretrained"))
