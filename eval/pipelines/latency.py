"""Repeatable measurements of time and memory: warm-up calls, device synchronization, medians."""

import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import psutil
import torch

from eval.config.options import Timing
from eval.pipelines.networks import network
from teachers.loading.source import AUTOENCODERS

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work; kernels run asynchronously on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result of `function()`, and the seconds that it took."""
    synchronize(device)
    start = time.perf_counter()
    value = function()
    synchronize(device)
    return value, time.perf_counter() - start


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: median, 5th and 95th percentile, and the number of timed calls."""

    median: float
    p5: float
    p95: float
    repeats: int


def latency(function: Callable[[], object], device: torch.device, timing: Timing | None = None) -> Latency:
    """Time calls of a function.

    Two calls are warm-up and are not counted; only one if the first takes a third of the allowed time.

    Args:
        function: The function.
        device: The device that it uses.
        timing: How many calls are timed.
    """
    timing = timing or Timing()
    began = time.perf_counter()
    _, first = timed(function, device)
    if first < timing.seconds / 3:
        timed(function, device)
    times: list[float] = []
    while len(times) < timing.min_repeats or (
        len(times) < timing.repeats and time.perf_counter() - began < timing.seconds
    ):
        times.append(timed(function, device)[1] * 1000)
    p5, median, p95 = np.percentile(times, [5, 50, 95]).tolist()
    return Latency(median, p5, p95, len(times))


def parts(pipe: Any, call: Callable[[], object], device: torch.device, repeats: int = 3) -> dict[str, float | None]:
    """The time of a call that is spent in the pipeline's network and in its decoder.

    The remaining time is text encoding, the scheduler and Python.

    Args:
        pipe: The pipeline.
        call: Calls the pipeline.
        device: The pipeline's device.
        repeats: Number of calls.

    Returns:
        Medians in milliseconds as "denoiser_ms" and "decoder_ms"; the latter is None for a pipeline without a decoder.
    """
    spent: dict[str, list[float]] = {"denoiser_ms": [], "decoder_ms": []}
    decoder = next((pipe.components[name] for name in AUTOENCODERS if name in pipe.components), None)
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
    """The seconds of each call of `module.method` inside the block; empty if `module` is None."""
    seconds_per_call: list[float] = []
    if module is None:
        yield seconds_per_call
        return
    original = getattr(module, method)

    @functools.wraps(original)
    def timed_method(*args: Any, **kwargs: Any) -> Any:
        value, seconds = timed(lambda: original(*args, **kwargs), device)
        seconds_per_call.append(seconds)
        return value

    before = {k: v for k, v in vars(module).items() if k == method}  # an override set by other code
    vars(module)[method] = timed_method
    try:
        yield seconds_per_call
    finally:
        del vars(module)[method]
        vars(module).update(before)


def throughput(
    prepare: Callable[[int], Callable[[], object]], largest: int, device: torch.device
) -> list[dict[str, float]]:
    """Images per second at several batch sizes: 1, 4, 16, ... and `largest`.

    Args:
        prepare: Returns the call for a batch of a given size.
        largest: The largest batch size.
        device: The device that the calls use.
    """
    sizes = [4**i for i in range(10) if 4**i < largest] + [largest]
    out = []
    for size in sizes:
        call = prepare(size)
        if size > 1:  # single images were timed before, so size 1 needs no warm-up
            timed(call, device)
        out.append({"batch_size": size, "images_per_second": size / timed(call, device)[1]})
    return out


class PeakMemory:
    """Measures the peak memory of a `with` block.

    On CUDA it is the memory that torch allocated (`max_memory_allocated`). Elsewhere it is the resident memory of the
    whole process, Python and torch included, sampled every 10 ms by a thread.

    Attributes:
        megabytes: The peak in MB of 2^20 bytes, after the block.
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
