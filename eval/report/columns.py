"""The report's columns: one definition for HTML, Markdown and terminal, so that all show the same figures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """`key` is the entry of a row in report.json; `text` shows its value; `help` says what it means."""

    key: str
    heading: str
    text: Callable[[Any], str]
    help: str


def significant(value: float | None) -> str:
    """About three significant digits, without exponents: 0.123, 1.23, 12.3, 1,235."""
    if value is None:
        return NOTHING
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}" if size >= 1e-3 else f"{value:.1g}" if value else "0"


def times(value: float | None) -> str:
    return NOTHING if value is None else significant(value) + "×"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 100:.1f}%"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would choose."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def training(cost: dict[str, Any] | None) -> str:
    """What making the student took, from the parts of its cost that are known."""
    if not cost:
        return NOTHING
    parts = []
    if cost.get("steps") is not None:
        parts.append(f"{cost['steps']:,} steps")
    if cost.get("seconds") is not None:
        parts.append(duration(cost["seconds"]))
    if cost.get("device"):
        parts.append(str(cost["device"]))
    return ", ".join(parts) or NOTHING


def _precision_recall(features: str, count: int) -> list[Column]:
    name = f"@{count}"
    between = f"Between {count:,} samples and as many reference images, with the features “{features}”. "
    return [
        Column(
            "precision",
            f"Precision{name}",
            share,
            between + "The share of samples that look like some reference image.",
        ),
        Column("recall", f"Recall{name}", share, between + "The share of reference images that the samples reach."),
        Column(
            "density",
            f"Density{name}",
            share,
            between + "As precision, but counting how many reference images a sample is near; about 1 for real images.",
        ),
        Column(
            "coverage",
            f"Coverage{name}",
            share,
            between + "The share of reference images that have a sample near; lost modes show here and in recall.",
        ),
    ]


def columns(report: dict[str, Any]) -> list[Column]:
    """The report's columns from left to right; prompt agreement only where a judge saw the prompts."""
    out = [
        Column("name", "", str, ""),
        Column("num_steps", "Steps", str, "Denoising steps asked of the pipeline."),
        Column(
            "nfe",
            "NFE",
            lambda v: f"{v:g}",
            "Network evaluations an image, counted while drawing; classifier-free guidance needs two a step.",
        ),
        Column(
            "latency_ms",
            "Latency (ms)",
            significant,
            "One image from call to pixels, batch 1, after warm-up: median, and the 5th to 95th percentile.",
        ),
        Column("speedup", "Speed-up", times, "The teacher's usual latency divided by this row's."),
        Column(
            "images_per_second",
            "Images/s",
            significant,
            f"Throughput at a batch of {report['batch_size']}, median over the batches that drew the samples.",
        ),
        Column(
            "peak_memory_mb",
            report["memory_column"],
            significant,
            "The most memory in use while drawing batches: "
            + (
                "what torch had allocated on the GPU."
                if "GPU" in report["memory_column"]
                else "resident memory of the whole process, Python and libraries included, looked at every 10 ms."
            ),
        ),
        Column(
            "frechet_distance",
            report["frechet_column"],
            significant,
            f"Lower is better. Made with the features “{report['features']}” and {report['samples']:,} samples; "
            "figures with other features or other counts cannot be compared.",
        ),
        Column("frechet_ratio", "× teacher", times, "This row's Frechet distance divided by the teacher's usual one."),
    ]
    count = next((row["real_images"] for row in report["rows"] if row["real_images"] is not None), None)
    if count is not None:
        out += _precision_recall(report["features"], count)
    if any(row["prompt_agreement"] is not None for row in report["rows"]):
        out.append(
            Column(
                "prompt_agreement",
                "Prompt agreement",
                percent,
                "Share of the samples in which the classifier sees what the prompt asked for.",
            )
        )
    if any(row["training"] for row in report["rows"]):
        out.append(Column("training", "Distilled in", training, "What making the student took, as its run recorded."))
    return out
