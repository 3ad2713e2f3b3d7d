"""The model card of an exported pipeline: what it is, and the call that draws with it."""

from collections.abc import Sequence
from typing import Any

from teachers.core.teacher import Teacher


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
