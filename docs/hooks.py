"""mkdocs hook: fills pages from the code, so that nothing generated is committed.

`<!-- generated: NAME -->` becomes what `GENERATED[NAME]` returns, `<!-- include: PATH -->` the file as a block of code.
"""

import inspect
import json
import re
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
from distill.config.typed import KeyDoc, document

ROOT = Path(__file__).parents[1]
HELP = {"terminal_width": 80, "max_content_width": 80}


def table(rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * (lines[0].count(" | ") + 1), *lines[1:]])


def keys(title: str, entries: Iterable[KeyDoc]) -> str:
    rows = [[f"`{entry.key}`", entry.kind, f"`{entry.default}`", entry.help] for entry in entries]
    return f"## {title}\n\n{table([['key', 'type', 'default', 'meaning'], *rows])}"


def recipe_keys() -> str:
    groups: dict[str, list[KeyDoc]] = {}
    for entry in document(Recipe):
        groups.setdefault(f"`{entry.key.partition('.')[0]}`" if "." in entry.key else "Top level", []).append(entry)
    return "\n\n".join(keys(title, entries) for title, entries in groups.items())


def method_options() -> str:
    own = [name for name, point in sorted(installed(DISTILLERS).items()) if point.value.startswith("distill.")]
    return "\n\n".join(keys(f"`{name}`", document(find(DISTILLERS, name).Options, "method")) for name in own)


def commands(command: click.Command = fewstep, name: str = "fewstep", parent: click.Context | None = None) -> str:
    context = click.Context(command, parent, name, **command.context_settings | HELP)
    head = f"##{'#' * context.command_path.count(' ')} `{context.command_path}`"
    children = [commands(child, word, context) for word, child in getattr(command, "commands", {}).items()]
    return "\n\n".join([head, f"```text\n{context.get_help()}\n```", *children])


def recipes() -> str:
    rows = [["recipe", "teacher", "method", "about"]]
    for name, file in shipped().items():
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        rows.append([f"`{name}`", f"`{stored['teacher']['path']}`", stored["method"]["name"], description(file)])
    return table(rows)


def api(kind: Callable[[Any], bool]) -> str:
    """mkdocstrings' directives for the public names of a kind."""
    found = {name: value for name in distill.__all__ if kind(value := getattr(distill, name))}
    return "\n\n".join(
        f"::: {value.__module__}.{value.__qualname__}\n    options: {{heading: {name}, toc_label: {name}}}"
        for name, value in found.items()
    )


def include(path: str) -> str:
    kind = {".py": "python", ".toml": "toml"}.get(Path(path).suffix, "yaml")
    return f"```{kind}\n{(ROOT / path).read_text(encoding='utf-8').strip()}\n```"


def metric_example() -> str:
    """The metric of the tests' example plug-in."""
    files = sorted((ROOT / "tests" / "plugin" / "fewstep_plugin").glob("*.py"))
    found = [
        include(str(file.relative_to(ROOT)))
        for file in files
        if "eval.metrics.base" in file.read_text(encoding="utf-8")
    ]
    return "\n\n".join(found) or "The tests' example plug-in has no metric yet."


def plans(images: bool = True) -> str:
    """The totals of benchmarks/results/plans.json.

    Args:
        images: Whether recipes of images are listed too, beside those of video and audio.
    """
    stored = json.loads((ROOT / "benchmarks" / "results" / "plans.json").read_text(encoding="utf-8"))
    tiers = {
        "full": "whole networks",
        "full, checkpointing": "with checkpointing",
        "lora, checkpointing": "LoRA, with checkpointing",
    }
    rows = [["recipe", *tiers.values(), "days of one H100"]]
    for name, row in stored.items():
        if images or row["medium"] != "image":
            cells = [
                f"{sum(row['plans'][tier].values()) / 2**30:.1f} GiB: {row['cards'][tier]}"
                if tier in row["plans"]
                else "–"
                for tier in tiers
            ]
            rows.append([f"`{name}`", *cells, f"{row['h100_days']:,.2f}"])
    return table(rows)


def front_ends() -> str:
    """The table that `python -m benchmarks.front_ends` wrote."""
    text = (ROOT / "benchmarks" / "results" / "front_ends.md").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


GENERATED: dict[str, Callable[[], str]] = {
    "front ends": front_ends,
    "recipe keys": recipe_keys,
    "method options": method_options,
    "commands": commands,
    "recipes": recipes,
    "functions": lambda: api(inspect.isfunction),
    "recipe classes": lambda: api(lambda v: v.__module__ == Recipe.__module__ and inspect.isclass(v)),
    "classes": lambda: api(lambda v: v.__module__ != Recipe.__module__ and inspect.isclass(v)),
    "metric example": metric_example,
    "plans": plans,
    "plans of video and audio": lambda: plans(images=False),
}


def on_files(files: Files, config: Any) -> Files:
    """Serve the committed figures of the benchmarks under results/."""
    for image in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = re.sub(r"<!-- generated: (.+?) -->", lambda found: GENERATED[found[1]](), markdown)
    return re.sub(r"<!-- include: (.+?) -->", lambda found: include(found[1]), markdown)
