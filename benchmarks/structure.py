"""The repository's structure as a Markdown table: sizes, longest functions, circular and upward imports.

    python -m benchmarks.structure [CHECKOUT] [--against OTHER_CHECKOUT] [--write]

CHECKOUT defaults to this one; OTHER_CHECKOUT is the state before a change. Only the standard library is needed, and
nothing of a checkout is imported. "Rooms" are folders of Python files. An upward import is one against the order
benchmarks -> distill -> eval -> teachers. Circular imports are those at module level, outside functions. Imports under
`if TYPE_CHECKING:` do not count.
"""

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ORDER = ("teachers", "eval", "distill", "benchmarks")  # a package imports from those before it
COUNTED = (*ORDER, "tests", "notebooks")
RESULT = Path(__file__).parent / "results" / "structure.md"


@dataclass
class Structure:
    """What is counted in one checkout. Sizes are (files, lines) by package and by room."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    longest_file: tuple[int, str] = (0, "")
    longest_function: tuple[int, str] = (0, "")
    long_functions: int = 0
    cycles: list[list[str]] = field(default_factory=list)
    upward: list[str] = field(default_factory=list)
    readme_words: int = 0


def measure(root: Path) -> Structure:
    """Count the structure of the checkout at `root`."""
    found = Structure(readme_words=len((root / "README.md").read_text(encoding="utf-8").split()))
    modules: dict[str, Path] = {}
    imports: dict[str, set[str]] = {}
    for package in COUNTED:
        for file in sorted((root / package).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            relative = file.relative_to(root)
            for name in {package, relative.parent.as_posix()}:
                files, lines = found.sizes.get(name, (0, 0))
                found.sizes[name] = files + 1, lines + len(text.splitlines())
            if package in ORDER:
                found.longest_file = max(found.longest_file, (len(text.splitlines()), relative.as_posix()))
                modules[".".join(relative.with_suffix("").parts).removesuffix(".__init__")] = file
    for name, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            found.longest_function = max(found.longest_function, (length, f"{name}.{function.name}"))
            found.long_functions += length > 50
        imports[name] = set(_imported(tree, modules, lazy=False)) - {name}
        found.upward += [f"{name} -> {m}" for m in sorted(set(_imported(tree, modules))) if _rank(m) > _rank(name)]
    found.cycles = cycles(imports)
    return found


def _imported(tree: ast.Module, modules: dict[str, Path], lazy: bool = True) -> Iterator[str]:
    """Modules of the checkout that `tree` imports, also inside functions unless `lazy` is False."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in modules or node.module in modules:
                    yield submodule if submodule in modules else node.module


def _rank(module: str) -> int:
    return ORDER.index(module.partition(".")[0])


def cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components)."""
    reachable: dict[str, set[str]] = {}
    for start, direct in imports.items():
        seen, todo = set(), list(direct)
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += imports.get(module, ())
        reachable[start] = seen
    groups = {tuple(sorted(m for m in reachable[n] if n in reachable[m])) for n in imports if n in reachable[n]}
    return [list(group) for group in sorted(groups)]


def table(after: Structure, before: Structure | None) -> str:
    """One row for each count; the columns are "before" and "after", or only one checkout."""
    columns = [after] if before is None else [before, after]
    head = ["", "value"] if before is None else ["", "before", "after"]
    rows = [head, ["---", *["---:"] * len(columns)]]
    rows.append(["words of README.md", *(f"{s.readme_words:,}" for s in columns)])
    rows.append(["longest file, lines", *(_named(s.longest_file) for s in columns)])
    rows.append(["longest function, lines", *(_named(s.longest_function) for s in columns)])
    rows.append(["functions longer than 50 lines", *(str(s.long_functions) for s in columns)])
    rows.append(["circular imports", *("; ".join(", ".join(c) for c in s.cycles) or "none" for s in columns)])
    rows.append(["upward imports", *("; ".join(s.upward) or "none" for s in columns)])
    for name in sorted(set().union(*(s.sizes for s in columns)), key=_by_package):
        total = name in COUNTED
        rows.append([f"**{name}**" if total else name, *(_size(s.sizes.get(name)) for s in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _by_package(name: str) -> tuple[int, str]:
    return COUNTED.index(name.partition("/")[0]), name


def _named(longest: tuple[int, str]) -> str:
    return f"{longest[0]} ({longest[1]})"


def _size(size: tuple[int, int] | None) -> str:
    return "–" if size is None else f"{size[0]} files, {size[1]:,} lines"


def main() -> None:
    """Print the table, and write it with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[1], help="default: this one")
    parser.add_argument("--against", type=Path, metavar="OTHER_CHECKOUT", help="the checkout before the change")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.name}")
    args = parser.parse_args()
    for root in filter(None, (args.checkout, args.against)):
        if not (root / "README.md").is_file():
            parser.error(f"a checkout must contain README.md, {root} does not")
    text = table(measure(args.checkout), measure(args.against) if args.against else None)
    print(text)
    if args.write:
        command = "python -m benchmarks.structure --against OTHER_CHECKOUT --write"
        note = f"`{command}`: Python files by package (bold) and room."
        RESULT.write_text(f"# Structure of the repository\n\n{note}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
