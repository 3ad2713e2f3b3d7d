"""Reads everything that a comparison needs before weights are loaded: runs, settings, prompts and rows."""

from dataclasses import dataclass

from eval.config.options import Options
from eval.pipelines.generate import check_pipeline
from eval.pipelines.jobs import Job, baseline_of, jobs_of
from eval.pipelines.runs import Run, own_prompts, prompts_for, read_run, shared_setting


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
        known_prompts: How many prompts the source has.
        jobs: The rows, in the order of the report.
        baseline: The index of the row that ratios are relative to.
    """

    runs: list[Run]
    teacher: str | None
    features: str
    reference: str | None
    prompt_source: str | None
    prompts: list[str] | None
    known_prompts: int
    jobs: list[Job]
    baseline: int


def read_inputs(options: Options) -> Inputs:
    """Read the runs of a comparison. No weights are read.

    Raises:
        ValueError: A run is not valid, runs contradict each other, or an option does not fit the runs.
    """
    pickles = options.allow_pickle
    runs = [read_run(run, options.step_counts, options.guidance, pickles) for run in options.runs]
    if options.describes_calls and all(run.teacher_call is not None for run in runs):
        raise ValueError(
            "--steps and --guidance are only for pipelines without a distill.json, all of these have one; omit them"
        )
    teacher = shared_setting(runs, "teacher")
    source = options.prompts or own_prompts(runs)
    features = options.features or shared_setting(runs, "features") or "clean"
    reference = options.reference or shared_setting(runs, "reference")
    reference = None if reference == "teacher" else reference
    if teacher is None and reference is None:
        raise ValueError(
            f"--reference must name real images, because {runs[0].name} has no teacher to compare with: a folder, an "
            ".npz, or clean-fid:NAME/RES/SPLIT"
        )
    prompts, known = prompts_for(None if source == "none" else source, options.samples)
    if options.clip is not None and prompts is None:
        raise ValueError("--clip needs prompts, because a CLIP score compares an image with its prompt; omit --clip")
    jobs = jobs_of(runs, teacher, prompts is not None, options.few_steps, pickles)
    for folder in {job.folder: None for job in jobs}:
        check_pipeline(folder, pickles)
    baseline = 0 if options.baseline is None else baseline_of(jobs, options.baseline)
    return Inputs(runs, teacher, features, reference, source, prompts, known, jobs, baseline)
