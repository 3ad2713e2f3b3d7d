"""Rows of tensors in shards: safetensors files, each written atomically and identified by a hash of its source.

An interrupted computation loses at most one shard of each process. Any number of processes can write shards together.
A file that was damaged later fails its checksum and is computed again.
"""

import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from teachers.support.checksums import Damaged, load_tensors, read_metadata, save_tensors
from teachers.support.files import atomic_write

SHARD = 256  # rows of a file
RESIDENT = 2**28  # bytes up to which a whole table is kept on the device


def write(file: Path, key: str, rows: Mapping[str, Tensor]) -> None:
    """Write a shard atomically.

    Args:
        file: The file.
        key: The hash that identifies the source of the rows.
        rows: Tensors by name, with equal first dimensions.

    Raises:
        ValueError: If the file cannot be written, such as on a full disk.
    """
    tensors = {name: value.cpu().contiguous() for name, value in rows.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, concurrent=True) as temporary:
            save_tensors(temporary, tensors, {"key": key})
    except (OSError, SafetensorError) as error:  # safetensors raises its own type on a full disk
        if not is_valid(file, key):  # another run may have written the same shard at the same time
            raise ValueError(f"{file.parent} cannot be written ({' '.join(str(error).split())[:200]})") from error
    for old in file.parent.glob(f".{file.name}.*.tmp"):  # of interrupted runs
        old.unlink(missing_ok=True)


def read(file: Path, key: str, rows: int = 0) -> dict[str, Tensor] | None:
    """The tensors of a shard; None unless it exists, has the key and at least `rows` rows, and its checksums match."""
    try:
        if read_metadata(file).get("key") != key:
            return None
        tensors, _ = load_tensors(file)
    except (OSError, Damaged):
        return None
    return tensors if all(len(value) >= rows for value in tensors.values()) else None


def is_valid(file: Path, key: str, rows: int = 0) -> bool:
    """Whether `read` finds the shard."""
    return read(file, key, rows) is not None


def cached(file: Path, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the shard `file` if it is valid; otherwise they are computed, and stored if that is possible."""
    if (found := read(file, key)) is not None:
        return found
    tensors = compute()
    try:
        write(file, key, tensors)
    except ValueError as error:
        warnings.warn(f"{error}; the next start computes {file.name} again", stacklevel=2)
    return tensors


def compact(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in the half precision `dtype` that it was computed in if the conversion is exact, else `value`."""
    if not value.is_floating_point() or dtype == torch.float32:
        return value
    half = value.to(dtype)
    return half if torch.equal(half.to(value.dtype), value) else value


class Table:
    """Rows of several tensors, in the order of their shards.

    A small table is kept on the device. A large one stays memory-mapped, and rows are read when they are requested.

    Args:
        shards: Tensors by name for each shard, with equal first dimensions.
        device: The device of the results.
        count: Number of rows that are used; by default all.
    """

    def __init__(self, shards: Sequence[Mapping[str, Tensor]], device: torch.device, count: int | None = None) -> None:
        ends = list(accumulate(len(next(iter(shard.values()), ())) for shard in shards))
        self.device, self.shards = device, shards
        self.starts = [0, *ends[:-1]]
        self.count = (ends[-1] if ends else 0) if count is None else count
        size = sum(value.nbytes for shard in shards for value in shard.values())
        self._resident: dict[str, Tensor] | None = None
        if size <= RESIDENT:
            parts = {name: [shard[name] for shard in shards] for name in (shards[0] if shards else {})}
            self._resident = {name: _to_float(torch.cat(part).to(device)) for name, part in parts.items()}
            self.shards = ()

    def __len__(self) -> int:
        return self.count

    @property
    def resident(self) -> bool:
        """Whether the whole table is on the device, so that `gather` reads no files."""
        return self._resident is not None

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """The rows with the given indices.

        Args:
            rows: Indices (N,) on the CPU.

        Returns:
            Tensors (N, ...) on the device, by name: float32 or integers.
        """
        if self._resident is not None:
            indices = send(rows, self.device)
            return {name: value[indices] for name, value in self._resident.items()}
        places = [(bisect_right(self.starts, row) - 1, row) for row in rows.tolist()]
        return {
            name: _to_float(
                send(torch.stack([self.shards[at][name][row - self.starts[at]] for at, row in places]), self.device)
            )
            for name in self.shards[0]
        }


def load(files: Sequence[Path], device: torch.device, count: int | None = None) -> Table:
    """The table of `files`, in their order; see `Table` for the arguments."""
    return Table([load_file(file) for file in files], device, count)


def send(value: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device`. For a GPU it uses pinned memory, so that the host does not wait for the copy."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


def _to_float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
