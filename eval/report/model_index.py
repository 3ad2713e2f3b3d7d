"""The figures as Hugging Face's `model-index`, for a student's model card.

Source: https://huggingface.co/docs/hub/model-cards#evaluation-results. There is one YAML document per student. JSON
strings are valid YAML, so all strings are quoted as JSON.
"""

from collections.abc import Iterator
from typing import Any

from eval.pipelines.jobs import steps_text
from teachers.media import MEDIA
from teachers.support.text import cleaned, json_text

MEASUREMENTS = ("latency_ms", "nfe")


def model_index(report: dict[str, Any]) -> str:
    """YAML with one `model-index` document per run, one result for each of its rows, and all metrics in each."""
    report, documents = cleaned(report), []
    for run in report["runs"]:
        rows = [row for row in report["rows"] if row["pipeline"] == run["folder"]]
        documents.append("\n".join(["model-index:", f"- name: {json_text(run['name'])}", "  results:"]))
        documents[-1] += "".join(_result(row, report) for row in rows) or " []"
    return "---\n" + "\n---\n".join(documents) + "\n"


def _result(row: dict[str, Any], report: dict[str, Any]) -> str:
    prompted = report["prompts"]["source"] not in (None, "none")
    dataset = report["reference"] or "the teacher's own samples"
    lines = [
        "",
        "  - task:",
        f"      type: {_task(report, prompted)}",
        "    dataset:",
        f"      name: {json_text(str(dataset))}",
        f"      type: {json_text(str(dataset))}",
        "    metrics:",
    ]
    for kind, name, value in _figures(row, report):
        if value is not None:
            lines += [
                f"    - name: {json_text(name + ', ' + steps_text(row['num_steps']))}",
                f"      type: {json_text(kind)}",
                f"      value: {json_text(value)}",
            ]
    return "\n".join(lines)


def _task(report: dict[str, Any], prompted: bool) -> str:
    """The Hub's name of the task."""
    kind = MEDIA[report["medium"]["name"] if "medium" in report else "image"]
    return kind.tag if prompted else f"unconditional-{kind.name}-generation"


def _figures(row: dict[str, Any], report: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Type, name and value of each figure."""
    for metric in report["metrics"]:
        yield metric["key"], metric["heading"], row.get(metric["key"])
    for key in MEASUREMENTS:
        yield key, key, row[key]
