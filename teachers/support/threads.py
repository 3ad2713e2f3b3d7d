"""The number of threads that a command computes with on a CPU, chosen by the load of the machine before torch starts.

OpenMP's threads wait for each other after every operation. If another process uses one of two cores, training with two
threads is not half as fast but more than ten times slower, because each operation waits until the scheduler runs both.
"""

import math
import os
import sys
from pathlib import Path

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "WORLD_SIZE")  # set by the user or by a launcher
SECONDS = 0.5  # of one measurement of the load
MEASUREMENTS = 3  # the smallest load counts, so that a short burst does not
SPARE = 0.25  # cores that others may use without effect
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time in a period of so many


def limit_threads() -> None:
    """Set OMP_NUM_THREADS to the number of free cores and print it, if other processes or a quota use some.

    It must be called before torch is imported. It does nothing if one of VARIABLES is set, or where the load is
    unknown.
    """
    if "torch" in sys.modules or any(name in os.environ for name in VARIABLES):
        return
    import psutil

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = _allowed_cores()
    free = 0.0
    for _ in range(MEASUREMENTS):
        loads = psutil.cpu_percent(SECONDS, percpu=True)
        free = max(free, sum(1 - loads[core] / 100 for core in allowed if core < len(loads)))
        if threads_for(cores, free) == cores:
            break
    free = min(free, _quota())
    threads = threads_for(cores, free)
    if threads < cores:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        print(
            f"{free:.1f} of {cores} CPU cores are free: computing with {threads} "
            f"{'thread' if threads == 1 else 'threads'} (set OMP_NUM_THREADS to change it)",
            file=sys.stderr,
        )


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
        quota, period = QUOTA.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
