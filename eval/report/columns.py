"""The columns of the report: one definition for HTML, Markdown, CSV and the terminal.

Quality columns come from `metrics` in report.json, which the metrics themselves describe
(`eval.metrics.base.Metric.describe`). A report can therefore be rendered without the packages that its metrics are in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from eval.report.formats import at_batches, between, formatted, ratio_between, significant, times, training


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: The entry of a row in report.json.
        heading: The column's heading.
        text: Formats a value.
        help: What the figure means.
        interval: The figure's interval, shown in small print, or None.
        best: The entry of a row that says whether the figure is marked as best, or None.
        summary: Whether the table in the terminal has the column.
    """

    key: str
    heading: str
    text: Callable[[Any], str]
    help: str = ""
    interval: "Column | None" = None
    best: str | None = None
    summary: bool = False

    def is_best(self, row: dict[str, Any]) -> bool:
        """Whether the figure of `row` is the best or tied with it."""
        return self.best is not None and bool(row.get(self.best))

    def interval_text(self, row: dict[str, Any]) -> str | None:
        """The interval of the figure of `row` as text, or None if it is unknown."""
        if self.interval is None or row.get(self.interval.key) is None:
            return None
        return self.interval.text(row[self.interval.key])


NAME = Column("name", "", str, summary=True)


def columns(report: dict[str, Any]) -> list[Column]:
    """Every column of the report, quality before speed. Columns without a value in any row are left out."""
    return _with_values(report, [NAME, *_quality(report), *_speed(report)])


def quality(report: dict[str, Any]) -> list[Column]:
    """The columns of the quality table."""
    return _with_values(report, [NAME, *_quality(report)])


def speed(report: dict[str, Any]) -> list[Column]:
    """The columns of the speed table."""
    return _with_values(report, [NAME, *_speed(report)])


def intervals(report: dict[str, Any]) -> list[Column]:
    """The intervals of all columns of the report."""
    return [column.interval for column in columns(report) if column.interval is not None]


def _with_values(report: dict[str, Any], candidates: list[Column]) -> list[Column]:
    rows = report["rows"]
    ratios = {metric["ratio"] for metric in report["metrics"]} | {"speedup"}
    hidden = ratios if len(rows) == 1 else set()  # ratios of one row to itself
    return [c for c in candidates if c.key not in hidden and any(row.get(c.key) not in (None, []) for row in rows)]


def over_teacher(report: dict[str, Any]) -> bool:
    """Whether the baseline of ratios is the teacher's usual call."""
    first = report["rows"][0]
    return bool(first["method"] == "teacher" and report["baseline"] == first["name"])


def words(report: dict[str, Any]) -> dict[str, str]:
    """The words for a sample, "noun", and several, "plural", of a report; only reports of images have no medium."""
    found: dict[str, str] = report.get("medium", {"noun": "image", "plural": "images"})
    return found


def _quality(report: dict[str, Any]) -> list[Column]:
    out = [
        Column("num_steps", "Steps", str, "Denoising steps requested from the pipeline."),
        Column(
            "nfe",
            "NFE",
            lambda value: f"{value:g}",
            f"Network evaluations per {words(report)['noun']}, counted during generation; classifier-free guidance "
            "needs two per step.",
            summary=True,
        ),
    ]
    for metric in report["metrics"]:
        out += _metric_columns(metric, report)
    return [*out, Column("training", "Distilled in", training, "The cost of training, as the run recorded it.")]


def _metric_columns(metric: dict[str, Any], report: dict[str, Any]) -> list[Column]:
    """The columns of a metric's value and, if it has one, of its ratio to the baseline."""
    key, spec, scale = metric["key"], metric["format"], metric["scale"]
    value = Column(
        key,
        metric["heading"] + (f" ×{scale}" if scale != 1 else ""),
        partial(formatted, spec=spec, scale=scale),
        metric["help"],
        Column(metric["interval"], "", partial(between, spec=spec, scale=scale)),
        metric["best"],
        metric["summary"],
    )
    if metric["ratio"] is None:
        return [value]
    ratio = Column(
        metric["ratio"],
        "× teacher" if over_teacher(report) else "× baseline",
        times,
        f"This row's {metric['heading']} divided by that of “{report['baseline']}”. Below it the 95% interval for "
        "paired samples; an interval that contains 1 is a tie.",
        Column(f"{metric['ratio']}_interval", "", ratio_between),
        summary=metric["summary"],
    )
    return [value, ratio]


def _speed(report: dict[str, Any]) -> list[Column]:
    sizes: list[dict[str, float]] = next((row["throughput"] for row in report["rows"] if row.get("throughput")), [])
    listed = " / ".join(str(entry["batch_size"]) for entry in sizes)
    gpu = "GPU" in report["memory_column"]
    noun, plural = words(report)["noun"], words(report)["plural"].capitalize()
    return [
        Column(
            "latency_ms",
            "Latency (ms)",
            significant,
            f"Time of a call for one {noun}, after warm-up: median, and the 5th to 95th percentile.",
            summary=True,
        ),
        Column(
            "times_real_time",
            "× real time",
            times,
            f"The duration of a {noun} divided by the latency: above 1 it is generated faster than it is played.",
            summary=True,
        ),
        Column("latency_compiled_ms", "Compiled (ms)", significant, "The same with the network under torch.compile."),
        Column(
            "denoiser_ms", "Denoiser (ms)", significant, "The part of it spent in the denoising network, all steps."
        ),
        Column("decoder_ms", "Decoder (ms)", significant, "The part of it spent in the autoencoder's decoder."),
        Column(
            "speedup",
            "Speed-up",
            times,
            f"The latency of “{report['baseline']}” divided by this row's.",
            summary=True,
        ),
        Column(
            "images_per_second",
            f"{plural}/s",
            significant,
            f"Throughput at batch size {report['batch_size']}: median of the batches that generated the samples.",
            summary=True,
        ),
        Column(
            "throughput", f"{plural}/s at {listed}", at_batches, f"Throughput at batch sizes {listed}, one call each."
        ),
        Column(
            "peak_memory_mb",
            report["memory_column"],
            significant,
            "Peak memory while the samples are generated: "
            + (
                "memory that torch allocated on the GPU."
                if gpu
                else "resident memory of the whole process, Python and libraries included, sampled every 10 ms."
            ),
        ),
        Column(
            "first_sample_seconds",
            "First sample (s)",
            significant,
            f"Time to the first {noun}: loading the pipeline and the first call with one {noun}.",
        ),
        Column("load_seconds", "Load (s)", significant, "Time to load the pipeline from its folder onto the device."),
        Column("joules_per_image", f"Joules/{noun}", significant, "By the energy counter of the whole device."),
    ]
