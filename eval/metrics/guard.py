"""Metrics of other packages may fail in any way: one that does is left out with its reason, and the others go on."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from eval.metrics.base import Figure, Metric
from eval.metrics.context import Row
from teachers.support.plugins import is_own_class
from teachers.support.text import one_line

T = TypeVar("T")


def is_plugin(metric: Metric) -> bool:
    """Whether a metric is of another package."""
    return not is_own_class(type(metric))


def working(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that have not failed."""
    return [metric for metric in metrics if metric.problem is None]


def guarded(metric: Metric, call: Callable[[], T]) -> T | None:
    """The result of `call`, which uses a metric.

    If a metric of another package fails, the result is None and `metric.problem` says why. The errors of own metrics
    are raised.
    """
    if not is_plugin(metric):
        return call()
    try:
        with isolated():
            return call()
    except (Exception, SystemExit) as error:
        fail(metric, f"{type(error).__name__}: {one_line(str(error))}")
        return None


@contextmanager
def isolated() -> Iterator[None]:
    """Undo what other packages' code does to random number generators and to PyTorch's defaults.

    Without it, a metric that calls `torch.manual_seed` or `torch.set_default_dtype` changes the figures of others.
    """
    python, numpy = random.getstate(), np.random.get_state()
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(devices), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)


def compute(metric: Metric, row: Row) -> Figure | None:
    """The figure of one row; None if there is none or the metric failed. Metrics of other packages get a copy."""
    if not is_plugin(metric):
        return metric.compute(row)
    return guarded(metric, lambda: checked_figure(metric.compute(_copied(row)), len(row.features)))


def _copied(row: Row) -> Row:
    """A row that shares no tensor with `row`."""
    reference = replace(row.reference, **_copied_tensors(row.reference))
    scores = {name: values.clone() for name, values in row.scores.items()}
    return replace(row, **_copied_tensors(row), scores=scores, reference=reference, _shared={})


def _copied_tensors(record: Any) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}


def description(metric: Metric) -> dict[str, Any] | None:
    """`metric.describe()`; None if the metric failed.

    Raises:
        ValueError: If a metric of this project describes itself wrongly.
    """

    def described() -> dict[str, Any]:
        found = metric.describe()
        expected = set(Metric.describe(metric))
        if not isinstance(found, dict) or not expected <= set(found):
            raise ValueError(f"describe must return a dict with {', '.join(sorted(expected))}, got {found!r}")
        json.dumps(found, allow_nan=False)
        return found

    return guarded(metric, described)


def fail(metric: Metric, reason: str) -> None:
    """Leave a metric out of the rest of a comparison."""
    metric.problem = f'The metric "{metric.key}" ({type(metric).__module__}) failed and is left out: {reason}'


def checked_scores(scores: Any, count: int) -> Tensor:
    """Scores of `count` samples as float32 on the CPU.

    Raises:
        ValueError: If there is not one real number for each.
    """
    if not isinstance(scores, Tensor) or scores.shape != (count,) or scores.is_complex():
        found = f"{scores.dtype} of the shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores)
        raise ValueError(f"score must return a tensor of {count} real numbers, one for each sample, got {found}")
    return scores.detach().float().cpu()


def checked_figure(figure: Any, samples: int) -> Figure | None:
    """What `Metric.compute` returned, as numbers of JSON.

    Raises:
        ValueError: If it is not a figure, or has values that are not finite.
    """
    if figure is None:
        return None
    if not isinstance(figure, Figure):
        raise ValueError(f"compute must return a Figure or None, got {type(figure).__name__}")
    value = _number("value", figure.value)
    interval = None if figure.interval is None else tuple(figure.interval)
    if interval is not None and len(interval) != 2:
        raise ValueError(f"the interval of a Figure must have two ends, got {len(interval)}")
    ends = None if interval is None else [_number("interval", end) for end in interval]
    if ends is not None and ends[0] > ends[1]:
        raise ValueError(f"the interval of a Figure must have its lower end first, got {ends}")
    return Figure(value, ends, None if figure.influence is None else _influence(figure.influence, samples))


def _influence(influence: Any, samples: int) -> Tensor:
    if not isinstance(influence, Tensor) or influence.shape != (samples,) or influence.is_complex():
        found = f"{influence.dtype} of the shape {tuple(influence.shape)}" if isinstance(influence, Tensor) else ""
        raise ValueError(
            f"the influence of a Figure must be a tensor of {samples} real numbers, got "
            f"{found or type(influence).__name__}"
        )
    if not bool(influence.isfinite().all()):
        raise ValueError("the influence of a Figure must be finite, got NaN or infinite values")
    return influence.detach().double().cpu()


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"the {name} of a Figure must be a finite number, got {value!r}")
    return float(value)


def score(metric: Any, images: Tensor, prompts: Sequence[str] | None) -> Tensor | None:
    """The scores of one batch; None if the metric failed. Metrics of other packages get a copy of the samples."""
    own = images.clone() if is_plugin(metric) else images
    return guarded(metric, lambda: checked_scores(metric.score(own, prompts), len(images)))


def score_groups(metric: Any, images: Tensor, groups: Sequence[int]) -> Tensor | None:
    """The scores of additional samples; None if the metric failed."""
    own = images.clone() if is_plugin(metric) else images

    def scores() -> Tensor:
        found = metric.score_groups(own, groups)
        return checked_scores(found, len(torch.as_tensor(found)))

    return guarded(metric, scores)
