"""List, show and copy the recipes that ship, and document every key of a recipe.

fewstep recipes list|show NAME|copy NAME [TARGET]|keys [METHOD]
"""

import os
import shutil
import sys
from pathlib import Path

import click

from distill.config.shipped import description, recipe_file, shipped
from teachers.support.errors import run_click
from teachers.support.text import read_text


@click.group()
def recipes() -> None:
    """List, show and copy the recipes that ship, and document every key."""


@recipes.command("list")
def list_recipes() -> None:
    """List the recipes that ship."""
    found = shipped()
    width = max(map(len, found))
    for name, file in found.items():
        print(f"{name:<{width}}  {description(file).partition('. ')[0].rstrip('.')}.")


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME."""
    print(read_text(recipe_file(name)), end="")


@recipes.command()
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path), required=False)
def copy(name: str, target: Path | None) -> None:
    """Copy the recipe NAME into TARGET (default: a file of that name here), to be edited.

    TARGET is a .yaml file, whose folder is made if there is none, or a folder that exists.
    """
    source = recipe_file(name)
    target = Path(source.name) if target is None else target / source.name if target.is_dir() else target
    if target.suffix not in (".yaml", ".yml"):
        raise ValueError(f"TARGET must be a .yaml file or a folder that exists, got {target}")
    if os.path.lexists(target):  # also a broken link, which would be followed
        raise ValueError(f"{target} already exists; choose another file")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}: edit it, then run fewstep train {target}")


@recipes.command()
@click.argument("method", required=False)
def keys(method: str | None) -> None:
    """Document every key of a recipe, or with METHOD the options of that method."""
    from distill.config.recipe import Recipe
    from distill.config.registry import DISTILLERS, find
    from distill.config.typed import document

    for entry in document(find(DISTILLERS, method).Options, "method") if method else document(Recipe):
        print(f"{entry.key}  ({entry.kind}; default {entry.default})\n    {entry.help}")


if __name__ == "__main__":
    sys.exit(run_click(recipes, name="python -m distill.recipes"))
