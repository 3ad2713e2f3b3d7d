"""Metrics of a run: averaged over processes, shown in the progress bar, sent to trackers, written to log.jsonl."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.training.engine import Engine
from distill.training.jsonl_log import JsonlLog, warn_if_unwritable

Metrics = Mapping[str, Sequence[Tensor]]  # "phase/name": one scalar for each micro-batch


class MetricLog:
    """Collects the metrics of steps on the device. Only `flush` waits for the device.

    Args:
        engine: The run's engine.
        path: The JSONL file, one record for each flush.
        start: The step that the run resumes from; later records of an interrupted run are removed.
        bar: A tqdm progress bar that shows the student's losses.
        run: The run's key.
    """

    def __init__(self, engine: Engine, path: Path, start: int, bar: Any, run: str = "") -> None:
        self.engine, self.bar = engine, bar
        self.file = JsonlLog(path, start, run)
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one step."""
        for key, values in metrics.items():
            self._values[key].extend(values)

    def flush(self, step: int, seconds: float, skipped: Mapping[str, float]) -> None:
        """Log the means of finite values since the last flush. Every process calls it.

        Args:
            step: Number of completed steps.
            seconds: Training time so far.
            skipped: Skipped steps by phase, from `NonFiniteGuard.take_counts`.
        """
        values = self._means()
        if not values:
            return
        with warn_if_unwritable(f"the trackers' record of step {step}"):
            self.engine.accelerator.log(values, step=step)
        self.bar.set_postfix(
            {k.split("/")[1]: f"{v:.3g}" for k, v in values.items() if k.startswith("student/") and "loss" in k}
        )
        if self.engine.is_main:
            self.file.append({"step": step, "seconds": round(seconds, 2)} | values | dict(skipped))

    def _means(self) -> dict[str, float]:
        if not self._values:
            return {}
        stacks = [torch.stack([v.detach().float() for v in values]) for values in self._values.values()]
        means = torch.stack([torch.where(torch.isfinite(v), v, torch.nan).nanmean() for v in stacks])
        values = dict(zip(self._values, self.engine.accelerator.reduce(means, "mean").tolist(), strict=True))
        self._values.clear()
        return values
