"""The model card of an exported pipeline."""

from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline

from eval.pipelines.generate import parameters
from teachers.core.teacher import Teacher


def call_lines(calls: Sequence[dict[str, Any]], kind: type[DiffusionPipeline]) -> str:
    """Python code that samples with each of the calls, one line for each.

    Args:
        calls: Number of steps and call arguments of each, as in `distill.json`.
        kind: The class of the pipeline.
    """
    takes, rows = parameters(kind), []
    selects = [repr("a photo of ...")] if "prompt" in takes else ["class_labels=[0]"] * ("class_labels" in takes)
    for entry in calls:
        arguments = list(selects)
        arguments += [f"{key}={value!r}" for key, value in entry["call"].items()]
        rows.append(f"images = pipe({', '.join(arguments)}).images  # {entry['num_steps']} network evaluation(s)")
    return "\n".join(rows)


def imported(kind: type[DiffusionPipeline]) -> tuple[str, str]:
    """How a card loads a pipeline: the import line, and the name of the class."""
    package = kind.__module__.partition(".")[0]
    if package == "diffusers":
        return "from diffusers import DiffusionPipeline", "DiffusionPipeline"
    return f"from {kind.__module__} import {kind.__name__}", kind.__name__


def lora_section(record: dict[str, Any], kind: type[DiffusionPipeline], scheduler: str) -> str:
    """The section on the LoRA file of the student.

    Args:
        record: The contents of `distill.json`.
        kind: The class of the teacher's pipeline.
        scheduler: Class name of the student's scheduler.
    """
    pipeline = kind.__name__
    return f"""
`{record["lora"]["folder"]}/` is the same student as a LoRA file for the teacher's pipeline:

```python
from diffusers import {pipeline}, {scheduler}

pipe = {pipeline}.from_pretrained({record["teacher"]["path"]!r})
pipe.scheduler = {scheduler}.from_pretrained("path/to/this/folder", subfolder="scheduler")
pipe.load_lora_weights("path/to/this/folder/{record["lora"]["folder"]}")
{call_lines(record["lora"]["calls"], kind)}
```
"""


def model_card(record: dict[str, Any], kind: type[DiffusionPipeline], scheduler: str, teacher: Teacher) -> str:
    """The README of an exported pipeline, with its description and the calls that sample from it.

    Args:
        record: The contents of `distill.json`.
        kind: The class of the pipeline.
        scheduler: Class name of its scheduler.
        teacher: The teacher.
    """
    calls, (line, loader) = call_lines(record["calls"], kind), imported(kind)
    prompts = "prompt" in parameters(kind)
    steps = " or ".join(str(entry["num_steps"]) for entry in record["calls"])
    cost, guidance = record["cost"], record["teacher"]["call"].get("guidance_scale")
    guidance_note = ""
    if scales := record["options"].get("guidances"):
        listed = ", ".join(f"{scale:g}" for scale in scales)
        guidance_note = (
            f"\n`guidance_scale` is an input of the student. It was trained at {listed}; use values in this range.\n"
        )
    elif guidance and teacher.ignores_guidance:
        guidance_note = (
            f"\nThe teacher's guidance {guidance:g} is part of the weights; `guidance_scale` has no effect.\n"
        )
    elif guidance:
        guidance_note = (
            f"\nThe teacher's guidance {guidance:g} is part of the weights, and this pipeline class applies guidance "
            "by default: **keep `guidance_scale=1.0` in the call**, as above.\n"
        )
    steps_note = (
        "The scheduler raises an error for more steps than the student was distilled for."
        if teacher.refuses_steps
        else "Use the numbers of steps above only; this pipeline class accepts others, but they give poor samples."
    )
    checked_note = ""
    if checked := record.get("checked"):
        checked_note = (
            f"From the same noise, the pipeline's samples differ from the student's by at most "
            f"{checked['difference']:.1e} (checked at {steps} step{'s' * (steps != '1')})."
        )
    lora = lora_section(record, kind, scheduler) if "lora" in record else ""
    distilled = f"distilled with {record['method']} by fewstep {record['version']}"
    return f"""---
library_name: diffusers
pipeline_tag: {"text-to-image" if prompts else "unconditional-image-generation"}
tags: [distillation, {record["method"]}, few-step]
---

# {record["name"]}

A {steps}-step student of `{record["teacher"]["path"]}`, {distilled}.

```python
{line}

pipe = {loader}.from_pretrained("path/to/this/folder")
{calls}
```
{guidance_note}{lora}
{steps_note} Other pipelines with the same network, such as image-to-image and ControlNet, start from other noise levels
than the student was distilled for and are not supported. {checked_note}
`distill.json` has the same information in machine-readable form.

Training: {cost["steps"]:,} steps, {cost["samples"]:,} samples, {cost["seconds"]:,.0f} seconds on {cost["device"]}.
Class: `{kind.__name__}`. Sampling angles (TrigFlow): {", ".join(f"{t:.4f}" for t in record["times"])} rad.
"""
