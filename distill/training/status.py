"""`status.json` in a run's folder: how far a run is and how long it still takes, rewritten while it runs.

The times left and in total come from the run itself: its mean time of a step and of an evaluation since it was started.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.run_files import STATUS
from distill.training.jsonl_log import warn_if_unwritable
from teachers.support.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from teachers.support.files import atomic_write
from teachers.support.json_files import read_json
from teachers.support.text import counted, printable

if TYPE_CHECKING:  # it imports torch, which is slow
    from distill.config.recipe import Recipe

OFTEN = 5.0  # seconds between two versions while training
ENDED = ("finished", "stopped", "failed")
STOPPED = (0, EXIT_INTERRUPTED, EXIT_TERMINATED)  # exit codes of a run that a signal stopped
PHASES = ("preparing", "training", "evaluating", "exporting", *ENDED)


class StoppedAfterExport(SystemExit):
    """A signal arrived during the last step or the export, and the process ends because the export is on disk."""


class Status:
    """The status of a run. Only the main process writes it; a file that cannot be written is a warning.

    Args:
        recipe: The run's recipe.
        writes: Whether this process writes.

    Attributes:
        phase: One of PHASES.
        step: Number of completed steps.
        seconds: Training time so far, over all resumptions.
        evaluations: Number of evaluations and drawings of validation samples of this process.
        evaluation_seconds: Their time.
    """

    def __init__(self, recipe: "Recipe", writes: bool) -> None:
        self.recipe, self.writes = recipe, writes
        self.phase, self.step, self.seconds = "preparing", 0, 0.0
        self.evaluations, self.evaluation_seconds = 0, 0.0
        self._measured: tuple[int, float] | None = None  # step and seconds from which on steps are timed
        self._written, self._distances = 0.0, None

    def training(self, step: int, seconds: float) -> None:
        """Note a completed step; the file is written every few seconds.

        Args:
            step: Number of completed steps.
            seconds: Training time so far.
        """
        self.phase, self.step, self.seconds = "training", step, seconds
        if self._measured is None:  # the first step of a process includes its warm-up
            self._measured = step, seconds
        if time.monotonic() - self._written >= OFTEN or step == self.recipe.train.steps:
            self.write()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context around one evaluation, whose duration counts for later ones."""
        self.write("evaluating")
        began = time.perf_counter()
        yield
        self.evaluation_seconds += time.perf_counter() - began
        self.evaluations += 1
        self.write("training")

    def evaluated(self, record: dict[str, Any]) -> None:
        """Note the record of an evaluation (`Monitor.evaluate`)."""
        self._distances = record["held_out_frechet"]

    def seconds_left(self) -> float | None:
        """The time that the rest of the run takes; None until a step has been timed."""
        settings = self.recipe.train
        left = max(0, settings.steps - self.step)
        if not left:
            return 0.0
        if self._measured is None or self.step <= self._measured[0]:
            return None
        step = (self.seconds - self._measured[1]) / (self.step - self._measured[0])
        return left * step + self._evaluations_left() * self.evaluation_seconds / max(1, self.evaluations)

    def _evaluations_left(self) -> int:
        """The number of steps of the rest of the run after which it evaluates or draws validation samples."""
        settings, validation = self.recipe.train, self.recipe.evaluation
        every = {settings.evaluate_every}
        if validation.validation_prompts:
            every.add(validation.validation_every or settings.evaluate_every)
        due = {step for n in every if n for step in range(self.step - self.step % n + n, settings.steps, n)}
        return len(due | {settings.steps}) if any(every) else 0

    def values(self) -> dict[str, Any]:
        """The contents of the file."""
        left, done = self.seconds_left(), self.seconds + self.evaluation_seconds
        total = None if left is None else done + left
        return {
            "run": self.recipe.name,
            "phase": self.phase,
            "step": self.step,
            "steps": self.recipe.train.steps,
            "hours_trained": round(self.seconds / 3600, 5),
            "hours_left": None if left is None else round(left / 3600, 5),
            "estimated_total_hours": None if total is None else round(total / 3600, 5),
            "held_out_frechet": self._distances,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "process": os.getpid(),
            "host": socket.gethostname(),
        }

    def write(self, phase: str | None = None) -> None:
        """Replace the file, with another phase if it is given."""
        self.phase = phase or self.phase
        self._written = time.monotonic()
        if not self.writes:
            return
        values = self.values()
        with (
            warn_if_unwritable(f"{STATUS} of {self.recipe.folder}"),
            atomic_write(self.recipe.folder / STATUS) as temporary,
        ):
            temporary.write_text(json.dumps(values | {"summary": summary(values)}, indent=2) + "\n", encoding="utf-8")

    def summary(self) -> str:
        """One line about the run."""
        return summary(self.values())

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """A context around the run, which notes how it ended."""
        self.write()
        try:
            yield
        except SystemExit as end:
            if isinstance(end, StoppedAfterExport):
                self.write("finished")
            else:
                self.write("stopped" if end.code in STOPPED else "failed")
            raise
        except KeyboardInterrupt:
            self.write("stopped")
            raise
        except BaseException:
            self.write("failed")
            raise
        self.write("finished")


def summary(values: dict[str, Any]) -> str:
    """One line about a run from the contents of its status file."""
    parts = [f"{values['phase']}, step {values['step']:,} of {values['steps']:,}"]
    left, total = values.get("hours_left"), values.get("estimated_total_hours")
    if values["phase"] not in ENDED and left is not None and total is not None:
        parts.append(f"{duration(3600 * left)} left of an estimated {duration(3600 * total)}")
    else:
        parts.append(f"{duration(3600 * values['hours_trained'])} of training")
    if values.get("held_out_frechet"):
        distances = values["held_out_frechet"].items()
        shown = ", ".join(
            f"{'not finite' if d is None else f'{d:.3f}'} ({counted(int(n), 'step')})" for n, d in distances
        )
        parts.append(f"held-out Frechet distance {shown}")
    return f"{values['run']}: {'; '.join(parts)}"


def read_status(run: Path) -> dict[str, Any]:
    """The status of a run; the phase is "interrupted" if its process on this machine ended without saying so.

    Args:
        run: The run's folder.

    Raises:
        ValueError: If it has no valid status.
    """
    file = run / STATUS
    if not file.is_file():
        raise ValueError(f"RUN must be the folder of a run that was started; {run} has no {STATUS}")
    values = read_json(file)
    kinds = {"run": str, "phase": str, "step": int, "steps": int, "hours_trained": float, "process": int, "host": str}
    optional = {"hours_left": float, "estimated_total_hours": float, "held_out_frechet": dict}
    found = values if isinstance(values, dict) else {}
    good = all(isinstance(found.get(name), kind | int if kind is float else kind) for name, kind in kinds.items())
    good = good and all(isinstance(found.get(name), kind | int | None) for name, kind in optional.items())
    distances = found.get("held_out_frechet") or {}
    numbers = isinstance(distances, dict) and all(isinstance(d, float | int | None) for d in distances.values())
    if not good or not numbers or not all(n.isdecimal() for n in distances):
        raise ValueError(f"{file} is not a status that fewstep train wrote; start the run again")
    if found["phase"] not in ENDED and found["host"] == socket.gethostname() and not _runs(found["process"]):
        found["phase"] = "interrupted"
    return found


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def duration(seconds: float) -> str:
    """A duration for people: "45 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def status_line(run: Path) -> str:
    """The line that `fewstep status` prints."""
    return printable(summary(read_status(run)))
