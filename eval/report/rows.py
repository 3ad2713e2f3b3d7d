"""From what was measured to the rows of the report: distances, their intervals, ties, and likeness to the teacher."""

from typing import Any

from eval.config.names import INCEPTION_MODES
from eval.features.extractors import Extractor
from eval.metrics.diversity import Distance, psnr
from eval.metrics.fid import FrechetTo
from eval.metrics.intervals import interval, ratio_interval, share_interval, standard_error, tied
from eval.metrics.kid import kid
from eval.metrics.prdc import LEAST, prdc
from eval.metrics.reference import Reference
from eval.pipelines.cache import Result
from eval.pipelines.jobs import steps
from eval.pipelines.measure import Job


def rows(
    jobs: list[Job],
    results: list[Result],
    kept: list[bool],
    target: Reference,
    extractor: Extractor,
    distance: Distance | None,
    seed: int,
    base: int = 0,
) -> list[dict[str, Any]]:
    """What report.json says of each row. Ratios and the speed-up are over row `base`; row 0 is the teacher's usual
    one, where there is a teacher.

    `kept[i]` tells that row i came from an earlier run. `distance` is LPIPS, or None.
    """
    measure = FrechetTo(target.mean, target.covariance)
    distances = [measure.distance(result.mean, result.covariance) for result in results]
    influences = [
        measure.influence(result.features, result.mean, result.covariance)
        if len(result.features) > result.features.shape[1]
        else None
        for result in results
    ]
    best, fitting = tied(distances, influences), _best_scores(results)
    teacher = results[0] if jobs[0].method == "teacher" else None
    out = []
    for i, (job, result) in enumerate(zip(jobs, results, strict=True)):
        figures = {k: v for k, v in result.figures.items() if k not in ("images", "prompts_judged")}
        solver, influence, base_influence = figures["solver"], influences[i], influences[base]
        enough = influence is not None and base_influence is not None and i != base and min(distances) > 0
        out.append(
            {
                "name": f"teacher, {solver}, {steps(job.num_steps)}" if solver else job.name,
                "method": job.method,
                "num_steps": job.num_steps,
                **figures,
                "seed": seed,
                "speedup": results[base].figures["latency_ms"] / figures["latency_ms"],
                "frechet_distance": distances[i],
                "frechet_interval": None if influence is None else interval(distances[i], standard_error(influence)),
                "frechet_ratio": distances[i] / distances[base] if distances[base] > 0 else None,
                "frechet_ratio_interval": ratio_interval(distances[i], influence, distances[base], base_influence)
                if enough and influence is not None and base_influence is not None
                else None,
                "best": best[i],
                **_kid(target, result, extractor, seed),
                **_precision_recall(target, result),
                **_likeness(None if i == 0 else teacher, result, distance),
                **_clip(result, fitting[i]),
                "prompt_agreement_interval": _agreement_interval(result),
                "training": job.training,
                "call": job.call,
                "pipeline": str(job.folder),
                "from_cache": kept[i],
            }
        )
    return out


def _agreement_interval(result: Result) -> list[float] | None:
    share, count = result.figures["prompt_agreement"], result.figures["prompts_judged"]
    return None if share is None else share_interval(share, count)


def _kid(target: Reference, result: Result, extractor: Extractor, seed: int) -> dict[str, Any]:
    """The kernel Inception distance, for Inception's features and where the reference keeps its own."""
    if target.features is None or extractor.name not in INCEPTION_MODES:
        return {"kid": None}
    return {"kid": kid(result.features, target.features, seed)[0]}


def _precision_recall(target: Reference, result: Result) -> dict[str, Any]:
    """The four figures against as many real images as there are samples; None each where features or samples lack."""
    count = 0 if target.features is None else min(len(target.features), len(result.features))
    if target.features is None or count < LEAST:
        return dict.fromkeys(("precision", "recall", "density", "coverage", "real_images"))
    figures = prdc(target.features[:count], result.features[:count]).figures()
    return {**figures, "real_images": count}


def _likeness(teacher: Result | None, result: Result, distance: Distance | None) -> dict[str, Any]:
    """PSNR and LPIPS to the teacher's pictures of the same noise; None where sizes differ, and for the teacher."""
    if teacher is None or teacher.images.shape[2:] != result.images.shape[2:]:
        return {"psnr_to_teacher": None, "lpips_to_teacher": None}
    count = min(len(teacher.images), len(result.images))
    one, two = teacher.images[:count], result.images[:count]
    lpips = None if distance is None else distance(one, two).double().mean().item()
    return {"psnr_to_teacher": psnr(one, two), "lpips_to_teacher": lpips}


def _clip(result: Result, best: bool) -> dict[str, Any]:
    """The mean CLIP score and its interval over the draw of the samples; None each without scores."""
    if result.scores is None:
        return {"clip_score": None, "clip_interval": None, "clip_best": False}
    scores = result.scores.double()
    mean = scores.mean().item()
    return {"clip_score": mean, "clip_interval": interval(mean, standard_error(scores)), "clip_best": best}


def _best_scores(results: list[Result]) -> list[bool]:
    """Which rows have the highest mean CLIP score, or cannot be told from it on the same prompts and noise."""
    scores = [None if result.scores is None else -result.scores.double() for result in results]
    if any(score is None for score in scores):
        return [False] * len(results)
    return tied([score.mean().item() for score in scores if score is not None], scores)
