"""What a model card says about a student: its origin, guidance, training, limits and licence."""

from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

from distill.exporting.model_card.metadata import base_models
from distill.exporting.safety import ABSENT, DROPPED, KEPT
from eval.pipelines.signatures import parameters
from eval.report.markdown import escape
from teachers.core.teacher import Teacher
from teachers.support.text import printable

Record = Mapping[str, Any]
SAFETY = {
    KEPT: "The safety checker of the teacher is part of the pipeline; it replaces refused images with black ones.",
    DROPPED: "**The safety checker of the teacher is not part of this pipeline** (`export.safety_checker: false`).",
    ABSENT: "",
}
OTHER_STEPS = "Other timesteps are not supported."
OTHER_PIPELINES = (
    "Other pipelines with the same network, such as image-to-image and ControlNet, start from other noise levels than "
    "the student was distilled for and are not supported."
)


def code_span(text: str) -> str:
    """A text as code in Markdown; backticks in it cannot end the code."""
    return "`" + printable(text).replace("`", "'") + "`"


def origin(record: Record) -> str:
    """The teacher and its fine-tunes."""
    tuned = [f"{code_span(lora['path'])} at {lora['scale']:g}" for lora in record["teacher"].get("loras", ())]
    path = record["teacher"]["path"]
    teacher = "a teacher in memory" if path is None else code_span(path)
    return teacher + (f" with {' and '.join(tuned)}" if tuned else "")


def ignored_arguments(kind: type[DiffusionPipeline]) -> list[str]:
    """Arguments that an exported pipeline takes and ignores: it has no second evaluation for a negative prompt."""
    return [name for name in ("negative_prompt",) if name in parameters(kind)]


def guidance_note(record: Record, teacher: Teacher) -> str:
    """What guidance and negative prompts mean for calls of the student."""
    scale = teacher.call_names.get("guidance_scale", "guidance_scale")
    guidance, negative = record["teacher"]["call"].get(scale), record["teacher"].get("negative_prompt")
    notes = []
    if scales := record["options"].get("guidances"):
        listed = ", ".join(f"{entry:g}" for entry in scales)
        notes.append(f"`{scale}` is an input of the student. It was trained at {listed}; use values in this range.")
    elif guidance is not None:  # 0 is none for Z-Image
        baked = f"The teacher's guidance {guidance:g} is part of the weights"
        if negative:
            baked += f", with the negative prompt {code_span(negative)}"
        if teacher.ignores_guidance:
            notes.append(f"{baked}; `{scale}` has no effect.")
        elif teacher.embeds_guidance:
            value = record["calls"][0]["call"].get(scale)
            notes.append(f"{baked}. Its network was trained at `{scale}={value}`: **keep it in the call**, as above.")
        else:
            value = record["calls"][0]["call"].get(scale, 1.0)
            notes.append(
                f"{baked}, and this pipeline class applies guidance by default: **keep `{scale}={value}` in the "
                "call**, as above."
            )
    if scales and negative:
        notes.append(f"It was trained with the negative prompt {code_span(negative)}.")
    if "negative_prompt" in record.get("ignored_arguments", ()):
        notes.append("`negative_prompt` of a call has no effect: a student is evaluated without a second prompt.")
    return " ".join(notes)


def training_note(record: Record) -> str:
    """Data and cost of the training."""
    cost, data = record["cost"], record.get("data")
    lines = []
    if data:
        source = f" of {code_span(data['hub'])}" if data.get("hub") else ""
        lines.append(f"- Data: {data['rows']:,} {data['kind']}{source}")
    lines.append(
        f"- Training: {cost['steps']:,} steps, {cost['samples']:,} samples, {cost['seconds']:,.0f} seconds on "
        f"{escape(cost['device'])}"
    )
    if form := record["teacher"].get("quantization"):
        line = f"- Weights: those of the teacher in {form}, dequantized, with the changes that the student learned."
        if "lora" in record:
            line += " The LoRA file has these changes; on the teacher's original weights its samples differ slightly."
        lines.append(line)
    if half_life := cost.get("ema_half_life"):
        lines.append(f"- Weights: the moving average with a half-life of {half_life:g} steps")
    if cost["exported_step"] != cost["steps"]:
        lines.append(
            f"- Weights: the EMA of step {cost['exported_step']:,}, which has the best held-out distance of the run."
        )
    if checked := record.get("checked"):
        counts = " or ".join(map(str, checked["steps"]))
        lines.append(
            f"- Export: from the same noise, the pipeline's samples differ from the student's by at most "
            f"{checked['difference']:.1e} (checked at {counts} step{'s' * (counts != '1')})."
        )
    return "\n".join(lines)


def limits_note(record: Record, teacher: Teacher, steps: str) -> str:
    """What the student is not made for."""
    refused = (
        "The scheduler raises an error for more steps than the student was distilled for."
        if teacher.refuses_steps and not record.get("preconditioned")
        else "Use the numbers of steps above only; this pipeline class accepts others, but they give poor samples."
    )
    safety = SAFETY[record.get("safety_checker", ABSENT)]
    others = OTHER_STEPS if "timesteps" in record else OTHER_PIPELINES
    lines = [
        f"- It samples in {steps} step{'s' * (steps != '1')}. {refused} {others}",
        "- It imitates its teacher, with its errors and its bias, and its samples from one prompt may vary less.",
    ]
    return "\n".join([*lines, *([f"- {safety}"] if safety else [])])


def license_note(record: Record) -> str:
    """The licence of the teacher, which that of the student follows."""
    inherited = record["teacher"].get("card", {})
    bases = ", ".join(code_span(name) for name in base_models(record))
    of_base = f" of the base model ({bases})" if bases else " of the teacher"
    name = inherited.get("license_name") or inherited.get("license")
    if not name:
        return f"The files{of_base} do not name its licence. The terms of that licence also apply to this student."
    link = inherited.get("license_link")
    return f"{escape(str(name))}{f' ({escape(str(link))})' if link else ''}, the licence{of_base}."
