"""Distil a diffusion model into a one- or two-step model.

    import distill

    folder = distill.train(distill.load_recipe("pocket/dmd"))

Names are imported when they are first used, so `import distill` is immediate.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.config.evaluation_section import EvaluationRecipe
    from distill.config.recipe import Recipe
    from distill.config.recipe import load as load_recipe
    from distill.config.sections import (
        DataRecipe,
        ExportRecipe,
        MemoryRecipe,
        OptimizerRecipe,
        TeacherRecipe,
        TrainRecipe,
    )
    from distill.data.batch import Batch
    from distill.methods.base import Distiller
    from distill.methods.dmd import DMD
    from distill.methods.f_distill import FDistill
    from distill.methods.lcm import LCM
    from distill.methods.rcm import RCM
    from distill.methods.scm import SCM
    from distill.methods.sid import SID
    from distill.train import train
    from distill.training.step import train_step
    from eval.compare import compare
    from teachers.core.sampling import sample
    from teachers.loading.registry import load_teacher

__version__ = "0.1.0"

_SECTIONS = (
    "TeacherRecipe",
    "DataRecipe",
    "OptimizerRecipe",
    "TrainRecipe",
    "MemoryRecipe",
    "ExportRecipe",
)
_NAMES = {
    "load_recipe": ("distill.config.recipe", "load"),
    "Recipe": ("distill.config.recipe", "Recipe"),
    **{name: ("distill.config.sections", name) for name in _SECTIONS},
    "EvaluationRecipe": ("distill.config.evaluation_section", "EvaluationRecipe"),
    "train": ("distill.train", "train"),
    "train_step": ("distill.training.step", "train_step"),
    "load_teacher": ("teachers.loading.registry", "load_teacher"),
    "compare": ("eval.compare", "compare"),
    "Distiller": ("distill.methods.base", "Distiller"),
    "Batch": ("distill.data.batch", "Batch"),
    "DMD": ("distill.methods.dmd", "DMD"),
    "SCM": ("distill.methods.scm", "SCM"),
    "SID": ("distill.methods.sid", "SID"),
    "RCM": ("distill.methods.rcm", "RCM"),
    "LCM": ("distill.methods.lcm", "LCM"),
    "FDistill": ("distill.methods.f_distill", "FDistill"),
    "sample": ("teachers.core.sampling", "sample"),
}
__all__ = [
    "DMD",
    "LCM",
    "RCM",
    "SCM",
    "SID",
    "Batch",
    "DataRecipe",
    "Distiller",
    "EvaluationRecipe",
    "ExportRecipe",
    "FDistill",
    "MemoryRecipe",
    "OptimizerRecipe",
    "Recipe",
    "TeacherRecipe",
    "TrainRecipe",
    "compare",
    "load_recipe",
    "load_teacher",
    "sample",
    "train",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    module, attribute = _NAMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Importing the submodule `distill.train` must not replace the function `distill.train`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _NAMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
