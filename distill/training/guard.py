"""Protection of long runs: signals, non-finite gradients, and processes that stop responding."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

SAME_REQUEST = 3.0  # seconds; a terminal and a launcher both send a signal when the user presses Ctrl-C
HEARTBEAT = 3.0  # seconds between two heartbeats of a process
TIMEOUT = 30.0  # seconds without a heartbeat after which a process counts as not responding


class Stop:
    """Ends the training loop after the current step on SIGINT or SIGTERM; a second signal acts immediately.

    Without calls of `agreed` it only delays a first signal, such as until an export is on disk. Use it as a context
    manager, which restores the previous handlers, or call `restore`.

    With several processes, a signal to one of them stops all of them after the same step. The processes exchange their
    state by an asynchronous reduction that starts after one step and is read after the next, so no step is slowed.

    Args:
        group: A process group for CPU tensors; None for one process.
        message: What is printed at the first signal.
    """

    def __init__(self, group: Any = None, message: str = "") -> None:
        self._message = message
        self._requested_at: float | None = None
        self._group = group
        self._flag = torch.zeros(1)
        self._pending: Any = None
        self._previous_handlers: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous_handlers[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread (a notebook's worker): leave signal handling unchanged
                return

    def _handle(self, number: int, frame: object) -> None:
        if self._requested_at is None:
            self._requested_at = time.monotonic()
            if self._message:
                os.write(2, f"\n{self._message}\n".encode())  # print may be interrupted inside itself
        elif time.monotonic() - self._requested_at > SAME_REQUEST:
            self.restore()
            signal.raise_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def agreed(self) -> bool:
        """Whether to stop now. Every process calls this once after each step; all receive the same answer."""
        if self._group is None:
            return self._requested_at is not None
        answer = False
        if self._pending is not None:
            self._pending.wait()
            answer = bool(self._flag.item())
        self._flag = torch.tensor([float(self._requested_at is not None)])
        self._pending = None if answer else dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )  # fmt: skip
        return answer

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}


def nonfinite_tensor(state: Mapping[str, Any]) -> str | None:
    """The name of a tensor in a state that is NaN or infinite somewhere; None if there is none."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            return name
    return None


class NonFiniteGuard:
    """Skips optimizer steps with non-finite gradients, counts them and reports them at the next log.

    `check` passes the result to the fused optimizer as `found_inf`, as PyTorch's gradient scaler does, so the host does
    not wait for the device. `read` fetches all results since its last call at once. Non-finite gradients are never
    applied; only the log message is delayed.

    Args:
        seed: The run's seed, for the log message.
        limit: Consecutive skipped steps of one phase after which `read` raises an error.
    """

    def __init__(self, seed: int, limit: int) -> None:
        self.seed, self.limit = seed, limit
        self._pending: list[tuple[str, int, int, Tensor, Tensor]] = []  # phase, index, step, gradient norm, loss
        self._consecutive: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()

    def check(self, optimizer: Any, phase: str, index: int, step: int, norm: Tensor, loss: Tensor) -> None:
        """Make `optimizer` skip its next step if the gradient norm is not finite.

        Args:
            optimizer: The optimizer of `phase`.
            phase: The name of the phase.
            index: The position of the phase in the step; part of the key of the batch's random numbers.
            step: The training step.
            norm: Norm of the gradient, a scalar on the device.
            loss: The loss, a scalar on the device.
        """
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        self._pending.append((phase, index, step, norm, loss.detach()))

    def read(self, report: Callable[[str], object], group: Any = None) -> None:
        """Fetch the results since the last call. Every process calls it.

        Args:
            report: Receives a message for each skipped step, with the key of its batch's random numbers.
            group: A process group for CPU tensors; None for one process.

        Raises:
            ValueError: After `limit` consecutive skipped steps, with the likely reason.
        """
        if not self._pending:
            return
        values = torch.stack([torch.stack([norm, loss.float()]) for *_, norm, loss in self._pending])
        nonfinite = (~torch.isfinite(values)).float().cpu()
        if group is not None:
            dist.all_reduce(nonfinite, dist.ReduceOp.MAX, group=group)
        for (phase, index, step, *_), (skipped, bad_loss) in zip(self._pending, nonfinite.tolist(), strict=True):
            self._consecutive[phase] = self._consecutive[phase] + 1 if skipped else 0
            if not skipped:
                continue
            self._skipped[phase] += 1
            reason = "the loss is not finite" if bad_loss else "the loss is finite, but its gradient is not"
            key = f"BatchRandom(({self.seed}, {step}, {index}), ...)"
            report(f"step {step}, phase {phase}: skipped, {reason} (random numbers of the batch: {key})")
            if self._consecutive[phase] >= self.limit:
                check_data = ", or check the data and the teacher" if bad_loss else ""
                raise ValueError(
                    f"gradients of phase {phase} were not finite in {self.limit} consecutive steps, up to step {step} "
                    f"({reason}); none of them changed the weights. Lower optimizers.{phase}.lr{check_data}, and run "
                    "again to continue from the last checkpoint"
                )
        self._pending.clear()

    def take_counts(self) -> dict[str, float]:
        """The number of skipped steps by phase since the last call, with the keys of the log."""
        counts, self._skipped = self._skipped, Counter()
        return {f"{phase}/skipped": float(count) for phase, count in counts.items()}


class Watchdog(threading.Thread):
    """Ends this process if another process of the run stops responding without exiting.

    torchrun's agent, which accelerate's launcher also uses, stops the run within seconds if a process of its machine
    exits or is killed. It does not notice a process that exists but does not run (suspended, or blocked in a system
    call), nor the loss of another machine; the remaining processes would then wait in a collective operation until its
    timeout. This thread covers these cases: every process increments a counter in the run's store and reads the
    counters of the others. `tests/faults/test_watchdog.py` shows both.

    The store is part of the first process, or of its launcher. If that does not respond, calls of the store never
    return, so a second thread makes them, and this thread only compares times.

    Args:
        rank: This process.
        world_size: Number of processes.
        heartbeat: Seconds between two increments.
        timeout: Seconds without an increment after which a process counts as not responding.
    """

    runs = 0  # number of runs in this process; each run has its own keys in the store

    def __init__(self, rank: int, world_size: int, heartbeat: float = HEARTBEAT, timeout: float = TIMEOUT) -> None:
        super().__init__(daemon=True, name="watchdog")
        self.rank, self.heartbeat, self.timeout = rank, heartbeat, timeout
        self._finished = threading.Event()
        self._store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=timeout),
        )
        self._keys = [f"fewstep/{Watchdog.runs}/{other}" for other in range(world_size)]
        self._values = [""] * world_size  # the newest counters that were read
        Watchdog.runs += 1
        self._store.set(self._keys[rank], "0")

    def run(self) -> None:
        """Compare heartbeats until `stop` is called."""
        threading.Thread(target=self._exchange, daemon=True, name="heartbeat").start()
        previous = time.monotonic()
        last = [("", previous)] * len(self._keys)
        while not self._finished.wait(self.heartbeat):
            now = time.monotonic()
            if now - previous > self.heartbeat + self.timeout / 3:  # this process itself was suspended: start again
                last = [(value, now) for value, _ in last]
            previous = now
            last = [
                (value, now) if value != before else (before, since)
                for value, (before, since) in zip(self._values, last, strict=True)
            ]
            late = [
                other for other, (value, since) in enumerate(last) if value != "done" and now - since > self.timeout
            ]
            if late:
                self._exit(late)

    def _exchange(self) -> None:
        """Send and read counters. Blocks for ever if the store's machine or process does not respond."""
        count = 0
        while not self._finished.wait(self.heartbeat):
            count += 1
            try:
                self._store.set(self._keys[self.rank], str(count))
                self._values = [value.decode() for value in self._store.multi_get(self._keys)]
            except Exception:  # the store has ended: the counters that were read no longer change
                continue

    def _exit(self, late: list[int]) -> None:
        if self._finished.is_set():
            return
        what = f"process {late[0]} has"
        if self.rank in late:  # the own counter cannot be read either
            what = "process 0 (or the launcher on its machine, or the network to it) has"
        print(
            f"\nerror: {what} not responded for {self.timeout:.0f} seconds; process {self.rank} stops. "
            "Run the same command again to continue from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    def stop(self, finished: bool) -> None:
        """Stop the thread.

        Args:
            finished: Whether this process is done. Otherwise the others stop when its heartbeats are missing.
        """
        self._finished.set()
        if finished:
            done = threading.Thread(target=self._set_done, daemon=True)
            done.start()
            done.join(timeout=self.heartbeat)  # the store may not respond

    def _set_done(self) -> None:
        try:
            self._store.set(self._keys[self.rank], "done")
        except Exception:  # the process of the store has already exited
            return
