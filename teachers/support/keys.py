"""Keys of cached values: hashes of everything that a value is computed from. All keys of this project are made here.

    key("latents", contents, images.content_key, code(type(teacher), "distill.data.encoding"))

`key` hashes values by content: files and folders (given as `Path`) by what they contain, networks by their weights and
settings, tokenizers by their vocabulary. `code` hashes the source that computes a value.
"""

import ast
import functools
import hashlib
import importlib.metadata
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path
from types import CodeType
from typing import Any

from teachers.support.canonical import feed
from teachers.support.contents import content, file_content, folder_contents
from teachers.support.plugins import OWN_PACKAGES

__all__ = ["code", "content", "file_content", "folder_contents", "key"]

# Libraries whose releases change tokens, schedules, prompt embeddings or resized images. Releases of torch change
# rounding only, so they do not make values that took days to compute invalid.
LIBRARIES = ("diffusers", "transformers", "tokenizers", "torchvision", "pillow")
# Top-level packages whose source is not hashed: the standard library, and libraries that are recorded by version.
RECORDED = (sys.stdlib_module_names - {"__main__"}) | {"torch", "torchvision", "diffusers", "transformers", "PIL"}
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
BLOCKS = (ast.stmt, ast.excepthandler, ast.match_case)  # the nodes that statements, and so imports, are inside
# Modules that compute no cached value: options, files, commands, and the loop. They count only if `code` is given one.
APART = (
    *("distill.cli", "distill.config", "distill.exporting", "distill.methods", "distill.training"),
    *("eval.config", "eval.report"),
    *(
        f"teachers.support.{name}"
        for name in ("canonical", "checksums", "contents", "errors", "files", "keys", "regular", "terminal")
    ),
)


def key(*parts: object) -> str:
    """The SHA-256, in 64 hexadecimal digits, of nested values.

    It does not depend on the process, on the order of mappings and sets, or on where files and tensors are.

    Args:
        *parts: None, numbers, strings, bytes, dtypes, sequences, mappings, sets, dataclasses, classes, functions,
            tensors, arrays, modules, pipelines, schedulers, tokenizers, and other objects by their attributes. A `Path`
            stands for the content of its file or folder.

    Raises:
        TypeError: If a value has no content that can be hashed.
    """
    digest = hashlib.sha256()
    feed(parts, digest.update, {})
    return digest.hexdigest()


def code(*makers: Any) -> str:
    """A hash of the code that computes a value.

    It covers the source files of the makers, of the bases of classes, and of all modules that these import in this
    project, in the makers' own packages and in folders that are not installed; the versions of `LIBRARIES`; and, for
    makers outside this project, the versions of the other packages that they import.

    Args:
        *makers: Classes, functions, or names of modules.
    """
    named = {maker for maker in makers if isinstance(maker, str)}
    members = [member for maker in makers if not isinstance(maker, str) for member in _definitions(maker)]
    found = named | {member.__module__ for member in members}
    own = {*OWN_PACKAGES, *(name.partition(".")[0] for name in found)}
    pending, sources, versions = list(found), dict[str, str](), {name: _version(name) for name in LIBRARIES}
    while pending:
        module = pending.pop()
        top, file = module.partition(".")[0], _file(module)
        if module in sources or top in RECORDED or (_is_apart(module) and module not in found):
            continue
        if file is not None and (top in own or not _is_installed(file)):
            sources[module] = file_content(file)
            names = _imports(str(file), module, sources[module])
            pending += [name for name in names if top not in OWN_PACKAGES or name.partition(".")[0] in OWN_PACKAGES]
        elif top not in own:
            versions[top] = _version(top)
    return key(sources, versions, [_compiled(member) for member in members if _file(member.__module__) is None])


def _definitions(maker: Any) -> list[Any]:
    """The classes and functions whose source counts: a class with its bases."""
    members = inspect.getmro(maker) if isinstance(maker, type) else (maker,)
    return [member for member in members if member.__module__.partition(".")[0] not in RECORDED]


def _is_apart(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in APART)


def _is_installed(file: Path) -> bool:
    """Whether a file belongs to an installed package, not to a checkout or a notebook's folder."""
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or file.is_relative_to(STANDARD_LIBRARY)


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", ""))


def _file(module: str) -> Path | None:
    """The source file of a module, without importing it; None if there is none."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None
    parent = module.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None)
    if parent and path is None:
        package = _file(parent)
        if package is None or package.name != "__init__.py":
            return None
        path = [str(package.parent)]
    spec = PathFinder.find_spec(module, path)
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin and origin.endswith(".py") else None


@functools.cache
def _imports(file: str, module: str, content: str) -> tuple[str, ...]:
    """All modules that a file with this content imports, also inside functions, but not for type checkers only."""
    package = module if Path(file).name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    pending: list[ast.AST] = [ast.parse(Path(file).read_bytes())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, BLOCKS)]
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            inside = [] if base.partition(".")[0] in RECORDED else [f"{base}.{alias.name}" for alias in node.names]
            names += [base, *(name for name in inside if _file(name) is not None)]
    return tuple(dict.fromkeys(part for name in names for part in _with_parents(name)))


def _with_parents(name: str) -> Iterator[str]:
    """A module and its packages, whose `__init__` runs before it."""
    parts = name.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _compiled(member: Any) -> list[Any]:
    """The compiled code of a class or function that has no file, such as one of a notebook."""
    functions = vars(member).values() if isinstance(member, type) else [member]
    unwrapped = [getattr(function, "__func__", getattr(function, "fget", function)) for function in functions]
    codes = [getattr(function, "__code__", None) for function in unwrapped]
    return [member.__qualname__, *(found for found in codes if isinstance(found, CodeType))]
