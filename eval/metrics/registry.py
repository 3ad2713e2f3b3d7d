"""The installed metrics, found through the entry-point group `distill.metrics`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

from eval.metrics.base import EVERY_MEDIUM, Metric
from eval.metrics.context import NEEDS, MetricContext
from eval.metrics.guard import isolated
from teachers.support.plugins import installed_points, is_own, is_own_class

GROUP = "distill.metrics"


def _is_format(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(format(0.5, value))
    except ValueError:
        return False


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


ATTRIBUTES: dict[str, tuple[str, Callable[[Any], bool]]] = {  # what they must be, and how that is tested
    "key": ("a name of letters, digits and underscores", lambda value: isinstance(value, str) and value.isidentifier()),
    "higher_is_better": ("True, False or None", lambda value: value is None or _is_flag(value)),
    "media": ("a set of names", lambda value: isinstance(value, set | frozenset)),
    "needs": ("a set of names", lambda value: isinstance(value, set | frozenset)),
    "format": ('a format specification such as ".3f"', _is_format),
    "scale": ("a number above 0", lambda value: isinstance(value, int | float) and not _is_flag(value) and value > 0),
    "position": ("a number", lambda value: isinstance(value, int | float)),
    "summary": ("True or False", _is_flag),
    "marks_best": ("True or False", _is_flag),
    "ratio_key": ("a text or None", lambda value: value is None or isinstance(value, str)),
}


@dataclass(frozen=True)
class InstalledMetrics:
    """The metric classes in the order of their columns, and one sentence for each that could not be used."""

    classes: list[type[Metric]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, medium: str) -> "InstalledMetrics":
        """The metrics of a medium, by its name."""
        return InstalledMetrics([metric for metric in self.classes if medium in metric.media], self.problems)

    def build(self, context: MetricContext) -> list[Metric]:
        """The metrics whose needs `context` meets, ready for use. One that cannot be created is added to `problems`."""
        available, metrics = context.available(), []
        for metric in [metric for metric in self.classes if metric.needs <= available]:
            try:
                with isolated():
                    built = metric(context)
                for name in ("heading", "help"):
                    if not isinstance(text := getattr(built, name), str) or not text.strip():
                        raise TypeError(f"{name} must be a text that is not empty, got {text!r}")
                metrics.append(built)
            except Exception as error:
                if is_own_class(metric):
                    raise
                self.problems.append(_problem(metric.key, metric.__module__, error))
        return metrics


def installed_metrics(points: Sequence[EntryPoint] | None = None) -> InstalledMetrics:
    """Import every installed metric.

    Args:
        points: The entry points to import; by default those of all installed packages.

    Returns:
        The metrics. An entry point that cannot be imported or used is reported in `problems` and left out.

    Raises:
        ValueError: If no metric is installed, not even this project's own.
    """
    found = list(installed_points(GROUP)) if points is None else points
    if not found:
        raise ValueError("no metric is installed; install the project first: pip install -e .")
    classes: dict[str, type[Metric]] = {}
    problems = []
    for point in sorted(found, key=lambda point: not is_own(point)):  # no plug-in takes the key of an own metric
        try:
            metric = _checked(point.load())
            if metric.key in classes:
                raise ValueError(f'the key "{metric.key}" already belongs to {classes[metric.key].__module__}')
            classes[metric.key] = metric
        except (Exception, SystemExit) as error:  # a plug-in can fail in any way; the other metrics still work
            problems.append(_problem(point.name, point.value, error))
    ordered = sorted(classes.values(), key=lambda metric: (metric.position, metric.key))
    return InstalledMetrics(ordered, problems)


def _problem(name: str, origin: str, error: BaseException) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f'The metric "{name}" ({origin}) could not be loaded and is left out: {reason}'


def _checked(metric: object) -> type[Metric]:
    if not (isinstance(metric, type) and issubclass(metric, Metric)):
        raise TypeError("an entry point must name a subclass of eval.metrics.base.Metric")
    for name in ("key", "heading", "help", "higher_is_better"):
        if not hasattr(metric, name):
            raise TypeError(f'the class has no attribute "{name}"')
    for name, (kind, is_right) in ATTRIBUTES.items():
        value = getattr(metric, name)
        if not is_right(value):
            raise TypeError(f"{name} must be {kind}, got {value!r}")
    if wrong := sorted(metric.media - EVERY_MEDIUM):
        raise ValueError(f'the class has the medium "{wrong[0]}"; a metric can have {", ".join(sorted(EVERY_MEDIUM))}')
    unknown = sorted(metric.needs - set(NEEDS))
    if unknown:
        raise ValueError(f'the class needs "{unknown[0]}"; a metric can need {", ".join(NEEDS)}')
    if metric.marks_best and metric.higher_is_better is None:
        raise ValueError("marks_best must be False for a metric whose higher_is_better is None")
    if wrong_names := [name for name in _entries(metric) if not (isinstance(name, str) and name.isidentifier())]:
        raise ValueError(f"the entries of a metric must be names of letters and digits, got {wrong_names[0]!r}")
    if repeated := [name for name, count in Counter(_entries(metric)).items() if count > 1]:
        raise ValueError(f'key, interval_key, best_key and ratio_key must differ, got "{repeated[0]}" twice')
    return metric


def _entries(metric: type[Metric]) -> list[str]:
    """All entries that a metric can write in a row of report.json."""
    ratio = [] if metric.ratio_key is None else [metric.ratio_key, f"{metric.ratio_key}_interval"]
    return [metric.key, metric.interval_key, metric.best_key, *ratio]
