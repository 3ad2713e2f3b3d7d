"""The model card of an exported pipeline."""

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline

from eval.report.markdown import escape
from teachers.core.teacher import Teacher
from teachers.media import Audio, Medium, Video
from teachers.support.text import cleaned, json_text, printable

SDE_SCHEDULER = "CosineDPMSolverMultistepScheduler"  # of Stable Audio


def call_lines(calls: Sequence[dict[str, Any]], prompt: str | None, output: str = "images") -> str:
    """Python code that samples with each of the calls, one line for each.

    Args:
        calls: Number of steps and call arguments of each, as in `distill.json`.
        prompt: The argument with prompts or classes; None for a pipeline that takes none.
        output: The field of the pipeline's output that holds the samples.
    """
    rows = []
    for entry in calls:
        arguments = [] if prompt is None else [prompt]
        arguments += [f"{key}={value!r}" for key, value in entry["call"].items()]
        rows.append(f"{output} = pipe({', '.join(arguments)}).{output}  # {entry['num_steps']} network evaluation(s)")
    return "\n".join(rows)


def prompt_argument(kind: type[DiffusionPipeline], teacher: Teacher) -> str | None:
    """The argument with a prompt or a class in a call of a pipeline class; None if it takes neither."""
    if not teacher.guided:
        return None
    takes = inspect.signature(kind.__call__).parameters
    names = {name: teacher.call_names.get(name, name) for name in ("prompt", "class_labels")}
    if names["prompt"] not in takes and names["class_labels"] in takes:
        return f"{names['class_labels']}=[0]"
    text = repr("a photo of ..." if teacher.medium.name == "image" else "...")
    return text if names["prompt"] == "prompt" else f"{names['prompt']}=[{text}]"


def lora_section(
    record: dict[str, Any], kind: type[DiffusionPipeline], scheduler: str, prompt: str | None, output: str
) -> str:
    """The section on the LoRA file of the student.

    Args:
        record: The contents of `distill.json`.
        kind: Class of the teacher's pipeline.
        scheduler: Class name of the student's scheduler.
        prompt: See `call_lines`, as for `output`.
        output: The field of the pipeline's output.
    """
    pipeline = kind.__name__
    imports = f"from diffusers import {pipeline}, {scheduler}"
    if not is_stock(kind):
        imports = f"from diffusers import {scheduler}\nfrom {kind.__module__} import {pipeline}"
    return f"""
`{record["lora"]["folder"]}/` is the same student as a LoRA file for the teacher's pipeline:

```python
{imports}

pipe = {pipeline}.from_pretrained({record["teacher"]["path"]!r})
pipe.scheduler = {scheduler}.from_pretrained("path/to/this/folder", subfolder="scheduler")
pipe.load_lora_weights("path/to/this/folder/{record["lora"]["folder"]}")
{call_lines(record["lora"]["calls"], prompt, output)}
```
"""


def is_stock(kind: type[DiffusionPipeline]) -> bool:
    """Whether a pipeline class is one of diffusers, so that `DiffusionPipeline.from_pretrained` finds it."""
    return kind.__module__.partition(".")[0] == "diffusers"


def code_span(text: str) -> str:
    """A text as code in Markdown; backticks in it cannot end the code."""
    return "`" + printable(text).replace("`", "'") + "`"


def step_note(cost: dict[str, Any]) -> str:
    """The line that says which training step's EMA the pipeline has, if it is not the last one."""
    if cost["exported_step"] == cost["steps"]:
        return ""
    return f"Weights: the EMA of step {cost['exported_step']:,}, which has the best held-out distance of the run.\n"


def sample_note(medium: Medium, output: str, scheduler: str = "") -> str:
    """The size of clips or sounds, and how to write one to a file; nothing for images.

    Args:
        medium: What the pipeline samples.
        output: The variable with the samples in the code above.
        scheduler: Class name of the pipeline's scheduler.
    """
    if isinstance(medium, Video):
        code = f'diffusers.utils.export_to_video({output}[0], "clip.mp4", fps={medium.rate:g})'
        needs = "That function needs the packages imageio and imageio-ffmpeg."
    elif isinstance(medium, Audio):
        code = f'scipy.io.wavfile.write("sound.wav", {medium.rate}, {output}[0].T.float().cpu().numpy())'
        needs = "The pipeline needs the package torchsde." if scheduler == SDE_SCHEDULER else ""
    else:
        return ""
    return f"\nEach sample has {medium.size}; `{code}` writes one to a file. {needs}".rstrip() + "\n"


def model_card(
    record: dict[str, Any],
    kind: type[DiffusionPipeline],
    scheduler: str,
    teacher: Teacher,
    absent: Sequence[str] = (),
) -> str:
    """The README of an exported pipeline, with its description and the calls that sample from it.

    Args:
        record: The contents of `distill.json`.
        kind: Class of the pipeline.
        scheduler: Class name of its scheduler.
        teacher: The teacher.
        absent: Components that the pipeline has to be loaded without explicitly.
    """
    record, without = cleaned(record), "".join(f", {name}=None" for name in absent)
    prompt, pipeline = prompt_argument(kind, teacher), kind.__name__
    prompts = prompt is not None and "class_labels" not in prompt
    steps = " or ".join(str(entry["num_steps"]) for entry in record["calls"])
    output = teacher.medium.output
    calls = call_lines(record["calls"], prompt, output)
    loader, module = ("DiffusionPipeline", "diffusers") if is_stock(kind) else (pipeline, kind.__module__)
    scale = teacher.call_names.get("guidance_scale", "guidance_scale")
    cost, guidance = record["cost"], record["teacher"]["call"].get(scale)
    guidance_note = ""
    if scales := record["options"].get("guidances"):
        listed = ", ".join(f"{scale:g}" for scale in scales)
        guidance_note = (
            f"\n`{scale}` is an input of the student. It was trained at {listed}; use values in this range.\n"
        )
    elif guidance and teacher.ignores_guidance:
        guidance_note = f"\nThe teacher's guidance {guidance:g} is part of the weights; `{scale}` has no effect.\n"
    elif guidance:
        guidance_note = (
            f"\nThe teacher's guidance {guidance:g} is part of the weights, and this pipeline class applies guidance "
            f"by default: **keep `{scale}=1.0` in the call**, as above.\n"
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
    lora = lora_section(record, kind, scheduler, prompt, output) if "lora" in record else ""
    distilled = f"distilled with {escape(record['method'])} by fewstep {record['version']}"
    return f"""---
library_name: diffusers
pipeline_tag: {teacher.medium.tag if prompts else f"unconditional-{teacher.medium.name}-generation"}
tags: [distillation, {json_text(record["method"])}, few-step]
---

# {escape(record["name"])}

A {steps}-step student of {code_span(record["teacher"]["path"])}, {distilled}.

```python
from {module} import {loader}

pipe = {loader}.from_pretrained("path/to/this/folder"{without})
{calls}
```
{sample_note(teacher.medium, output, scheduler)}{guidance_note}{lora}
{steps_note} Other pipelines with the same network, such as image-to-image and ControlNet, start from other noise levels
than the student was distilled for and are not supported. {checked_note}
`distill.json` has the same information in machine-readable form.

Training: {cost["steps"]:,} steps, {cost["samples"]:,} samples, {cost["seconds"]:,.0f} seconds on {cost["device"]}.
{step_note(cost)}\
Class: `{pipeline}`. Sampling angles (TrigFlow): {", ".join(f"{t:.4f}" for t in record["times"])} rad.
"""
