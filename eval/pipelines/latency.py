"""Measuring time and memory so that the figures can be repeated: warm-up first, device synchronised, medians."""

import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from eval.pipelines.generate import network


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


def parts(pipe: Any, call: Callable[[], object], device: torch.device, repeats: int = 3) -> dict[str, float | None]:
    """Milliseconds that one `call()` spends in the pipeline's network and in its decoder: medians of `repeats`.

    The rest is text encoding, the scheduler and Python. `decoder_ms` is None where the pipeline has no decoder.
    """
    spent: dict[str, list[float]] = {"denoiser_ms": [], "decoder_ms": []}
    decoder = pipe.components.get("vae")
    for _ in range(repeats):
        with (
            _stopwatch(network(pipe), "forward", device) as denoising,
            _stopwatch(decoder, "decode", device) as decoding,
        ):
            call()
        spent["denoiser_ms"].append(sum(denoising) * 1000)
        spent["decoder_ms"].append(sum(decoding) * 1000)
    return {k: statistics.median(v) if k == "denoiser_ms" or decoder is not None else None for k, v in spent.items()}


@contextmanager
def _stopwatch(module: Any, method: str, device: torch.device) -> Iterator[list[float]]:
    """The seconds of each call of `module.method` inside the block; nothing where there is no module."""
    taken: list[float] = []
    if module is None:
        yield taken
        return
    original = getattr(module, method)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        value, seconds = timed(lambda: original(*args, **kwargs), device)
        taken.append(seconds)
        return value

    before = {k: v for k, v in vars(module).items() if k == method}  # where something else has put its own already
    vars(module)[method] = watched
    try:
        yield taken
    finally:
        del vars(module)[method]
        vars(module).update(before)


def throughput(
    prepare: Callable[[int], Callable[[], object]], largest: int, device: torch.device
) -> list[dict[str, float]]:
    """Images a second at batches of 1, 4, 16, ... and `largest`; `prepare(n)` gives the call for a batch of n."""
    sizes = [4**i for i in range(10) if 4**i < largest] + [largest]
    out = []
    for size in sizes:
        call = prepare(size)
        if size > 1:  # single images have been timed before
            timed(call, device)
        out.append({"batch_size": size, "images_per_second": size / timed(call, device)[1]})
    return out


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
