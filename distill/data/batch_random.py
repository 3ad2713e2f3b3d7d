"""Random numbers as a function of (seed, step, phase), so that resuming is exact.

Each row of the global batch has its own numbers, and each micro-batch of each process computes its own rows. The same
recipe therefore gets the same numbers for any number of processes and micro-batches, resumed or not.
"""

import hashlib
import math
import threading

import numpy as np
import torch
from torch import Tensor

from distill.data.shards import send

BLOCK = 16  # rows that are computed together, because each needs a new state
LARGE = 2**15  # values per row; larger rows are computed one at a time, so that no unused row is computed
GENERATOR = np.random.Generator(np.random.Philox(key=0))  # reused, because creating one takes longer than one block
INITIAL_STATE = GENERATOR.bit_generator.state  # receives a key and a counter before each use
LOCK = threading.Lock()


class BatchRandom:
    """The random numbers of one micro-batch: rows [first, last) of a global batch.

    Successive calls of one method return different numbers. All methods return the same rows whatever `first` and
    `last` are.

    Args:
        key: Any values with a stable `repr`, such as (seed, step, phase index).
        first: The first row.
        last: The row after the last one.
        total: Number of rows of the global batch.
        device: The device of the results.

    Attributes:
        generator: A CPU generator seeded with the key.
    """

    def __init__(self, key: tuple[object, ...], first: int, last: int, total: int, device: torch.device) -> None:
        self._key = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "big")
        self.generator = torch.Generator().manual_seed(self._key % 2**63)
        self._rows = slice(first, last)
        self._total = total
        self._normal_calls = 0
        self.device = device

    def __len__(self) -> int:
        return self._rows.stop - self._rows.start

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (rows, *shape), float32.

        They come from Philox, a function of a key and a counter (Salmon et al. 2011, "Parallel random numbers: as easy
        as 1, 2, 3"); the counter holds the number of the call and of the block of rows.
        """
        size = BLOCK if math.prod(shape) <= LARGE else 1
        first, last = self._rows.start // size, -(-self._rows.stop // size)
        blocks = np.empty(((last - first) * size, *shape), dtype=np.float32)
        with LOCK:
            INITIAL_STATE["state"]["key"][:] = self._key & (2**64 - 1), self._key >> 64
            for number in range(first, last):
                INITIAL_STATE["state"]["counter"][2:] = self._normal_calls, number
                GENERATOR.bit_generator.state = INITIAL_STATE
                block = blocks[(number - first) * size : (number - first + 1) * size]
                GENERATOR.standard_normal(dtype=np.float32, out=block)
        self._normal_calls += 1
        rows = torch.from_numpy(blocks)[self._rows.start - first * size : self._rows.stop - first * size]
        return send(rows, self.device)

    def uniform(self) -> Tensor:
        """Stratified uniform numbers (rows,) in [0, 1).

        The global batch has one number in each of `total` equal intervals, in random order.
        """
        jitter = torch.rand(self._total, generator=self.generator)
        order = torch.randperm(self._total, generator=self.generator)
        return send(((order + jitter) / self._total)[self._rows], self.device)

    def rows(self, count: int, device: torch.device | None = None) -> Tensor:
        """Random row indices (rows,) in [0, count), with replacement.

        Args:
            count: Number of rows to choose from.
            device: The device of the result; by default the device of this object.
        """
        rows = torch.randint(count, (self._total,), generator=self.generator)[self._rows]
        return send(rows, self.device) if device is None else rows.to(device)

    def pick(self, count: int) -> int:
        """A random integer in [0, count), the same for the whole global batch."""
        return int(torch.randint(count, (1,), generator=self.generator)) if count > 1 else 0
