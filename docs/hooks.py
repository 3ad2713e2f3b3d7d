"""mkdocs hook: fills `<!-- generated: NAME -->` in pages from the code, so that nothing generated is committed."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import yaml
from mkdocs.structure.files import File, Files

import distill
from distill.cli import fewstep
from distill.config.recipe import Recipe
from distill.config.registry import DISTILLERS, find, installed
from distill.config.shipped import description, shipped
from distill.config.typed import document
from teachers.loading.registry import installed as families

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
WIDTH = 100  # characters of a line of help


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(heads), ["---" for _ in heads], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def keys(cls: type[Any], prefix: str = "") -> str:
    """Every key of a dataclass of options."""
    rows = ([f"`{k.key}`", k.kind, f"`{k.default}`", k.help] for k in document(cls, prefix))
    return table(["key", "type", "default", "meaning"], rows)


def recipe_keys() -> str:
    """Every key of a recipe, a section for each group."""
    groups = {f.name: f.type for f in dataclasses.fields(Recipe)}
    sections: dict[str, list[list[str]]] = {}
    for key in document(Recipe):
        group = key.key.partition(".")[0] if "." in key.key else "top level"
        sections.setdefault(group, []).append([f"`{key.key}`", key.kind, f"`{key.default}`", key.help])
    assert set(sections) - {"top level"} <= set(groups)
    heads = ["key", "type", "default", "meaning"]
    return "\n\n".join(f"## {name if name == 'top level' else f'`{name}`'}\n\n{table(heads, rows)}"
                       for name, rows in sections.items())  # fmt: skip


def method_options() -> str:
    """The options of every method of this project."""
    own = [name for name, point in installed(DISTILLERS).items() if point.value.startswith("distill.")]
    return "\n\n".join(f"## `{name}`\n\n{keys(find(DISTILLERS, name).Options, 'method')}" for name in sorted(own))


def commands(command: click.Command = fewstep, name: str = "fewstep", level: int = 2) -> str:
    """The help of every command."""
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    out = [f"{'#' * level} `{name}`\n\n```text\n{command.get_help(context)}\n```"]
    for word, child in getattr(command, "commands", {}).items():
        out.append(commands(child, f"{name} {word}", 3 if name != "fewstep" else 2))
    return "\n\n".join(out)


def recipes() -> str:
    """The recipes that ship."""
    rows = []
    for name, file in shipped().items():
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        rows.append([f"`{name}`", f"`{stored['teacher']['path']}`", stored["method"]["name"], description(file)])
    return table(["recipe", "teacher", "method", "about"], rows)


def teacher_families() -> str:
    """The teacher families of this project and the pipelines that they take."""
    own = {name: cls for name, cls in families().items() if cls.__module__.startswith("teachers.")}
    rows = ([f"`{n}`", ", ".join(f"`{p.__name__}`" for p in c.pipelines) or "Python only"] for n, c in own.items())
    return table(["family", "diffusers pipelines"], rows)


def api(kind: Callable[[Any], bool]) -> str:
    """mkdocstrings' directives for the public names of a kind."""
    found = {name: value for name in distill.__all__ if kind(value := getattr(distill, name))}
    return "\n\n".join(f"::: {v.__module__}.{v.__qualname__}\n    options:\n      heading: distill.{n}"
                       for n, v in found.items())  # fmt: skip


GENERATED: dict[str, Callable[[], str]] = {
    "recipe keys": recipe_keys,
    "method options": method_options,
    "commands": commands,
    "recipes": recipes,
    "families": teacher_families,
    "functions": lambda: api(inspect.isfunction),
    "recipe classes": lambda: api(dataclasses.is_dataclass),
    "classes": lambda: api(lambda v: inspect.isclass(v) and not dataclasses.is_dataclass(v)),
}


def on_files(files: Files, config: Any) -> Files:
    """Serve the committed figures of the benchmarks under results/."""
    for image in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""
    for name, make in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown
