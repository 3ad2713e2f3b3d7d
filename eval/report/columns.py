"""The report's columns: one definition for HTML, Markdown and terminal, so that all show the same figures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.report.formats import (
    NOTHING,
    at_batches,
    between,
    percent,
    percent_between,
    ratio_between,
    share,
    significant,
    times,
    training,
)


@dataclass(frozen=True)
class Column:
    """`key` is the entry of a row in report.json; `text` shows its value; `help` says what it means."""

    key: str
    heading: str
    text: Callable[[Any], str]
    help: str


DETAILS = {  # small print under a figure: the row's entry and how it is shown
    "frechet_distance": Column("frechet_interval", "", between, ""),
    "frechet_ratio": Column("frechet_ratio_interval", "", ratio_between, ""),
    "prompt_agreement": Column("prompt_agreement_interval", "", percent_between, ""),
    "clip_score": Column("clip_interval", "", between, ""),
}
BEST = {"frechet_distance": "best", "clip_score": "clip_best"}  # figures in bold, and the row's entry that says when


def columns(report: dict[str, Any]) -> list[Column]:
    """Every column of the report, quality before speed; what no row has is left out."""
    return _with_figures(report, [_NAME, *_quality(report), *_speed(report)])


def quality(report: dict[str, Any]) -> list[Column]:
    """The columns of the table of quality."""
    return _with_figures(report, [_NAME, *_quality(report)])


def speed(report: dict[str, Any]) -> list[Column]:
    """The columns of the table of speed."""
    return _with_figures(report, [_NAME, *_speed(report)])


_NAME = Column("name", "", str, "")


def _with_figures(report: dict[str, Any], wanted: list[Column]) -> list[Column]:
    rows = report["rows"]
    ratios = () if len(rows) > 1 else ("frechet_ratio", "speedup")  # of one row over itself
    return [c for c in wanted if c.key not in ratios and any(row.get(c.key) not in (None, []) for row in rows)]


def over_teacher(report: dict[str, Any]) -> bool:
    """Whether ratios are over the teacher's usual call."""
    first = report["rows"][0]
    return first["method"] == "teacher" and report["baseline"] == first["name"]


def _quality(report: dict[str, Any]) -> list[Column]:
    features, samples = report["features"], report["samples"]
    count = next((row["real_images"] for row in report["rows"] if row["real_images"] is not None), 0)
    neighbours = f"Between {count:,} samples and as many reference images, with the features “{features}”. "
    alike = "of the pictures of the same noise and prompt, over the first samples"
    return [
        Column("num_steps", "Steps", str, "Denoising steps asked of the pipeline."),
        Column(
            "nfe",
            "NFE",
            lambda v: f"{v:g}",
            "Network evaluations an image, counted while drawing; classifier-free guidance needs two a step.",
        ),
        Column(
            "frechet_distance",
            report["frechet_column"],
            significant,
            f"Lower is better. Made with the features “{features}” and {samples:,} samples; figures with other "
            "features or counts cannot be compared. Below it the 95% interval over the draw of the samples; bold are "
            "the lowest and all that cannot be told from it, pair by pair on the same noise.",
        ),
        Column(
            "frechet_ratio",
            "× teacher" if over_teacher(report) else "× baseline",
            times,
            f"This row's Frechet distance divided by that of “{report['baseline']}”. Below it the 95% interval on "
            "paired samples; one that holds 1 is a tie.",
        ),
        Column(
            "kid",
            f"KID-{features}@{samples} ×1000",
            lambda v: NOTHING if v is None else significant(v * 1000),
            "Kernel Inception distance, times 1000. Lower is better; unbiased, so it may be a little below zero.",
        ),
        Column(
            "precision",
            f"Precision@{count}",
            share,
            neighbours + "The share of samples that look like some reference image.",
        ),
        Column("recall", f"Recall@{count}", share, neighbours + "The share of reference images within reach."),
        Column(
            "density",
            f"Density@{count}",
            share,
            neighbours + "As precision, but counting how many reference images are near; about 1 for real ones.",
        ),
        Column(
            "coverage",
            f"Coverage@{count}",
            share,
            neighbours + "The share of reference images that have a sample near; lost modes show here and in recall.",
        ),
        Column(
            "diversity_lpips",
            "Diversity (LPIPS)",
            share,
            "Higher is more varied. Mean LPIPS between samples of one prompt, up to 8 prompts with 8 samples each.",
        ),
        Column("lpips_to_teacher", "LPIPS to teacher", share, f"Lower is more faithful. Mean LPIPS {alike}."),
        Column(
            "psnr_to_teacher",
            "PSNR to teacher (dB)",
            significant,
            f"Higher is more faithful. Mean peak signal-to-noise ratio {alike}.",
        ),
        Column(
            "prompt_agreement",
            "Prompt agreement",
            percent,
            "Share of the samples in which the classifier sees what the prompt asked for, and its 95% interval.",
        ),
        Column(
            "clip_score",
            (report.get("clip") or {}).get("figure", "CLIP score"),
            significant,
            "Higher is better. 100 max(cos, 0) between CLIP's embeddings of picture and prompt, the mean over all "
            "samples, and its 95% interval; bold are the highest and all that cannot be told from it, sample by "
            "sample. Other CLIP models give other scores.",
        ),
        Column("training", "Distilled in", training, "What making the student took, as its run recorded."),
    ]


def _speed(report: dict[str, Any]) -> list[Column]:
    sizes: list[dict[str, float]] = next((row["throughput"] for row in report["rows"] if row.get("throughput")), [])
    listed = " / ".join(str(entry["batch_size"]) for entry in sizes)
    return [
        Column(
            "latency_ms",
            "Latency (ms)",
            significant,
            "One image from call to pixels, batch 1, after warm-up: median, and the 5th to 95th percentile.",
        ),
        Column("latency_compiled_ms", "Compiled (ms)", significant, "The same with the network under torch.compile."),
        Column("denoiser_ms", "Denoiser (ms)", significant, "What the denoising network takes of that, all its steps."),
        Column("decoder_ms", "Decoder (ms)", significant, "What the autoencoder's decoder takes of that."),
        Column("speedup", "Speed-up", times, f"The latency of “{report['baseline']}” divided by this row's."),
        Column(
            "images_per_second",
            "Images/s",
            significant,
            f"Throughput at a batch of {report['batch_size']}, median over the batches that drew the samples.",
        ),
        Column("throughput", f"Images/s at {listed}", at_batches, f"Throughput at batches of {listed}, one call each."),
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
        Column("load_seconds", "Load (s)", significant, "Loading the pipeline from its folder onto the device."),
        Column("joules_per_image", "Joules/image", significant, "By the driver's counter for the whole device."),
    ]
