"""What stands between a long run and its accidents: signals, gradients that are not finite, processes that die."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SAME_REQUEST = 3.0  # seconds: a terminal's and a launcher's signal for the same wish arrive together
BEAT, SILENCE = 3.0, 30.0  # seconds between signs of life, and without one before a process counts as dead


class Stop:
    """SIGINT and SIGTERM ask the loop to save and leave after the step at hand; a second one does not wait.

    With several processes one that was asked asks all, through a reduction that nobody waits for: it is started after
    one step and read after the next, so that all leave after the same step and no step is slowed.
    """

    def __init__(self, group: Any = None) -> None:
        self._asked: float | None = None
        self._group = group
        self._flag = torch.zeros(1)
        self._pending: Any = None
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not in the main thread (a notebook's worker): the signal stays with its owner
                return

    def _ask(self, number: int, frame: object) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
        elif time.monotonic() - self._asked > SAME_REQUEST:
            self.restore()
            signal.raise_signal(number)

    def agreed(self) -> bool:
        """Whether to leave now; every process calls this once a step, and all get the same answer."""
        if self._group is None:
            return self._asked is not None
        answer = False
        if self._pending is not None:
            self._pending.wait()
            answer = bool(self._flag.item())
        self._flag = torch.tensor([float(self._asked is not None)])
        self._pending = None if answer else dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )  # fmt: skip
        return answer

    def restore(self) -> None:
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        for number, handler in self._before.items():
            signal.signal(number, handler)


class NonFiniteGuard:
    """Steps without a finite gradient: left out by the optimizer itself, counted, told at the next log.

    The host does not wait for the device: `check` hands the verdict to the fused optimizer as `found_inf`, as PyTorch's
    gradient scaler does, and `read` fetches all verdicts since the last time at once. So weights never take in such a
    gradient, and what comes late is only the word of it.
    """

    def __init__(self, seed: int, most: int) -> None:
        self.seed, self.most = seed, most
        self._pending: list[tuple[str, int, int, Tensor, Tensor]] = []  # and the gradient's norm and the loss
        self._row: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def check(self, optimizer: Any, phase: str, number: int, step: int, norm: Tensor, loss: Tensor) -> None:
        """Have `optimizer` leave this step out where the gradient's norm is not finite."""
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        self._pending.append((phase, number, step, norm, loss.detach()))

    def read(self, tell: Any, group: Any = None) -> None:
        """Fetch the verdicts since the last time; `tell` prints each skipped step with its batch's seeds.

        Every process calls it. ValueError with a diagnosis where `most` in a row were skipped.
        """
        if not self._pending:
            return
        figures = torch.stack([torch.stack([norm, loss.float()]) for *_, norm, loss in self._pending])
        verdicts = (~torch.isfinite(figures)).float().cpu()
        if group is not None:
            dist.all_reduce(verdicts, dist.ReduceOp.MAX, group=group)
        for (phase, number, step, *_), (bad, loss) in zip(self._pending, verdicts.tolist(), strict=True):
            self._row[phase] = self._row[phase] + 1 if bad else 0
            if not bad:
                continue
            self._counts[phase] += 1
            what = "the loss is not finite" if loss else "the loss is finite, its gradient is not"
            tell(f"step {step}, turn {phase}: skipped, {what} (its batch: Draws(({self.seed}, {step}, {number}), ...))")
            if self._row[phase] >= self.most:
                raise ValueError(
                    f"{self.most} steps in a row had gradients that are not finite (up to step {step}, turn {phase}: "
                    f"{what}); none of them changed a weight. Lower optimizers.{phase}.lr"
                    f"{', or check the data and the teacher' if loss else ''}, "
                    "and run again from the last checkpoint"
                )
        self._pending.clear()

    def take(self) -> dict[str, float]:
        """Steps skipped since the last call, by turn, for the log."""
        counts, self._counts = self._counts, Counter()
        return {f"{phase}/skipped": float(count) for phase, count in counts.items()}


class Watchdog(threading.Thread):
    """Ends this process when another of the run has died, however it died and whatever this one is waiting for.

    Each process leaves signs of life in the run's store (counters: no clock is compared) and reads the others'.
    """

    rounds = 0  # runs of this process so far: each has its own keys

    def __init__(self, rank: int, world: int, beat: float = BEAT, silence: float = SILENCE) -> None:
        super().__init__(daemon=True, name="watchdog")
        self.rank, self.world, self.beat, self.silence = rank, world, beat, silence
        self._over = threading.Event()
        self._store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=silence),
        )
        self._keys = [f"fewstep/{Watchdog.rounds}/{other}" for other in range(world)]
        Watchdog.rounds += 1
        self._store.set(self._keys[rank], "0")

    def run(self) -> None:
        seen = [("", time.monotonic())] * self.world
        count = 0
        while not self._over.wait(self.beat):
            count += 1
            try:
                self._store.set(self._keys[self.rank], str(count))
                words = [value.decode() for value in self._store.multi_get(self._keys)]
            except Exception:  # the store went with the process that kept it
                words = None
            if words is None:
                self._die("the run's first process is gone")
                continue
            now = time.monotonic()
            for other, word in enumerate(words):
                if word.startswith("failed"):
                    self._die(f"process {other} {word}")
                if word != seen[other][0]:
                    seen[other] = (word, now)
                elif word != "done" and now - seen[other][1] > self.silence:
                    self._die(f"process {other} has given no sign of life for {self.silence:.0f} seconds")

    def _die(self, why: str) -> None:
        if self._over.wait(self.beat):  # the run has ended meanwhile, as it should
            return
        print(f"error: process {self.rank} stops: {why}; the last checkpoint is whole", file=sys.stderr, flush=True)
        os._exit(1)

    def end(self, failure: BaseException | None) -> None:
        """The last word of this process."""
        self._over.set()
        try:
            self._store.set(self._keys[self.rank], f"failed: {failure}" if failure else "done")
        except Exception:
            return
