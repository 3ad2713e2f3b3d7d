"""The verdict: the first sentences of a report, which say in words how fast and how good the best student is."""

from dataclasses import dataclass
from typing import Any

from eval.pipelines.jobs import steps_text
from eval.report.columns import over_teacher, words
from eval.report.formats import contains_one
from eval.report.table import FigureText, figure


@dataclass(frozen=True)
class Name:
    """The name of a row inside a sentence."""

    text: str


Part = str | FigureText | Name


def verdict(report: dict[str, Any]) -> list[Part]:
    """The verdict in parts, whose texts together are its sentences.

    The best student is the row with the smallest Frechet distance among those that are neither a teacher's row nor the
    baseline. Its distance differs significantly from the baseline's if the 95% interval of their ratio does not
    contain 1. A second sentence describes the fastest student if that is another row, and a third names a row of the
    teacher that is at least as fast and has a smaller distance.

    Args:
        report: The contents of report.json.
    """
    rows = report["rows"]
    students = [i for i, row in enumerate(rows) if row["method"] != "teacher" and row["name"] != report["baseline"]]
    if not students:
        return _single(report)
    best = min(students, key=lambda i: (rows[i]["frechet_distance"], rows[i]["latency_ms"]))
    fastest = min(students, key=lambda i: (rows[i]["latency_ms"], rows[i]["frechet_distance"]))
    parts = [*_speed(best, report), ", and ", *_quality(best, report), "."]
    if fastest != best:
        parts += [" The fastest is ", Name(rows[fastest]["name"]), ", ", figure(fastest, "speedup", report)]
        parts += [" as fast; ", *_quality(fastest, report), "."]
    return [*parts, *_better_teacher(best, report)]


def verdict_text(report: dict[str, Any]) -> str:
    """The verdict as plain text."""
    return "".join(part if isinstance(part, str) else part.text for part in verdict(report))


def _single(report: dict[str, Any]) -> list[Part]:
    latency, distance = figure(0, "latency_ms", report), figure(0, "frechet_distance", report)
    noun = words(report)["noun"]
    parts: list[Part] = [Name(report["rows"][0]["name"]), " takes ", latency, f" ms per {noun}; its "]
    return [*parts, report["frechet_column"], " is ", distance, *_interval(0, "frechet_interval", report), "."]


def _speed(index: int, report: dict[str, Any]) -> list[Part]:
    base, whose = _baseline(report), report["baseline"]
    if over_teacher(report):
        whose = f"the teacher with {steps_text(report['rows'][0]['num_steps'])}"
    parts: list[Part] = [Name(report["rows"][index]["name"]), " is ", figure(index, "speedup", report)]
    parts += [f" as fast as {whose} (", figure(index, "latency_ms", report), " instead of "]
    return [*parts, figure(base, "latency_ms", report), f" ms per {words(report)['noun']})"]


def _quality(index: int, report: dict[str, Any]) -> list[Part]:
    """What the ratio of Frechet distances says, as a clause."""
    ratio = report["rows"][index]["frechet_ratio"]
    if ratio is None:
        return ["its quality cannot be compared, because the baseline's Frechet distance is 0"]
    whose = "the teacher's" if over_teacher(report) else "the baseline's"
    shown = _interval(index, "frechet_ratio_interval", report) or [" (no interval is known, so this is not tested)"]
    return [_judged(index, report), figure(index, "frechet_ratio", report), f" {whose}", *shown]


def _judged(index: int, report: dict[str, Any]) -> str:
    """The judgement in words; without a reference the distance measures the difference from the teacher."""
    interval = report["rows"][index]["frechet_ratio_interval"]
    whose = "the teacher's" if over_teacher(report) else "the baseline's"
    quality = "quality" if report["reference"] is not None else "similarity to the teacher's samples"
    if interval is None:
        return "its Frechet distance is "
    if contains_one(interval):
        return f"its {quality} does not differ significantly from {whose}: its Frechet distance is "
    better = "better" if interval[1] < 1 else "worse"
    return f"its {quality} is significantly {better} than {whose}: its Frechet distance is "


def _interval(index: int, key: str, report: dict[str, Any]) -> list[Part]:
    if report["rows"][index].get(key) is None:
        return []
    return [" (95% interval ", figure(index, key, report), ")"]


def _better_teacher(best: int, report: dict[str, Any]) -> list[Part]:
    rows = report["rows"]
    better = [
        i
        for i, row in enumerate(rows)
        if row["method"] == "teacher"
        and row["name"] != report["baseline"]
        and row["latency_ms"] <= rows[best]["latency_ms"]
        and row["frechet_distance"] < rows[best]["frechet_distance"]
    ]
    if not better:
        return []
    index = min(better, key=lambda i: rows[i]["frechet_distance"])
    parts: list[Part] = [" However, ", Name(rows[index]["name"]), " is at least as fast and has a smaller distance: "]
    return [*parts, figure(index, "latency_ms", report), " ms, ", figure(index, "frechet_distance", report), "."]


def _baseline(report: dict[str, Any]) -> int:
    return next(i for i, row in enumerate(report["rows"]) if row["name"] == report["baseline"])
