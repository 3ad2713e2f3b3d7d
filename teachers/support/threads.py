"""The number of threads that a command computes with on a CPU, chosen by the load of the machine.

OpenMP's threads wait for each other after every operation. If another process uses one of two cores, training with two
threads is not half as fast but more than ten times slower, because each operation waits until the scheduler runs both.
"""

import math
import os
import sys
import time
from pathlib import Path

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "WORLD_SIZE")  # set by the user or by a launcher
SECONDS = 0.5  # of one measurement of the load
MEASUREMENTS = 3  # the smallest load counts, so that a short burst does not
SPARE = 0.25  # cores that others may use without effect
INTERVAL = 5.0  # seconds between two measurements while a command computes
UNKNOWN = (OSError, RuntimeError)  # what psutil raises where a system does not show its load
CALM = 6  # consecutive measurements with more free cores after which the number of threads rises again
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time in a period of so many


class Load:
    """The cores that are free for this process.

    Attributes:
        cores: The number of physical cores.
    """

    def __init__(self) -> None:
        import psutil

        self._psutil, self._process = psutil, psutil.Process()
        self._allowed = _allowed_cores()
        self.cores: int = psutil.cpu_count(logical=False) or os.cpu_count() or 1
        self._since, self._own = time.monotonic(), self._own_seconds()
        self._calm = 0
        psutil.cpu_percent(percpu=True)  # begins the first interval

    def free_at_start(self) -> float:
        """The largest number of free cores in a few short measurements, before this process computes."""
        free = 0.0
        for _ in range(MEASUREMENTS):
            free = max(free, self._not_busy(self._psutil.cpu_percent(SECONDS, percpu=True)))
            if threads_for(self.cores, free) == self.cores:
                break
        return min(free, _quota())

    def threads_now(self, current: int) -> int:
        """The number of threads from now on, of a process that has `current` threads."""
        seconds, own = time.monotonic() - self._since, self._own_seconds()
        if seconds < INTERVAL:
            return current
        free = self._not_busy(self._psutil.cpu_percent(percpu=True)) + (own - self._own) / seconds
        self._since, self._own = time.monotonic(), own
        threads = threads_for(self.cores, min(free, _quota()))
        self._calm = self._calm + 1 if threads > current else 0
        return threads if threads < current or self._calm >= CALM else current

    def _not_busy(self, loads: list[float]) -> float:
        return sum(1 - loads[core] / 100 for core in self._allowed if core < len(loads))

    def _own_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


_chosen: list[Load] = []  # one, of a command that chooses the number itself


def limit_threads() -> None:
    """Set OMP_NUM_THREADS to the number of free cores and print it, if other processes or a quota use some.

    It must be called before torch is imported. It does nothing if one of VARIABLES is set, or where the load is
    unknown. Afterwards `adapt_threads` follows the load.
    """
    if "torch" in sys.modules or any(name in os.environ for name in VARIABLES):
        return
    try:
        load = Load()
        free = load.free_at_start()
    except UNKNOWN:
        return
    _chosen[:] = [load]
    threads = threads_for(load.cores, free)
    if threads < load.cores:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        print(_message(f"{free:.1f} of {load.cores} CPU cores are free", threads), file=sys.stderr)


def adapt_threads() -> None:
    """Compute with fewer threads while other processes use cores, and with more when they are free again.

    Long computations on a CPU call it again and again. It does nothing unless `limit_threads` has chosen.
    """
    if not _chosen:
        return
    import torch
    from tqdm import tqdm

    current = torch.get_num_threads()
    try:
        threads = _chosen[0].threads_now(current)
    except UNKNOWN:
        return
    if threads != current and not torch.cuda.is_available():
        torch.set_num_threads(threads)
        state = "other processes use CPU cores" if threads < current else "CPU cores are free again"
        tqdm.write(_message(state, threads), file=sys.stderr)


def _message(state: str, threads: int) -> str:
    return f"{state}: computing with {threads} thread{'s' * (threads > 1)} (set OMP_NUM_THREADS to choose)"


def threads_for(cores: int, free: float) -> int:
    """The number of threads for a number of cores of which `free` are not in use: at least 1, at most `cores`."""
    return max(1, min(cores, math.floor(free + SPARE)))


def _allowed_cores() -> list[int]:
    """The logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quota() -> float:
    """The processor time that a container's control group (version 2) allows, in cores; infinite without a limit."""
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
