"""Rows of tensors kept in shards: each file is written whole or not at all and known by a hash of what it came from.

So work that fills shards goes on after a kill with at most one shard lost, any number of processes share it, and what a
disk has damaged since is found (by its checksum) and made again.
"""

import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachers.support.files import atomic_write, sha256, tensor_bytes

SHARD = 256  # rows a file
RESIDENT = 2**28  # bytes of a table up to which all of it stays on the device


def digest(*parts: object) -> str:
    """A hash of plain values: what a shard was made from."""
    return sha256([repr(parts).encode("utf-8", "surrogatepass")])


def write(file: Path, key: str, rows: Mapping[str, Tensor]) -> None:
    """Keep `rows` (first dimensions equal) as `file`, under `key`. ValueError where there is no room for it."""
    tensors = {name: value.cpu().contiguous() for name, value in rows.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, concurrent=True) as temporary:
            save_file(tensors, temporary, metadata={"key": key, "checksum": _checksum(tensors)})
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own
        if not is_valid(file, key):  # else another run has made the same shard at the same time
            raise ValueError(f"{file.parent} cannot be written ({' '.join(str(error).split())[:200]})") from error
    for left in file.parent.glob(f".{file.name}.*.tmp"):  # of killed lives
        left.unlink(missing_ok=True)


def is_valid(file: Path, key: str, rows: int = 0) -> bool:
    """Whether `file` is there, was made under `key`, holds `rows` rows at least, and is what was written."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as stored:
            known = stored.metadata() or {}
        if known.get("key") != key:
            return False
        tensors = load_file(file)
        return known.get("checksum") == _checksum(tensors) and all(len(value) >= rows for value in tensors.values())
    except (SafetensorError, OSError):
        return False


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensor_bytes(tensors[name]), zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def halved(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in the half precision that it was computed in, where that loses nothing; else `value`."""
    if not value.is_floating_point() or dtype == torch.float32:
        return value
    half = value.to(dtype)
    return half if torch.equal(half.to(value.dtype), value) else value


class Table:
    """Rows of several tensors, in order over all shards. A small table lies on the device; of a large one, mapped into
    memory, a row costs what it costs to read that row."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]], device: torch.device, count: int | None = None) -> None:
        """`shards`: tensors by name, first dimensions equal; `count` rows of them count (default: all)."""
        ends = list(accumulate(len(next(iter(shard.values()), ())) for shard in shards))
        self.device, self.shards = device, shards
        self.starts = [0, *ends[:-1]]
        self.count = (ends[-1] if ends else 0) if count is None else count
        size = sum(value.nbytes for shard in shards for value in shard.values())
        self._whole: dict[str, Tensor] | None = None
        if size <= RESIDENT:
            parts = {name: [shard[name] for shard in shards] for name in (shards[0] if shards else {})}
            self._whole = {name: _plain(torch.cat(part).to(device)) for name, part in parts.items()}
            self.shards = ()

    def __len__(self) -> int:
        return self.count

    @property
    def resident(self) -> bool:
        """Whether all of it lies on the device, so that taking rows reads no file."""
        return self._whole is not None

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """The rows (N,), which lie on the CPU, as tensors (N, ...) on the device: float32 or whole numbers."""
        if self._whole is not None:
            chosen = send(rows, self.device)
            return {name: value[chosen] for name, value in self._whole.items()}
        places = [(bisect_right(self.starts, row) - 1, row) for row in rows.tolist()]
        return {
            name: _plain(
                send(torch.stack([self.shards[at][name][row - self.starts[at]] for at, row in places]), self.device)
            )
            for name in self.shards[0]
        }


def load(files: Sequence[Path], device: torch.device, count: int | None = None) -> Table:
    """The table that `files` hold, in their order."""
    return Table([load_file(file) for file in files], device, count)


def send(value: Tensor, device: torch.device) -> Tensor:
    """To the device; through pinned memory to a GPU, so that the host does not wait for what runs there."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


def _plain(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
