"""The classes that a pipeline's index names. Nothing is imported because an index names it.

A component's class is one of diffusers or transformers, or one of a package that registers a teacher family, which has
imported it already.
"""

import inspect
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import diffusers.pipelines

from teachers.support.private_api import required_packages

LIBRARIES = ("diffusers", "transformers")
# Components that a pipeline works without, although it has to be loaded with them as None explicitly.
DISPENSABLE = ("text_encoder_3", "tokenizer_3")  # T5 of Stable Diffusion 3


def check_components(index: Mapping[str, Any], owners: Iterable[type[Any]], path: str) -> None:
    """Check the libraries that an index names, before anything is loaded.

    Args:
        index: The contents of model_index.json.
        owners: Classes of installed packages whose classes are allowed too: pipelines, families, components.
        path: The pipeline, for the message.

    Raises:
        ValueError: If a component is a class of another library.
    """
    allowed = packages(owners)
    for name, value in index.items():
        if is_component(value) and _module(value[0], allowed) is None:
            known = ", ".join([*LIBRARIES, *sorted(allowed - {*LIBRARIES})])
            raise ValueError(
                f"{path}: the component {name} must be a class of {known}, got {value[0]}.{value[1]}; "
                "install the package of its teacher family, which must import that class"
            )


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
    return found if isinstance(found, type) else None


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


def packages(owners: Iterable[type[Any]]) -> set[str]:
    """The top-level packages of some classes."""
    return {owner.__module__.partition(".")[0] for owner in owners}


def _module(library: str, allowed: set[str]) -> ModuleType | None:
    if library in LIBRARIES:
        return import_module(library)
    if library.isidentifier() and isinstance(module := getattr(diffusers.pipelines, library, None), ModuleType):
        return module  # such as stable_diffusion, for its safety checker
    return sys.modules.get(library) if library.partition(".")[0] in allowed else None
