"""A finished run as an ordinary diffusers pipeline: the folder, its model card, and `distill.json` for the report.

    python -m distill.export RUN [--push-to-hub NAME [--private]]

The command (`distill.exporting.hub`) also exports a stopped run's newest checkpoint, and uploads.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import __version__
from distill.config.recipe import Recipe
from distill.methods.base import Distiller
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher, save_pipeline
from teachers.networks.adapters import Adapted
from teachers.support.errors import speak

PROMPTS = "training_prompts.txt"  # in the pipeline's folder
LORA = "lora"  # there too, where the student is an adapter


def export(
    run: Path,
    teacher: Teacher,
    student: Denoiser,
    times: Sequence[float],
    record: dict[str, Any],
    captions: Sequence[str],
) -> Path:
    """Write `run`/pipeline: `student` at the falling angles `times` (radians) as a stock pipeline. Atomic.

    `record` is what `describe` says of it. The distinct `captions` of the training travel along, for the report to draw
    with where the recipe names no others.
    """
    final, temporary = run / "pipeline", run / ".pipeline.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline = teacher.pipeline(student, times)
    save_pipeline(pipeline, temporary)
    if isinstance(student.network, Adapted) and teacher.save_lora(student, times, temporary / LORA):
        calls = [
            {**entry, "call": teacher.lora_call(entry["num_steps"], times[: entry["num_steps"]])}
            for entry in record["calls"]
        ]
        record = record | {"lora": {"folder": LORA, "calls": calls}}
    if record["evaluation"]["prompts"] == PROMPTS:
        (temporary / PROMPTS).write_text("\n".join(" ".join(caption.split()) for caption in captions) + "\n")
    (temporary / "distill.json").write_text(json.dumps(record, indent=2) + "\n")
    classes = type(pipeline).__name__, type(pipeline.scheduler).__name__
    (temporary / "README.md").write_text(model_card(record, *classes, teacher))
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    return final


def describe(
    recipe: Recipe,
    teacher: Teacher,
    distiller: Distiller,
    student: Denoiser,
    times: Sequence[float],
    cost: dict[str, Any],
    features: str,
) -> dict[str, Any]:
    """What `distill.json` says: how to call the pipeline, what it came from, how to judge it, what it cost."""
    source, used = recipe.teacher, recipe.data.prompts or recipe.data.images
    scale = {"guidance_scale": source.guidance} if student.defaults else {}  # a student that is told its guidance
    prompts = recipe.evaluation.prompts or ("pocket" if used == "pocket" else PROMPTS)
    return {
        "format": 1,
        "version": __version__,
        "name": recipe.name,
        "method": recipe.method["name"],
        "options": {key: value for key, value in recipe.method.items() if key != "name"},
        "teacher": {
            "family": source.family,
            "path": source.path,
            "call": teacher.usual_call(source.num_steps, source.guidance),
        },
        "times": list(times),
        "calls": [{"num_steps": n, "call": teacher.calls(n, times[:n]) | scale} for n in distiller.step_counts(times)],
        "evaluation": {
            "prompts": prompts if teacher.guided else None,
            "features": features,
            "reference": recipe.evaluation.reference,
        },
        "cost": cost,
    }


def call_lines(calls: Sequence[dict[str, Any]], prompts: bool) -> str:
    """Python that draws with each of the calls."""
    rows = []
    for entry in calls:
        arguments = [repr("a photo of ...")] if prompts else []
        arguments += [f"{key}={value!r}" for key, value in entry["call"].items()]
        rows.append(f"images = pipe({', '.join(arguments)}).images  # {entry['num_steps']} network evaluation(s)")
    return "\n".join(rows)


def lora_section(record: dict[str, Any], pipeline: str, scheduler: str, prompts: bool) -> str:
    """How to use the LoRA file that lies beside the pipeline."""
    return f"""
`{record["lora"]["folder"]}/` is the same student as a LoRA file for its teacher's pipeline:

```python
from diffusers import {pipeline}, {scheduler}

pipe = {pipeline}.from_pretrained({record["teacher"]["path"]!r})
pipe.scheduler = {scheduler}.from_pretrained("path/to/this/folder", subfolder="scheduler")
pipe.load_lora_weights("path/to/this/folder/{record["lora"]["folder"]}")
{call_lines(record["lora"]["calls"], prompts)}
```
"""


def model_card(record: dict[str, Any], pipeline: str, scheduler: str, teacher: Teacher) -> str:
    """The exported folder's README: what it is and the call that gives its images."""
    prompts, calls = teacher.guided, call_lines(record["calls"], teacher.guided)
    cost, guidance = record["cost"], record["teacher"]["call"].get("guidance_scale")
    baked = ""
    if scales := record["options"].get("guidances"):
        listed = ", ".join(f"{scale:g}" for scale in scales)
        baked = f"\n`guidance_scale` is an input of the student, trained at {listed}: stay within these.\n"
    elif guidance and teacher.ignores_guidance:
        baked = f"\nThe teacher's guidance {guidance:g} is in the weights: `guidance_scale` has no effect here.\n"
    elif guidance:
        baked = (
            f"\nThe teacher's guidance {guidance:g} is in the weights, and this class of pipelines would apply its own "
            "on top: **keep `guidance_scale=1.0` in the call**, as above.\n"
        )
    refused = (
        "More steps than it was distilled for are refused by the scheduler."
        if teacher.refuses_steps
        else "It draws well with the numbers of steps above only; this class of pipelines does not refuse others."
    )
    low_rank = lora_section(record, pipeline, scheduler, prompts) if "lora" in record else ""
    steps = " or ".join(str(c["num_steps"]) for c in record["calls"])
    distilled = f"distilled with {record['method']} by fewstep {record['version']}"
    return f"""---
library_name: diffusers
pipeline_tag: {"text-to-image" if prompts else "unconditional-image-generation"}
tags: [distillation, {record["method"]}, few-step]
---

# {record["name"]}

A {steps}-step student of `{record["teacher"]["path"]}`, {distilled}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")
{calls}
```
{baked}{low_rank}
{refused} `distill.json` holds the same for machines.

Training: {cost["steps"]:,} steps, {cost["samples"]:,} samples, {cost["seconds"]:,.0f} seconds on {cost["device"]}.
Class: `{pipeline}`. Sampling angles (TrigFlow): {", ".join(f"{t:.4f}" for t in record["times"])} rad.
"""


if __name__ == "__main__":
    from distill.exporting.hub import command  # which imports the loop, which imports this module

    speak(command)
