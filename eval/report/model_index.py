"""The figures as Hugging Face's `model-index`, to paste into a student's model card.

Source: https://huggingface.co/docs/hub/model-cards#evaluation-results. One YAML document a student; JSON strings are
YAML, so every string from outside is quoted as JSON.
"""

import json
from typing import Any

METRICS = ("precision", "recall", "density", "coverage", "diversity_lpips", "prompt_agreement", "latency_ms", "nfe")


def model_index(report: dict[str, Any]) -> str:
    """YAML with one `model-index` document for each run, one result a row of that run."""
    documents = []
    for run in report["runs"]:
        rows = [row for row in report["rows"] if row["pipeline"] == run["folder"]]
        documents.append("\n".join(["model-index:", f"- name: {json.dumps(run['name'])}", "  results:"]))
        documents[-1] += "".join(_result(row, report) for row in rows) or " []"
    return "---\n" + "\n---\n".join(documents) + "\n"


def _result(row: dict[str, Any], report: dict[str, Any]) -> str:
    prompted = report["prompts"]["source"] is not None
    data = report["reference"] or "the teacher's own samples"
    lines = [
        "",
        "  - task:",
        f"      type: {'text-to-image' if prompted else 'unconditional-image-generation'}",
        "    dataset:",
        f"      name: {json.dumps(str(data))}",
        f"      type: {json.dumps(str(data))}",
        "    metrics:",
    ]
    figures = {report["frechet_column"]: row["frechet_distance"]} | {key: row[key] for key in METRICS}
    if row.get("clip_score") is not None:
        figures[report["clip"]["figure"]] = row["clip_score"]
    kinds = {report["frechet_column"]: "frechet_distance", (report.get("clip") or {}).get("figure"): "clip_score"}
    for name, value in figures.items():
        if value is not None:
            lines += [
                f"    - name: {json.dumps(name + ', ' + str(row['num_steps']) + ' steps')}",
                f"      type: {json.dumps(kinds.get(name, name))}",
                f"      value: {json.dumps(value)}",
            ]
    return "\n".join(lines)
