"""The recipes and launcher configurations that ship with the package, by name. Imports nothing slow."""

from collections.abc import Sequence
from pathlib import Path

from teachers.support.errors import suggest
from teachers.support.regular import check_regular

FOLDER = Path(__file__).parents[2] / "recipes"
MOST = 5  # recipes that an error message suggests
OTHERS = ("accelerate", "eval")  # folders of launcher configurations and evaluation protocols


def shipped() -> dict[str, Path]:
    """Every shipped recipe: its name, such as "pocket/dmd", and its file."""
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    found = {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in files}
    return {name: file for name, file in found.items() if not name.startswith(OTHERS)}


def recipe_file(source: str | Path) -> Path:
    """The file of a recipe, given by its path or by the name of a shipped one.

    Raises:
        ValueError: If there is neither, with the closest existing name, or if it is a folder, a FIFO or a device.
    """
    path, name = Path(source), str(source)
    if path.is_file():
        return path
    if path.exists():
        check_regular(path)
    known = shipped()
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    neighbours = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    hint = suggest(name, neighbours) or suggest_recipe(name.removesuffix(".yaml"), list(known))
    raise ValueError(f"there is no recipe {name}{hint or '; `fewstep recipes list` shows the recipes that ship'}")


def suggest_recipe(name: str, known: Sequence[str]) -> str:
    """`, did you mean ...?` with the shipped recipes that a wrong name may mean: a folder's, or those with the word."""
    word = name.lower()
    ends = [recipe for recipe in known if recipe.endswith(f"/{word}")]
    found = ends or ([recipe for recipe in known if word in recipe] if "/" not in word else [])
    if not found:
        return suggest(word, known)
    *others, last = [repr(recipe) for recipe in found[:MOST]]
    return f", did you mean {', '.join(others) + ' or ' if others else ''}{last}?"


def accelerate_file(name: str) -> Path:
    """accelerate's configuration that --config names: a file, or the name of a shipped one such as "ddp".

    Raises:
        ValueError: If there is neither, or the file is not YAML.
    """
    known = {file.stem: file for file in sorted((FOLDER / "accelerate").glob("*.yaml"))}
    if Path(name).is_file() or (Path(name).exists() and name not in known):
        from teachers.support.yaml_files import read_yaml

        read_yaml(Path(name))  # accelerate would print a traceback
        return Path(name)
    if name not in known:
        raise ValueError(f"--config must be a file or one of {', '.join(known)}, got {name!r}")
    return known[name]


def description(file: Path) -> str:
    """The comment at the top of a recipe, without its command line."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(line for line in lines if line and not line.startswith(("accelerate ", "fewstep "))).strip()
