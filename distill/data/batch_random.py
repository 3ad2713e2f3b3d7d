"""Random numbers as a pure function of (seed, step, turn): the reason resuming is exact and processes do not matter.

Each row of the global batch has numbers of its own, and each micro-batch on each process makes its own rows. So the
same recipe gives the same numbers on one process or eight, in one micro-batch or four hundred, resumed or not.
"""

import hashlib
import threading

import numpy as np
import torch
from torch import Tensor

from distill.data.shards import send

BLOCK = 16  # rows that are made together
NORMALS = np.random.Generator(np.random.Philox(key=0))  # one for all, since making one costs more than a block
FRESH = NORMALS.bit_generator.state  # to be set, with a key and a counter, before each use
LOCK = threading.Lock()


class BatchRandom:
    """The draws of rows [first, last) of a global batch of `total`, for one key."""

    def __init__(self, key: tuple[object, ...], first: int, last: int, total: int, device: torch.device) -> None:
        self._key = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "big")
        self.generator = torch.Generator().manual_seed(self._key % 2**63)
        self._rows = slice(first, last)
        self._total = total
        self._calls = 0  # of `normal`
        self.device = device

    def __len__(self) -> int:
        return self._rows.stop - self._rows.start

    def normal(self, *shape: int) -> Tensor:
        """Standard normal (rows, *shape), float32.

        Philox is a function of key and counter (Salmon et al. 2011): here of the key, the call and the block of rows.
        """
        first, last = self._rows.start // BLOCK, -(-self._rows.stop // BLOCK)
        whole = np.empty(((last - first) * BLOCK, *shape), dtype=np.float32)
        with LOCK:
            FRESH["state"]["key"][:] = self._key & (2**64 - 1), self._key >> 64
            for number in range(first, last):
                FRESH["state"]["counter"][2:] = self._calls, number
                NORMALS.bit_generator.state = FRESH
                into = whole[(number - first) * BLOCK : (number - first + 1) * BLOCK]
                NORMALS.standard_normal(dtype=np.float32, out=into)
        self._calls += 1
        rows = torch.from_numpy(whole)[self._rows.start - first * BLOCK : self._rows.stop - first * BLOCK]
        return send(rows, self.device)

    def uniform(self) -> Tensor:
        """Stratified uniform on [0, 1), (rows,): one per equal slice of the interval, in random order."""
        jitter = torch.rand(self._total, generator=self.generator)
        order = torch.randperm(self._total, generator=self.generator)
        return send(((order + jitter) / self._total)[self._rows], self.device)

    def rows(self, count: int, on: torch.device | None = None) -> Tensor:
        """Row numbers in [0, count) with replacement, (rows,), on the device `on` (default: that of the draws)."""
        rows = torch.randint(count, (self._total,), generator=self.generator)[self._rows]
        return send(rows, self.device) if on is None else rows.to(on)

    def pick(self, count: int) -> int:
        """A number in [0, count), one for the whole global batch."""
        return int(torch.randint(count, (1,), generator=self.generator)) if count > 1 else 0
