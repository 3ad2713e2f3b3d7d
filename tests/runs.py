"""Runs in the state in which an interruption leaves them."""

import shutil
from dataclasses import replace

from distill.config.recipe import Recipe
from distill.training import checkpoint


def interrupted(recipe: Recipe, name: str) -> Recipe:
    """A copy of a finished run as it was before its last checkpoint; returns its recipe."""
    other = replace(recipe, name=name)
    shutil.copytree(recipe.folder, other.folder)
    *earlier, last = checkpoint.saved_steps(other.folder / "checkpoints")
    assert earlier, "the run has one checkpoint"
    shutil.rmtree(other.folder / "checkpoints" / f"{last:08d}")
    for path in (other.folder / "pipeline", other.folder / "exported.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return other
