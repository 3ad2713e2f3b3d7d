"""Recipes: the complete configuration of a run. Read from YAML with `load`, or created in Python.

Every dataclass checks itself when it is created, so a recipe from Python is checked as strictly as one from a file.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config.evaluation_section import EvaluationRecipe
from distill.config.overrides import apply_overrides
from distill.config.registry import DISTILLERS, TEACHERS, find
from distill.config.run_files import check_run_names
from distill.config.sections import (
    DataRecipe,
    ExportRecipe,
    MemoryRecipe,
    OptimizerRecipe,
    TeacherRecipe,
    TrainRecipe,
)
from distill.config.shipped import recipe_file
from distill.config.typed import Checked, build, option
from distill.config.validation_prompts import check_validation_prompts
from eval.config.media_names import check_features
from teachers.core.teacher import Teacher
from teachers.loading.embedded import locate, usual_size
from teachers.loading.registry import family_of, feature_models
from teachers.loading.sources import has_metadata, read_source_rows
from teachers.support.errors import reads, suggest
from teachers.support.yaml_files import read_yaml


@dataclass
class Recipe(Checked):
    """One run: teacher, method, data, optimizers, loop, memory and evaluation.

    Example:
        >>> Recipe("boots", TeacherRecipe("pocket"), {"name": "dmd"}, data=DataRecipe(prompts="pocket"))
    """

    name: str = option(help="Name of the run; its folder is output/name.")
    teacher: TeacherRecipe = option(help="The teacher.")
    method: dict[str, Any] = option(
        help="`name`: dmd, scm, rcm, sid, f_distill, lcm or an installed plug-in; the other keys are the method's "
        "options."
    )
    output: str = option("runs", "The folder of all runs.")
    seed: int = option(0, "Seed of every random number of the run.", at_least=0)
    data: DataRecipe = option(factory=DataRecipe, help="What the student learns from.")
    optimizers: dict[str, OptimizerRecipe] = option(factory=dict, help="An optimizer for each phase of the method.")
    train: TrainRecipe = option(factory=TrainRecipe, help="The training loop.")
    memory: MemoryRecipe = option(factory=MemoryRecipe, help="Memory.")
    evaluation: EvaluationRecipe = option(factory=EvaluationRecipe, help="Evaluation.")
    export: ExportRecipe = option(factory=ExportRecipe, help="The exported pipeline.")

    def check(self) -> None:
        check_run_names(self.name, self.output)
        self._complete_teacher()
        # The family of a teacher in memory is not known here.
        kind = None if self.teacher.family == "auto" else find(TEACHERS, self.teacher.family)
        if kind is not None:
            self._check_family(kind)
        check_validation_prompts(self.evaluation, self.train.evaluate_every, kind, self.teacher.path)
        cls, _ = method_options(self)
        for phase in self.optimizers:
            if phase not in cls.PHASES:
                raise ValueError(
                    f"unknown key 'optimizers.{phase}'{suggest(phase, cls.PHASES)}; "
                    f"the phases of {self.method['name']} are {', '.join(cls.PHASES)}"
                )
        if self.memory.tier == "lora" and self.train.compile != "none":
            raise ValueError("train.compile must be none with memory.tier=lora: compiled code cannot switch adapters")
        if self.memory.eight_bit and self.train.channels_last:
            raise ValueError(
                "memory.eight_bit cannot be combined with train.channels_last, which changes the order of the values "
                "that 8-bit moments share a scale by; set one of them to false"
            )

    def _complete_teacher(self) -> None:
        """Replace the values of `teacher` that stand for a default."""
        if self.teacher.path is not None and self.teacher.family == "auto":
            self.teacher = dataclasses.replace(self.teacher, family=family_of(locate(self.teacher.path)))
        if self.teacher.size is None and (size := usual_size(self.teacher.path)):
            self.teacher = dataclasses.replace(self.teacher, size=size)
        if self.teacher.precision == "auto":
            half = self.memory.tier == "lora"
            self.teacher = dataclasses.replace(self.teacher, precision="bfloat16" if half else "float32")

    def _check_family(self, kind: type[Teacher]) -> None:
        """Check the values that depend on the teacher's family."""
        kind.size_argument(self.teacher.size)
        kind.check_guidance(self.teacher.guidance)
        if self.teacher.negative_prompt is not None:
            kind.check_negative_prompt()
        if self.teacher.image_guidance is not None:
            kind.check_image_guidance()
        if self.evaluation.prompts is not None:
            if kind.source:
                read_source_rows(Path(self.evaluation.prompts), masked=len(kind.source) > 1)
            elif has_metadata(Path(self.evaluation.prompts)):
                raise ValueError(
                    "evaluation.prompts must be a file of prompts: a teacher of the family "
                    f"{self.teacher.family} takes no source images, got {self.evaluation.prompts!r}"
                )
        if self.evaluation.features != "auto":
            try:
                check_features(self.evaluation.features, kind.medium_class.name, feature_models())
            except ValueError as error:
                raise ValueError(f"evaluation.features: {error}") from error

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output) / self.name

    @property
    def cache(self) -> Path:
        """Encoded prompts and images, shared by all runs of one output folder."""
        return Path(self.output) / ".cache"


@reads
def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, merge overrides into it and check every value.

    Args:
        source: A YAML file, or the name of a shipped recipe such as "pocket/dmd".
        overrides: `key=value` strings, such as "train.steps=500"; see `distill.config.overrides`.

    Returns:
        The checked recipe.

    Raises:
        ValueError: One sentence with the file or the key that is wrong, and what would be right.
    """
    path = recipe_file(source)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values at its top level")
    apply_overrides(values, overrides, Recipe)
    recipe: Recipe = build(Recipe, values, "")
    if recipe.teacher.path is None:
        raise ValueError("the key 'teacher.path' is missing")
    check_exports(recipe)
    return recipe


def check_exports(recipe: Recipe) -> None:
    """Raise ValueError if students of the recipe's teacher family cannot be exported as a pipeline."""
    if not find(TEACHERS, recipe.teacher.family).exports:
        raise ValueError(
            f"teacher.family {recipe.teacher.family!r} has no diffusers pipeline, so its students cannot be exported; "
            "use it from Python (benchmarks/analytic.py is an example)"
        )


def method_options(recipe: Recipe) -> tuple[type[Any], Any]:
    """The class of the recipe's method and an instance of its checked options."""
    method = dict(recipe.method)
    name = method.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("the key 'method.name' is missing")
    cls = find(DISTILLERS, name)
    return cls, build(cls.Options, method, "method")


def with_defaults(recipe: Recipe) -> Recipe:
    """`recipe` with every option of its method, and an optimizer for each phase."""
    cls, options = method_options(recipe)
    optimizers = {phase: recipe.optimizers.get(phase, OptimizerRecipe()) for phase in cls.PHASES}
    method = {"name": recipe.method["name"], **dataclasses.asdict(options)}
    return dataclasses.replace(recipe, method=method, optimizers=optimizers)
