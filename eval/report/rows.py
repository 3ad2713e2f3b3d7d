"""The rows of report.json: measurements, and every metric's figure with its interval, ratio and ties."""

from collections.abc import Sequence
from typing import Any

from eval.metrics.base import Figure, Metric
from eval.metrics.context import Reference, Row
from eval.metrics.guard import compute, fail, is_plugin
from eval.metrics.intervals import ratio_interval, tied
from eval.metrics.prdc import compared_images
from eval.pipelines.cached import MeasuredRow
from eval.pipelines.jobs import steps_text


def rows(
    measured: Sequence[MeasuredRow],
    reference: Reference,
    classes: Sequence[type[Metric]],
    metrics: Sequence[Metric],
    seed: int,
    baseline: int = 0,
) -> list[dict[str, Any]]:
    """The entries of report.json for all rows.

    Args:
        measured: The rows; the first is the teacher's usual call, if there is a teacher.
        reference: What samples are compared with.
        classes: All installed metrics. Those that are not in `metrics` have empty entries.
        metrics: The metrics of this comparison.
        seed: Seed of the noise.
        baseline: The index of the row that ratios and speed-ups are relative to.

    Raises:
        ValueError: If a metric has the key of a measurement.
    """
    inputs = _metric_inputs(measured, reference)
    base_latency = measured[baseline].result.figures["latency_ms"]
    out = []
    for row, data in zip(measured, inputs, strict=True):
        job, figures = row.job, {k: v for k, v in row.result.figures.items() if k != "images"}
        solver = figures["solver"]
        out.append(
            {
                "name": f"teacher, {solver}, {steps_text(job.num_steps)}" if solver else job.name,
                "method": job.method,
                "num_steps": job.num_steps,
                **figures,
                "seed": seed,
                "speedup": base_latency / figures["latency_ms"],
                "real_images": compared_images(data),
                "training": job.training,
                "call": job.call,
                "pipeline": str(job.folder),
                "from_cache": row.from_cache,
            }
        )
    built = {metric.key: metric for metric in metrics}
    for cls in classes:
        metric = built.get(cls.key)
        found = [None if metric is None else _figure(metric, data) for data in inputs]
        if metric is not None and metric.problem is not None:
            continue
        added = metric_entries(cls, found, baseline)
        if clash := sorted({name for entries, new in zip(out, added, strict=True) for name in set(entries) & set(new)}):
            if metric is None or not is_plugin(metric):
                raise ValueError(f'the metric "{cls.key}" writes the entry "{clash[0]}", which already exists')
            fail(metric, f'it writes the entry "{clash[0]}", which already exists')
            continue
        for entries, new in zip(out, added, strict=True):
            entries.update(new)
    return out


def _metric_inputs(measured: Sequence[MeasuredRow], reference: Reference) -> list[Row]:
    first = measured[0]
    teacher = first.result.images if first.job.method == "teacher" else None
    out = []
    for index, result in enumerate(row.result for row in measured):
        comparable = index > 0 and teacher is not None and teacher.shape[2:] == result.images.shape[2:]
        images = teacher if comparable else None
        out.append(
            Row(result.features, result.mean, result.covariance, result.images, result.scores, reference, images)
        )
    return out


def _figure(metric: Metric, row: Row) -> Figure | None:
    if "teacher_images" in metric.needs and row.teacher_images is None:
        return None
    if metric.problem is not None:
        return None
    return compute(metric, row)


def metric_entries(metric: type[Metric], figures: Sequence[Figure | None], baseline: int = 0) -> list[dict[str, Any]]:
    """A metric's entries in report.json.

    Args:
        metric: The metric.
        figures: Its figure for each row, or None.
        baseline: The index of the row that ratios are relative to.

    Returns:
        For each row its value, and its interval, mark and ratio where the metric has them.
    """
    best = best_rows(figures, metric.higher_is_better is True) if metric.marks_best else []
    out = []
    for index, figure in enumerate(figures):
        interval = None if figure is None or figure.interval is None else list(figure.interval)
        entries: dict[str, Any] = {metric.key: None if figure is None else figure.value, metric.interval_key: interval}
        if metric.marks_best:
            entries[metric.best_key] = best[index]
        if metric.ratio_key is not None:
            values = [each.value for each in figures if each is not None]
            paired = index != baseline and min(values, default=0) > 0
            entries |= _ratio(metric.ratio_key, figure, figures[baseline], paired)
        out.append(entries)
    return out


def best_rows(figures: Sequence[Figure | None], higher_is_better: bool) -> list[bool]:
    """Which rows have the best value or are tied with it; none if a row has no value."""
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures):
        return [False] * len(figures)
    sign = -1 if higher_is_better else 1
    influences = [None if figure.influence is None else sign * figure.influence for figure in known]
    return tied([sign * figure.value for figure in known], influences)


def _ratio(key: str, figure: Figure | None, base: Figure | None, paired: bool) -> dict[str, Any]:
    """The ratio to the baseline's value, and its interval for paired samples."""
    out: dict[str, Any] = {key: None, f"{key}_interval": None}
    if figure is not None and base is not None:
        out[key] = figure.value / base.value if base.value > 0 else None
        if paired and figure.influence is not None and base.influence is not None:
            out[f"{key}_interval"] = ratio_interval(figure.value, figure.influence, base.value, base.influence)
    return out
