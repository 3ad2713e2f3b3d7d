"""Runs a function under SIGKILL at random moments until one process finishes it."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm


def run_with_kills(work: Callable[[], object], folder: Path) -> list[Path]:
    """Fork `work` and kill the child, again and again, until a child finishes.

    Every other child is killed early, the others just after their first shard, so that on a machine of any speed some
    are killed with nothing done and some with a part of the work done. No kill may lose a finished shard.

    Args:
        work: Writes shards into `folder`.
        folder: The folder of the shards.

    Returns:
        The shards that existed after the last kill.
    """
    rng, kills, kept = random.Random(0), 0, []
    while True:
        child = os.fork()
        if not child:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            tqdm.set_lock(threading.RLock())  # the default lock is shared by processes, and a killed one may hold it
            work()
            os._exit(0)
        deadline = time.monotonic() + (0.05 * rng.random() if kills % 2 else 60)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            if len(list(folder.rglob("*.safetensors"))) > len(kept):
                break
            time.sleep(0.0005)
        else:
            assert kills % 2 or ended != (0, 0), "no shard in a minute"
        if ended != (0, 0):
            assert ended[1] == 0
            break
        time.sleep(0.005 * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        present = sorted(folder.rglob("*.safetensors"))
        assert set(kept) <= set(present) and kills < 200
        kept = present
    assert kills >= 2 and kept
    return kept
