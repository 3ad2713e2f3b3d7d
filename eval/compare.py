"""Compare pipelines, for example students with their teacher, and write one report.

    report = compare([Path("runs/pocket-dmd"), Path("runs/pocket-scm")], Path("runs/report"), samples=5000)

All rows use the same prompts and the same initial noise. Rows that were measured before on this machine are read from
`out/cache/`.
"""

import datetime
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.config.options import Options
from eval.features.embedded_judges import arithmetic_agreement
from eval.features.extractors import prompt_judge
from eval.features.media_extractors import extractor_for
from eval.metrics.context import MetricContext, Reference
from eval.metrics.guard import description, working
from eval.metrics.perceptual import load_lpips
from eval.metrics.reference import check_dimensions
from eval.metrics.reference import reference as read_reference
from eval.metrics.registry import InstalledMetrics, installed_metrics
from eval.pipelines.cache import Result
from eval.pipelines.cached import MeasuredRow, measure_rows
from eval.pipelines.inputs import Inputs, read_inputs, teacher_entry
from eval.pipelines.jobs import REFERENCE_NAME
from eval.pipelines.locks import hold_pipelines
from eval.pipelines.machine import choose_device, choose_precision, describe_machine, load_average
from eval.pipelines.measure import GALLERY_IMAGES, SHOWN_IMAGES, gallery_size
from eval.pipelines.runs import pipeline_identity
from eval.pipelines.settings import Settings
from eval.report import write_report
from eval.report.notes import notes
from eval.report.rows import rows
from eval.report.training_log import curves
from teachers.media import MEDIA, to_record
from teachers.support.locks import lock_folder

FOLDERS = ("cache", "figures", *(medium.plural for medium in MEDIA.values()))
OWN = (*FOLDERS, "report.html", "report.md", "report.json", "report.csv", "report.tex", "model-index.yaml", "grid.png")
TEMPORARY = (
    ".report.*.tmp",
    ".grid.png.tmp",
    ".model-index.yaml.tmp",
    "cache/.*.tmp",
    *(f".{n}*.tmp" for n in FOLDERS),
)


def compare(runs: Sequence[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Measure pipelines and write a report with tables, charts and samples into `out`.

    Args:
        runs: Folders of finished runs, folders of diffusers pipelines, or Hub ids.
        out: The folder of the report.
        **options: Further fields of `eval.config.options.Options`, such as samples=5000 or reference="photos/".

    Returns:
        The contents of report.json.

    Raises:
        ValueError: If an option or a run is not valid, or another process writes into `out`. Nothing is written then
            except rows that were measured before.
    """
    with hold_pipelines(runs):
        comparison = Comparison.load(Options(runs, out, **options))
        folder, settings = comparison.options.out, comparison.settings
        machine: dict[str, Any] = dict(describe_machine(settings.device, settings.precision))
        busy = load_average()
        with lock_folder(folder, "--out", "choose another folder with --out", TEMPORARY, OWN):
            measured, reference = comparison.measure(machine)
            report = comparison.report(measured, reference, {**machine, "load_before": busy})
            return write_report(report, [_gallery(row.result) for row in measured], folder, settings.medium)


def _gallery(result: Result) -> Tensor:
    """The first samples of a row at their own size."""
    return result.images[: gallery_size(result.images)] if result.gallery is None else result.gallery


@dataclass(frozen=True)
class Comparison:
    """A comparison that is ready to be measured.

    Attributes:
        options: The checked options.
        inputs: Runs, prompts and rows.
        installed: All installed metrics.
        context: What metrics read.
        settings: What measurements read.
    """

    options: Options
    inputs: Inputs
    installed: InstalledMetrics
    context: MetricContext
    settings: Settings

    @classmethod
    def load(cls, options: Options) -> "Comparison":
        """Read the runs and load the feature extractor, the reference and the networks of the metrics."""
        inputs = read_inputs(options)
        installed, medium = installed_metrics().of(inputs.medium.name), inputs.medium
        device = choose_device(options.device)
        precision = choose_precision(options.precision, device)
        features = extractor_for(inputs.features, medium, device, options.inception_weights, options.allow_pickle)
        dimensions = features.dimensions
        reference = None
        if inputs.reference is not None:
            reference = read_reference(inputs.reference, features, options.size)
            check_dimensions(inputs.reference, reference, features, dimensions)
        context = MetricContext(
            samples=options.samples,
            seed=options.seed,
            device=device,
            extractor=features,
            dimensions=dimensions,
            prompts=inputs.prompts,
            reference=reference,
            has_teacher=inputs.teacher is not None,
            lpips=load_lpips(device) if options.lpips == "auto" else options.lpips,
            prompt_classifier=prompt_judge(inputs.features, device),
            arithmetic_judge=arithmetic_agreement(inputs.features),
            clip=options.clip,
            clap=options.clap,
            scorers=options.scorers,
            allow_pickle=options.allow_pickle,
            medium=medium,
        )
        settings = Settings(
            samples=options.samples,
            batch_size=options.batch_size,
            seed=options.seed,
            device=device,
            precision=precision,
            prompts=inputs.prompts,
            extractor=features,
            metrics=installed.build(context),
            compiled=options.compiled,
            size=options.size,
            timing=options.timing,
            allow_pickle=options.allow_pickle,
            medium=medium,
            sources=inputs.sources,
        )
        return cls(options, inputs, installed, context, settings)

    def measure(self, machine: dict[str, Any]) -> tuple[list[MeasuredRow], Reference]:
        """The measured rows and the reference, which the teacher generates if there is no other."""
        jobs = list(self.inputs.jobs)
        if self.context.reference is None:  # next to the row of the same call, while the pipeline is loaded
            jobs.insert(1, replace(jobs[0], name=REFERENCE_NAME, is_reference=True))
        measured = measure_rows(jobs, self.settings, self.options.out / "cache", machine)
        if self.context.reference is not None:
            return _without_repeated(measured), self.context.reference
        generated = measured.pop(1).result
        return _without_repeated(measured), Reference(generated.mean, generated.covariance, generated.features)

    def report(self, measured: list[MeasuredRow], reference: Reference, machine: dict[str, Any]) -> dict[str, Any]:
        """The contents of report.json."""
        options, inputs, settings = self.options, self.inputs, self.settings
        descriptions = {metric.key: description(metric) for metric in working(settings.metrics)}
        baseline = [row.job for row in measured].index(inputs.jobs[inputs.baseline])
        table = rows(measured, reference, self.installed.classes, settings.metrics, options.seed, baseline)
        metrics = working(settings.metrics)
        headings = {metric.key: metric.heading for metric in metrics}
        problems = [*self.installed.problems, *(metric.problem for metric in settings.metrics if metric.problem)]
        prompts = None if inputs.prompts is None else inputs.prompts[:GALLERY_IMAGES]
        medium = inputs.medium
        words = {"noun": medium.noun, "plural": medium.plural, "size": medium.size}
        described: dict[str, Any] = {} if medium.name == "image" else {"medium": to_record(medium) | words}
        if options.clap is not None:
            described["clap"] = {"source": options.clap, "figure": headings["clap_score"]}
        return {
            "format": 1,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": options.command or command_line(),
            "protocol": None if options.protocol is None else str(options.protocol),
            "teacher": None if inputs.teacher is None else teacher_entry(inputs),
            "runs": [
                {
                    "folder": str(run.folder),
                    "name": run.name,
                    "method": run.method,
                    "contents": pipeline_identity(run.folder),
                }
                for run in inputs.runs
            ],
            "samples": options.samples,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "size": options.size,
            **described,
            "allow_pickle": options.allow_pickle,
            "features": settings.extractor.name,
            "clip": None
            if options.clip is None
            else {"source": options.clip, "figure": headings.get("clip_score", headings.get("frame_clip_score"))},
            "scorers": [{"name": name, "source": source} for name, source in options.scorers.items()],
            "reference": inputs.reference,
            "prompts": {
                "source": inputs.prompt_source,
                "first": prompts and prompts[:SHOWN_IMAGES],
                "shown": prompts,
            },
            "frechet_column": headings["frechet_distance"],
            "baseline": table[baseline]["name"],
            "memory_column": "Peak MB (GPU)" if settings.device.type == "cuda" else "Peak MB (process)",
            "machine": machine,
            "notes": notes(inputs, self.context, options.size, problems),
            "curves": curves(inputs.runs),
            "metrics": [descriptions[metric.key] for metric in metrics],
            "rows": table,
        }


def _without_repeated(measured: list[MeasuredRow]) -> list[MeasuredRow]:
    """The rows without one of the teacher at its usual steps, for few steps, whose solver could not be replaced."""
    usual = measured[0].job.num_steps
    return [
        row
        for row in measured
        if not (row.job.fast_solver and row.job.num_steps == usual and row.result.figures["solver"] is None)
    ]


def command_line() -> str:
    """The command of this process, without the location of the interpreter and of the script `fewstep`."""
    if Path(sys.argv[0]).stem == "fewstep":
        return shlex.join(["fewstep", *sys.argv[1:]])
    return shlex.join(["python", *sys.orig_argv[1:]])
