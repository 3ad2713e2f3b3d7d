"""The documentation: the site builds, commands and recipes that it names exist, and everything public is documented."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import distill
from benchmarks.accessibility import BLOCKING, browser, findings
from distill.cli import fewstep
from distill.config.recipe import Recipe, load, method_options
from distill.config.registry import DISTILLERS, find, installed
from distill.config.shipped import accelerate_file, shipped
from distill.config.typed import document
from distill.memory import read_processes
from distill.methods.contract import requested_pairs
from tests.settings import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)
INSTALL = "pip install -e . && fewstep quickstart"
TEST = 'pip install -e ".[test]" && pytest -n auto'


def commands_in(text: str) -> list[list[str]]:
    """The words of every `fewstep` command line in code blocks and code spans."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + spans
    parts = [part.strip() for line in lines for part in line.split("&&")]
    parts = [re.sub(r"^(\w+=\S+ )+", "", part) for part in parts]  # variables of the environment
    return [shlex.split(part, comments=True)[1:] for part in parts if re.match(r"fewstep( |$)", part)]


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `words` call and its arguments; AssertionError for a word that is no command."""
    command: Any = fewstep
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        default = getattr(command, "default", None)
        if words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        elif default is not None:
            command = command.commands[default]
        elif words[0].isupper():  # a placeholder
            break
        else:
            raise AssertionError(f"there is no command {words[0]!r} in {command.name}")
    return command, words


@every_page
@pytest.mark.first_is_quick
def test_commands_in_the_documentation_exist(page):
    for words in commands_in(page.read_text()):
        command, arguments = resolve(words)
        known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h", "--version"}
        for option in (word for word in arguments if re.match("--?[a-z]", word)):
            assert option in known, f"{page.name}: fewstep {shlex.join(words)} has no option {option}"


@every_page
@pytest.mark.first_is_quick
def test_recipes_in_the_documentation_exist(page):
    takes_recipe = {fewstep.commands[name] for name in ("train", "pairs", "memory")}
    takes_name = {fewstep.commands["recipes"].commands[name] for name in ("show", "copy")}
    for words in commands_in(page.read_text()):
        command, arguments = resolve(words)
        recipe = arguments[0] if arguments else ""
        placeholder = recipe.isupper() or recipe.startswith("-") or not recipe
        if placeholder or command not in takes_recipe | takes_name:
            continue
        name = recipe.removesuffix(".yaml").removeprefix("recipes/")
        assert name in shipped(), f"{page.name} names the recipe {recipe!r}, which does not exist"


@every_page
def test_overrides_in_the_documentation_are_keys(page):
    """`fewstep train NAME key=value ...` is accepted as it stands."""
    for words in commands_in(page.read_text()):
        command, arguments = resolve(words)
        overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
        if command is fewstep.commands["train"] and overrides and arguments[0] in shipped():
            load(arguments[0], overrides)


def examples(command: click.Command) -> list[list[str]]:
    """The words of every example in the help of a command and its subcommands."""
    lines = (command.help or "").partition("Example")[2].splitlines()
    own = [shlex.split(line)[1:] for line in lines if line.strip().startswith("fewstep ")]
    children = command.commands.values() if isinstance(command, click.Group) else ()
    return own + [words for child in children for words in examples(child)]


@pytest.mark.parametrize("words", examples(fewstep), ids=" ".join)
@pytest.mark.first_is_quick
def test_examples_in_the_help_can_be_run(words):
    check_command(words)


@every_page
def test_commands_of_several_processes_in_the_documentation_can_be_run(page):
    for words in commands_in(page.read_text()):
        if "--num-processes" in words and "RECIPE" not in words and len(words) > 2:
            check_command(words)


def check_command(words: list[str]) -> None:
    """The words can be parsed, the recipe can be loaded, and its batch and pairs suit the processes."""
    command, arguments = resolve(words)
    values = command.make_context(command.name, list(arguments)).params
    if values.get("recipe") not in shipped():
        return
    recipe = load(values["recipe"], values["overrides"])
    config, count = values.get("config"), values.get("num_processes")
    if command is fewstep.commands["pairs"]:
        assert requested_pairs(*method_options(recipe))[0] > 0
    elif config or count:
        read_processes(config and accelerate_file(config), count).samples(recipe)


@every_page
def test_files_in_the_documentation_exist(page):
    folders = "benchmarks|distill|docs|eval|notebooks|recipes|teachers|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names the file {name}, which does not exist"


@every_page
def test_imports_in_the_documentation_work(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.findall(
            r"^(?:from (?:distill|eval|teachers)\S* import .+|import distill)$", block, re.MULTILINE
        ):
            exec(line, {})


def test_the_readme_is_a_front_page():
    words = (ROOT / "README.md").read_text().split()
    assert len(words) <= 900, f"README.md has {len(words)} words; move details into docs/"


def test_the_readme_has_the_two_command_lines():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert INSTALL in lines and TEST in lines


def test_links_of_the_readme_lead_to_files():
    for link in re.findall(r"\]\(([^)#:]+)\)|(?:src|srcset)=\"([^\"]+)\"", (ROOT / "README.md").read_text()):
        assert (ROOT / (link[0] or link[1])).exists(), f"README.md links to {link}, which does not exist"


@pytest.mark.parametrize("name", distill.__all__)
def test_public_names_have_a_summary(name):
    summary = (getattr(distill, name).__doc__ or "").strip().partition("\n")[0]
    assert len(summary) > 10, f"distill.{name} has no docstring with a summary line"
    assert not summary.startswith(f"{name}("), f"distill.{name} has no docstring of its own"


@pytest.mark.parametrize("key", document(Recipe), ids=lambda key: key.key)
def test_recipe_keys_have_help(key):
    assert key.help, f"{key.key} has no help; add it to its option(...)"


@pytest.mark.parametrize(
    "method", sorted(n for n, p in installed(DISTILLERS).items() if p.value.startswith("distill."))
)
def test_method_options_have_help(method):
    keys = document(find(DISTILLERS, method).Options, "method")
    missing = [key.key for key in keys if not key.help]
    assert not missing, f"options of {method} without help: {', '.join(missing)}; add it to their option(...)"


def test_every_family_is_in_the_table():
    page = (ROOT / "docs" / "reference" / "families.md").read_text()
    missing = [name for name, point in installed("distill.teachers").items()
               if point.value.startswith("teachers.") and f"`{name}`" not in page]  # fmt: skip
    assert not missing, f"docs/reference/families.md lacks {', '.join(missing)}"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    """A broken link, a page outside the navigation or an unknown name is a warning, and a warning fails.

    axe finds nothing serious in a page with tables, code, pictures and links.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {file: file.read_text() for file in (tmp_path / "site").rglob("*.html")}
    assert not [file for file, text in pages.items() if "<!-- generated" in text or "<!-- include" in text]
    fetched = r'<(?:script|img|link)[^>]+(?:src|href)="https?://[^"]+"'
    assert not [found for text in pages.values() for found in re.findall(fetched, text)]
    api = (tmp_path / "site" / "reference" / "api" / "index.html").read_text()
    assert all(f'id="{_target(name)}"' in api for name in distill.__all__)
    if browser() is not None:
        found = findings([str(tmp_path / "site" / "how-to" / "stable-diffusion" / "index.html")])
        assert [entry for entry in found if entry["impact"] in BLOCKING] == []


@pytest.mark.slow
def test_the_example_of_one_loss_runs():
    exec((ROOT / "docs" / "examples" / "one_loss.py").read_text(), {})


@pytest.mark.slow
def test_the_example_in_memory_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (ROOT / "docs" / "examples" / "in_memory.py").read_text()
    small = "steps=2, batch_size=4, evaluate_every=0, evaluate_samples=4, evaluate_teacher_steps=2, tracker='none'"
    assert "steps=1000, batch_size=64" in source
    exec(source.replace("steps=1000, batch_size=64", small), {})
    assert Path("runs/in-memory/pipeline/model_index.json").is_file()


def _target(name: str) -> str:
    value = getattr(distill, name)
    return f"{value.__module__}.{value.__qualname__}"
