"""The model card of an exported pipeline."""

from collections.abc import Sequence
from typing import Any

from teachers.core.teacher import Teacher


def call_lines(calls: Sequence[dict[str, Any]], prompts: bool) -> str:
    """Python code that samples with each of the calls, one line for each.

    Args:
        calls: Number of steps and call arguments of each, as in `distill.json`.
        prompts: Whether the pipeline takes prompts.
    """
    rows = []
    for entry in calls:
        arguments = [repr("a photo of ...")] if prompts else []
        arguments += [f"{key}={value!r}" for key, value in entry["call"].items()]
        rows.append(f"images = pipe({', '.join(arguments)}).images  # {entry['num_steps']} network evaluation(s)")
    return "\n".join(rows)


def lora_section(record: dict[str, Any], pipeline: str, scheduler: str, prompts: bool) -> str:
    """The section on the LoRA file of the student.

    Args:
        record: The contents of `distill.json`.
        pipeline: Class name of the teacher's pipeline.
        scheduler: Class name of the student's scheduler.
        prompts: Whether the pipeline takes prompts.
    """
    return f"""
`{record["lora"]["folder"]}/` is the same student as a LoRA file for the teacher's pipeline:

```python
from diffusers import {pipeline}, {scheduler}

pipe = {pipeline}.from_pretrained({record["teacher"]["path"]!r})
pipe.scheduler = {scheduler}.from_pretrained("path/to/this/folder", subfolder="scheduler")
pipe.load_lora_weights("path/to/this/folder/{record["lora"]["folder"]}")
{call_lines(record["lora"]["calls"], prompts)}
```
"""


def step_note(cost: dict[str, Any]) -> str:
    """The line that says which training step's EMA the pipeline has, if it is not the last one."""
    if cost["exported_step"] == cost["steps"]:
        return ""
    return f"Weights: the EMA of step {cost['exported_step']:,}, which has the best held-out distance of the run.\n"


def model_card(record: dict[str, Any], pipeline: str, scheduler: str, teacher: Teacher) -> str:
    """The README of an exported pipeline, with its description and the calls that sample from it.

    Args:
        record: The contents of `distill.json`.
        pipeline: Class name of the pipeline.
        scheduler: Class name of its scheduler.
        teacher: The teacher.
    """
    prompts, calls = teacher.guided, call_lines(record["calls"], teacher.guided)
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
    lora = lora_section(record, pipeline, scheduler, prompts) if "lora" in record else ""
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
{guidance_note}{lora}
{steps_note} `distill.json` has the same information in machine-readable form.

Training: {cost["steps"]:,} steps, {cost["samples"]:,} samples, {cost["seconds"]:,.0f} seconds on {cost["device"]}.
{step_note(cost)}\
Class: `{pipeline}`. Sampling angles (TrigFlow): {", ".join(f"{t:.4f}" for t in record["times"])} rad.
"""
