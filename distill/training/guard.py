"""Protection of long runs: signals and non-finite gradients."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

SAME_REQUEST = 3.0  # seconds; a terminal and a launcher both send a signal when the user presses Ctrl-C


class Stop:
    """Ends the training loop after the current step on SIGINT or SIGTERM; a second signal acts immediately.

    Without calls of `agreed` it only delays a first signal, such as until an export is on disk. Use it as a context
    manager, which restores the previous handlers, or call `restore`.

    With several processes, a signal to one of them stops all of them after the same step. The processes exchange their
    state by an asynchronous reduction that starts after one step and is read after the next, so no step is slowed.

    Args:
        group: A process group for CPU tensors; None for one process.
        message: What is printed at the first signal.
        requested: A signal that has arrived already; 0 for none.

    Attributes:
        number: The signal, 0 before the first one. Every process has the same one once `agreed` has returned True.
    """

    def __init__(self, group: Any = None, message: str = "", requested: int = 0) -> None:
        self.number = requested
        self._message = message
        self._requested_at: float | None = time.monotonic() if requested else None
        self._group = group
        self._flag = torch.zeros(1)
        self._pending: Any = None
        self._previous_handlers: dict[int, Any] = {}
        if requested:
            self._show()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous_handlers[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread (a notebook's worker): leave signal handling unchanged
                return

    def _handle(self, number: int, frame: object) -> None:
        if self._requested_at is None:
            self._requested_at, self.number = time.monotonic(), number
            self._show()
        elif time.monotonic() - self._requested_at > SAME_REQUEST:
            self.restore()
            signal.raise_signal(number)

    def _show(self) -> None:
        if self._message:
            os.write(2, f"\n{self._message}\n".encode())  # print may be interrupted inside itself

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def agreed(self) -> bool:
        """Whether to stop now. Every process calls this once after each step; all receive the same answer."""
        if self._group is None:
            return self.number > 0
        answer = False
        if self._pending is not None:
            self._pending.wait()
            if answer := bool(self._flag.item()):
                self.number = int(self._flag.item())
        self._flag = torch.tensor([float(self.number)])
        self._pending = None if answer else dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )  # fmt: skip
        return answer

    def agree(self) -> int:
        """The signal of any process, 0 for none; instead of `agreed`. Every process calls this once."""
        if self._group is not None:
            flag = torch.tensor([float(self.number)])
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
            self.number = int(flag.item())
        return self.number

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
        self._phases: set[str] = set()  # that had a step
        self._updated: set[str] = set()  # that had a step with a finite gradient

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
            self._phases.add(phase)
            self._consecutive[phase] = self._consecutive[phase] + 1 if skipped else 0
            if not skipped:
                self._updated.add(phase)
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

    def check_updated(self) -> None:
        """Check that every phase had a step that was not skipped. Call it after the last `read` of a run.

        Raises:
            ValueError: If all steps of a phase were skipped, so that its networks are untrained.
        """
        if untrained := sorted(self._phases - self._updated):
            raise ValueError(
                f"gradients of phase {untrained[0]} were not finite in any step, so its networks were not trained and "
                f"nothing is exported. Lower optimizers.{untrained[0]}.lr, or check the data and the teacher"
            )

    def take_counts(self) -> dict[str, float]:
        """The number of skipped steps by phase since the last call, with the keys of the log."""
        counts, self._skipped = self._skipped, Counter()
        return {f"{phase}/skipped": float(count) for phase, count in counts.items()}
