"""Reads everything that a comparison needs before weights are loaded: runs, settings, prompts and rows."""

from dataclasses import dataclass
from typing import Any

from eval.config.media_names import WITHOUT_WEIGHTS, check_features
from eval.config.options import Options
from eval.pipelines.jobs import Job, baseline_of, jobs_of
from eval.pipelines.loading import check_pipeline
from eval.pipelines.run_prompts import own_prompts, prompts_for
from eval.pipelines.runs import Run, read_run
from eval.pipelines.shared_settings import shared_setting
from eval.pipelines.sources import Sources, sources_for
from teachers.loading.registry import feature_models
from teachers.media import ANY_IMAGE, MEDIA, Image, Medium


@dataclass(frozen=True)
class Inputs:
    """The inputs of a comparison.

    Attributes:
        runs: The compared runs.
        teacher: Their teacher, or None if all are external pipelines.
        features: The feature extractor.
        reference: The reference, or None for the teacher's own samples.
        prompt_source: The source of prompts, "none" or None.
        prompts: One prompt for each sample, or None.
        sources: The source images of the samples, or None.
        known_prompts: How many prompts the source has.
        jobs: The rows, in the order of the report.
        baseline: The index of the row that ratios are relative to.
        medium: What all rows sample.
    """

    runs: list[Run]
    teacher: str | None
    features: str
    reference: str | None
    prompt_source: str | None
    prompts: list[str] | None
    sources: Sources | None
    known_prompts: int
    jobs: list[Job]
    baseline: int
    medium: Medium


def read_inputs(options: Options) -> Inputs:
    """Read the runs of a comparison. No weights are read.

    Raises:
        ValueError: If a run is not valid, runs contradict each other, or an option does not fit the runs.
    """
    pickles = options.allow_pickle
    runs = [read_run(run, options.step_counts, options.guidance, pickles) for run in options.runs]
    if options.describes_calls and all(run.teacher_call is not None for run in runs):
        raise ValueError(
            "--steps and --guidance are only for pipelines without a distill.json, all of these have one; omit them"
        )
    medium = shared_medium(runs)
    if options.size is not None and not isinstance(medium, Image):
        raise ValueError(f"--size is for images, got {options.size} for {medium.plural}; omit it")
    teacher = shared_setting(runs, "teacher")
    source = options.prompts or own_prompts(runs)
    features = options.features or shared_setting(runs, "features") or _usual_features(medium)
    check_features(features, medium.name, feature_models())
    reference = options.reference or shared_setting(runs, "reference")
    reference = None if reference == "teacher" else reference
    if teacher is None and reference is None:
        raise ValueError(
            f"--reference must name real {medium.plural}, because {runs[0].name} has no teacher to compare with: a "
            "folder, an .npz, or clean-fid:NAME/RES/SPLIT"
        )
    sources = sources_for([run.folder for run in runs], None if source == "none" else source)
    if sources is None:
        prompts, known = prompts_for(None if source == "none" else source, options.samples)
    else:
        prompts, known = sources.prompts(options.samples), len(sources.rows)
    _check_scores(options, medium, prompts is not None)
    jobs = jobs_of(runs, teacher, prompts is not None, options.few_steps, pickles)
    for folder in {job.folder: None for job in jobs}:
        check_pipeline(folder, pickles)
    baseline = 0 if options.baseline is None else baseline_of(jobs, options.baseline)
    return Inputs(runs, teacher, features, reference, source, prompts, sources, known, jobs, baseline, medium)


def _check_scores(options: Options, medium: Medium, has_prompts: bool) -> None:
    """Raise ValueError if an option adds scores that the medium does not have, or scores of prompts without prompts."""
    for flag, chosen, media, pair in (
        ("--clip", options.clip, ("image", "video"), "CLIP score compares an image"),
        ("--clap", options.clap, ("audio",), "CLAP score compares a sound"),
        ("--score", options.scorers, ("image",), "score of --score compares an image"),
    ):
        if not chosen:
            continue
        if medium.name not in media:
            known = " and ".join(MEDIA[name].plural for name in media)
            raise ValueError(f"{flag} is for {known}, got a comparison of {medium.plural}; omit it")
        if not has_prompts:
            raise ValueError(f"{flag} needs prompts, because a {pair} with its prompt; omit {flag}")


def teacher_entry(inputs: Inputs) -> dict[str, Any]:
    """The entry "teacher" of report.json: its path, its fine-tunes and its usual call."""
    loras = next(run.teacher_loras for run in inputs.runs if run.teacher is not None)
    tuned = {"loras": [{"path": lora.path, "scale": lora.scale} for lora in loras]} if loras else {}
    return {"path": inputs.teacher, **tuned, "call": inputs.jobs[0].call}


def _usual_features(medium: Medium) -> str:
    return "clean" if isinstance(medium, Image) else WITHOUT_WEIGHTS[medium.name]


def shared_medium(runs: list[Run]) -> Medium:
    """What all runs sample.

    Raises:
        ValueError: If they sample different media, or different sizes of clips or sounds.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.medium != first.medium:
            one, two = (f"{each.name} makes {each.medium.plural}{_size(each.medium)}" for each in (first, run))
            raise ValueError(f"all runs of a comparison must make samples of one kind and size: {one}, {two}")
    return first.medium


def _size(medium: Medium) -> str:
    return "" if medium == ANY_IMAGE else f" of {medium.size}"
