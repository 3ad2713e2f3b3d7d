"""`recipe.yaml` in a run's folder: the run's recipe, whole and checked, with a SHA-256 in its second line."""

import dataclasses
import json
from pathlib import Path

import yaml

from distill.config.recipe import Recipe, load
from distill.config.run_files import RECIPE
from teachers.support.checksums import CHANGED
from teachers.support.files import atomic_write, sha256
from teachers.support.regular import read_bytes
from teachers.support.text import printable

CHECKSUM = "# sha256: "


def save(recipe: Recipe) -> None:
    """Write `recipe`, whole and checked, to its run's folder, as a file that `load` reads."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))  # tuples become lists
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if printable(text, lines=True) != text:  # YAML does not escape marks that reverse the direction of text
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
    head = f"# fewstep train {recipe.folder / RECIPE}\n{CHECKSUM}{sha256([text.encode()])}\n"
    with atomic_write(recipe.folder / RECIPE) as temporary:
        temporary.write_bytes((head + text).encode())


def load_saved(path: Path) -> Recipe:
    """Read a recipe that `save` wrote and nobody changed since.

    Raises:
        ValueError: If it has changed, or for the reasons of `load`.
    """
    head, _, rest = read_bytes(path).partition(CHECKSUM.encode())
    found, _, text = rest.partition(b"\n")
    if found != sha256([text]).encode() or head.count(b"\n") != 1:
        raise ValueError(f"{path} {CHANGED}; continue the training with it instead (fewstep train {path})")
    return load(path)


class _Dumper(yaml.SafeDumper):
    """Quotes text that starts like a number: OmegaConf reads 1e3 as a number, which PyYAML writes as plain text."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if text[:1] in tuple("+-.0123456789") else None
    ),
)
