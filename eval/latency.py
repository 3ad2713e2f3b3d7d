"""Measuring time and memory so that the figures can be repeated: warm-up first, device synchronised, medians."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue, without which a clock sees only how fast work was handed over."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(function: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """What `function()` returns, and how long it took in seconds."""
    synchronise(device)
    start = time.perf_counter()
    value = function()
    synchronise(device)
    return value, time.perf_counter() - start


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call, and how many calls the figures rest on."""

    median: float
    p5: float
    p95: float
    repeats: int


def latency(
    function: Callable[[], object], device: torch.device, repeats: int = 20, seconds: float = 6.0, least: int = 3
) -> Latency:
    """Time `function()` up to `repeats` times, stopping after `seconds` in all once `least` calls are in.

    Two calls warm up (one, where the first alone took a third of the time allowed) and are not counted.
    """
    began = time.perf_counter()
    _, first = timed(function, device)
    if first < seconds / 3:
        timed(function, device)
    times: list[float] = []
    while len(times) < least or (len(times) < repeats and time.perf_counter() - began < seconds):
        times.append(timed(function, device)[1] * 1000)
    p5, median, p95 = np.percentile(times, [5, 50, 95]).tolist()
    return Latency(median, p5, p95, len(times))


class PeakMemory:
    """The most memory in use inside a `with` block, in MB of 2^20 bytes, afterwards in `.megabytes`.

    On CUDA: what torch had allocated (`max_memory_allocated`). Elsewhere: the resident memory of the whole process,
    Python and torch included, looked at every 10 ms by a thread.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.megabytes = max(self.megabytes, process.memory_info().rss / 2**20)
            if self._done.wait(0.01):
                return

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            self._done.set()
            self._thread.join()
