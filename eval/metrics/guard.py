"""Metrics of other packages may fail in any way: one that does is left out with its reason, and the others go on."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from eval.metrics.base import Figure, Metric
from teachers.support.plugins import OWN_PACKAGES
from teachers.support.text import one_line

T = TypeVar("T")


def is_plugin(metric: Metric) -> bool:
    """Whether a metric is of another package."""
    return type(metric).__module__.partition(".")[0] not in OWN_PACKAGES


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
        return call()
    except (Exception, SystemExit) as error:
        fail(metric, f"{type(error).__name__}: {one_line(str(error))}")
        return None


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
    influence = figure.influence
    if influence is not None and (not isinstance(influence, Tensor) or influence.shape != (samples,)):
        shape = tuple(getattr(influence, "shape", ()))
        raise ValueError(f"the influence of a Figure must have the shape ({samples},), got {shape}")
    return Figure(value, ends, influence)


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
