"""The layout rule: root files are commands, folders are rooms, imports point down, and there are no circles."""

import ast
from collections.abc import Iterator
from functools import cache

import pytest

from tests.settings import ROOT

PACKAGES = ("teachers", "eval", "distill", "benchmarks")  # each may import itself and those before it
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
}


@cache
def imports(module: str, lazy: bool = True) -> list[str]:
    """The modules of this project that `module` imports, also inside functions unless `lazy` is False."""
    found: list[str] = []
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node in walk(tree, lazy):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += filter(None, map(module_of, names))
    return found


def module_of(name: str) -> str:
    """The module that a dotted name is in, "" for other projects' names."""
    return name if name in FILES or not name else module_of(name.rpartition(".")[0])


def walk(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from walk(node, lazy)


def is_command(module: str) -> bool:
    """Whether the module is a file at the root of a package."""
    return FILES[module].parent.parent == ROOT and FILES[module].name != "__init__.py"


def test_imports_point_down():
    wrong = [
        f"{module} imports {name}"
        for module in FILES
        for name in imports(module)
        if name.partition(".")[0] not in PACKAGES[: PACKAGES.index(module.partition(".")[0]) + 1]
    ]
    assert not wrong


def test_a_room_never_imports_a_command():
    rooms = [module for module in FILES if not is_command(module) and "." in module]
    wrong = [f"{module} imports {name}" for module in rooms for name in imports(module) if is_command(name)]
    assert not wrong


@pytest.mark.slow
def test_there_are_no_circular_imports():
    edges = {module: set(imports(module, lazy=False)) - {module} for module in FILES}
    while edges:
        leaves = [module for module, targets in edges.items() if not targets & edges.keys()]
        assert leaves, f"circular imports among {sorted(edges)}"
        for module in leaves:
            del edges[module]


def test_tests_mirror_the_rooms():
    for package in ("teachers", "eval", "distill"):
        rooms = {folder.name for folder in (ROOT / package).iterdir() if (folder / "__init__.py").is_file()}
        folders = {f.name for f in (ROOT / "tests" / package).iterdir() if f.is_dir() and f.name != "__pycache__"}
        assert folders <= rooms, f"tests/{package} has folders that are no rooms: {folders - rooms}"


def test_the_fixed_top_level_is_there():
    for name in ("setup.cfg", "README.md", "distill", "teachers", "recipes", "eval", "notebooks", "tests"):
        assert (ROOT / name).exists(), name
