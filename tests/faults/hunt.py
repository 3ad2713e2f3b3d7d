"""Making shards under SIGKILL at random moments, life after life, until one life gets to the end."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

LONGEST = 0.2  # seconds of a life, beside the first 0.05


def hunted(work: Callable[[], object], folder: Path) -> list[Path]:
    """Fork `work` until a child finishes it; no life may lose a shard of `folder` that an earlier one finished.

    Returns the shards that were there after the last kill.
    """
    draw, kills, kept = random.Random(0), 0, []
    while True:
        child = os.fork()
        if not child:
            work()
            os._exit(0)
        end = time.monotonic() + 0.05 + LONGEST * draw.random()
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.001)
        if ended != (0, 0):
            assert ended[1] == 0
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        found = sorted(folder.rglob("*.safetensors"))
        assert set(kept) <= set(found) and kills < 100
        kept = found
    assert kills >= 2 and kept
    return kept
