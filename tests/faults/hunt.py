"""Making shards under SIGKILL at random moments, life after life, until one life gets to the end."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch


def hunted(work: Callable[[], object], folder: Path) -> list[Path]:
    """Fork `work` until a child finishes it; no life may lose a shard of `folder` that an earlier one finished.

    Every other life is ended early on, the others just after their first shard, so that on a machine of any speed some
    die with nothing done and some with a part of it. Returns the shards that were there after the last kill.
    """
    draw, kills, kept = random.Random(0), 0, []
    while True:
        child = os.fork()
        if not child:
            torch.set_num_threads(1)  # OpenMP does not outlive a fork
            work()
            os._exit(0)
        patience = time.monotonic() + (0.05 * draw.random() if kills % 2 else 60)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < patience:
            if len(list(folder.rglob("*.safetensors"))) > len(kept):
                break
            time.sleep(0.0005)
        else:
            assert kills % 2 or ended != (0, 0), "no shard in a minute"
        if ended != (0, 0):
            assert ended[1] == 0
            break
        time.sleep(0.005 * draw.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        found = sorted(folder.rglob("*.safetensors"))
        assert set(kept) <= set(found) and kills < 200
        kept = found
    assert kills >= 2 and kept
    return kept
