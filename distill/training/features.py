"""The features of a run's evaluations."""

from distill.config.recipe import Recipe
from distill.config.registry import TEACHERS, find
from eval.config.media_names import WITHOUT_WEIGHTS
from teachers.loading.embedded import EMBEDDED
from teachers.media import Medium


def choose_features(recipe: Recipe, medium: Medium) -> str:
    """The feature extractor of a recipe.

    "auto" means the judge of an embedded teacher for its students, else the default of the teacher's family. For those
    of diffusers it is one without weights, which detects little but works for samples of any kind: pooled pixels of
    images, pooled pixels and motion of clips, levels of frequency bands of sounds.

    Args:
        recipe: The recipe.
        medium: The medium of the teacher's samples.
    """
    if recipe.evaluation.features != "auto":
        return recipe.evaluation.features
    if recipe.teacher.path in EMBEDDED:
        return str(recipe.teacher.path)
    family = None if recipe.teacher.family == "auto" else find(TEACHERS, recipe.teacher.family)
    return (family and family.default_features) or WITHOUT_WEIGHTS[medium.name]
