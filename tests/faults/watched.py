"""A process of a run of two that does nothing but wait, with a watchdog; for `tests.faults.test_watchdog`."""

import os
import sys
import time

import torch.distributed as dist

from distill.training.watchdog import Watchdog, watched


def run(case: str) -> None:
    """Meet the other process, print "started" and do what `case` says."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    watchdog = None if case == "agent" else Watchdog(rank, 2, heartbeat=0.2, timeout=1.0)
    dist.barrier()
    if watchdog:
        watchdog.start()
    os.write(1, b"started\n")  # one write: two processes share the pipe
    if watchdog and case == "finished":
        time.sleep(1.5 * rank)
        watchdog.stop(finished=True)
        time.sleep(1.5)
        return
    if watchdog and case == "failed" and rank == 1:
        watchdog.stop(finished=False)
    time.sleep(100)


def meet() -> None:
    """Meet the other process as `distill.train` does, and end."""
    with watched():
        dist.init_process_group("gloo")
        dist.barrier()
        sys.exit(0)


if __name__ == "__main__":
    run(sys.argv[1])
