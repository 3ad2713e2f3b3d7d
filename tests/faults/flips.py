"""Damages every kind of file that a figure or a weight comes from, and demands that this is found or has no effect.

    python -m tests.faults.flips [--flips 2000] [--only NAME ...]

Each kind of `tests.faults.flip_kinds` writes two valid entries. Then each trial damages the files of one entry and
reads it as the commands do: one-bit flips at random offsets, truncations, zero-filled pages of 4,096 bytes, missing
files, files exchanged with those of the other entry or with each other. The result must be the undamaged value
(harmless, or computed again), nothing (it is computed again, or an earlier entry is used), or an error that commands
print as one sentence. Prints a table, and exits with 1 if another value or another exception is found.
"""

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from tests.faults.flip_kinds import KINDS, Kind

PAGE = 4096
DAMAGES = ("flip", "truncation", "zero page", "missing", "exchanged")
Files = dict[str, bytes]


def changed(kind: Kind, files: Files, other: Files, rng: random.Random, flips: int) -> Iterator[tuple[str, Files]]:
    """All trials of one entry: the damage, and the new contents of the changed files.

    Args:
        kind: The kind of the entry.
        files: The entry's files by name.
        other: Those of the other entry.
        rng: Chooses files and offsets.
        flips: Number of one-bit flips; there are a tenth as many truncations, and as many zero-filled pages.
    """
    names = sorted(name for name in files if files[name])
    aims = [name for name in names if kind.aim in name]
    for _ in range(flips):
        name = rng.choice(aims)
        data = bytearray(files[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield "flip", {name: bytes(data)}
    for _ in range(max(1, flips // 10)):
        name = rng.choice(aims)
        yield "truncation", {name: files[name][: rng.randrange(len(files[name]))]}
        name = rng.choice(aims)
        start = rng.randrange(0, len(files[name]), PAGE)
        end = min(start + PAGE, len(files[name]))
        yield "zero page", {name: files[name][:start] + bytes(end - start) + files[name][end:]}
    for name in names:
        yield "missing", {name: b""}
        if other.get(name) and not (kind.chosen and len(names) == 1):
            yield "exchanged", {name: other[name]}
    if not kind.chosen:
        yield "exchanged", {name: other[name] for name in names if name in other}
    for one, two in combinations(names, 2):
        if Path(one).suffix == Path(two).suffix:
            yield "exchanged", {one: files[two], two: files[one]}


def snapshot(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def restore(folder: Path, files: Files) -> None:
    """Give `folder` the files of a snapshot again."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        if str(file.relative_to(folder)) not in files:
            file.unlink()
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_bytes() != data:
            file.write_bytes(data)


def same(one: Any, two: Any) -> bool:
    """Whether two values are equal, tensors bit for bit with their dtype."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and bool(one == two)


def verdict(kind: Kind, folder: Path, good: Any) -> str:
    """What reading the damaged entry gives: "found", "same", or what is wrong."""
    try:
        value = kind.read(folder, 0)
    except (ValueError, FileNotFoundError):
        return "found"
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {error}"[:200]
    if value is None:
        return "found"
    return "same" if same(value, good) else "WRONG: another value"


def trial(kind: Kind, flips: int, seed: int = 0) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Damage the files of one kind.

    Returns:
        The number of trials by damage and verdict, and a description of each wrong one.
    """
    rng, counts, wrong = random.Random(f"{kind.name}{seed}"), Counter[tuple[str, str]](), []
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged files are reported by warnings
        folder, other = Path(temporary) / "0", Path(temporary) / "1"
        for number, entry in enumerate((folder, other)):
            entry.mkdir()
            kind.write(entry, number)
        good, files = kind.read(folder, 0), snapshot(folder)
        assert good is not None and same(good, kind.read(folder, 0)), kind.name
        damaged = {name: data for name, data in files.items() if kind.damages(name)}
        for damage, contents in changed(kind, damaged, snapshot(other), rng, flips):
            for name, data in contents.items():
                (folder / name).write_bytes(data)
                if damage == "missing":
                    (folder / name).unlink()
            found = verdict(kind, folder, good)
            counts[damage, found[:5].strip()] += 1
            if found not in ("found", "same"):
                wrong.append(f"{kind.name}, {damage} of {', '.join(contents)}: {found}")
            restore(folder, files)
    return counts, wrong


def main() -> int:
    """Damage the files of all kinds, or of those chosen with --only, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000, help="one-bit flips of each kind (default: 2000)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these kinds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    failures: list[str] = []
    print(f"{'kind':28}" + "".join(f"{damage + ' (same)':>20}" for damage in DAMAGES) + f"{'wrong':>7}{'s':>6}")
    for kind in KINDS:
        if args.only and kind.name not in args.only:
            continue
        start = time.monotonic()
        counts, wrong = trial(kind, args.flips)
        cells = [f"{counts[d, 'found'] + counts[d, 'same']} ({counts[d, 'same']})" for d in DAMAGES]
        print(
            f"{kind.name:28}" + "".join(f"{c:>20}" for c in cells) + f"{len(wrong):>7}{time.monotonic() - start:>6.0f}"
        )
        sys.stdout.flush()
        failures += wrong
    for line in failures[:40]:
        print(line)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
