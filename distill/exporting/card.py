"""The model card of an exported pipeline."""

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline

from distill.exporting.model_card import gallery
from distill.exporting.model_card.front_ends import MARKER, PLACEHOLDER, TEACHER, FrontEnd
from distill.exporting.model_card.metadata import metadata, written
from distill.exporting.model_card.sections import guidance_note, license_note, limits_note, origin, training_note
from distill.exporting.usage import usage_section
from eval.config.names import METHOD_TITLES
from eval.report.markdown import escape
from teachers.core.teacher import Teacher
from teachers.media import Audio, Medium, Video
from teachers.support.text import cleaned

SDE_SCHEDULER = "CosineDPMSolverMultistepScheduler"  # of Stable Audio


def call_lines(calls: Sequence[dict[str, Any]], prompt: str | None, output: str = "images", note: str = "") -> str:
    """Python code that samples with each of the calls, one line for each.

    Args:
        calls: Number of steps and call arguments of each, as in `distill.json`.
        prompt: The argument with prompts or classes; None for a pipeline that takes none.
        output: The field of the pipeline's output that holds the samples.
        note: The end of the comment on each line.
    """
    rows = []
    for entry in calls:
        arguments = [] if prompt is None else [prompt]
        arguments += [f"{key}={value!r}" for key, value in entry["call"].items()]
        rows.append(
            f"{output} = pipe({', '.join(arguments)}).{output}  # {entry['num_steps']} network evaluation(s){note}"
        )
    return "\n".join(rows)


def prompt_argument(kind: type[DiffusionPipeline], teacher: Teacher) -> str | None:
    """The argument with a prompt or a class in a call of a pipeline class; None if it takes neither."""
    if not teacher.prompted:
        return None
    takes = inspect.signature(kind.__call__).parameters
    names = {name: teacher.call_names.get(name, name) for name in ("prompt", "class_labels")}
    if names["prompt"] not in takes and names["class_labels"] in takes:
        return f"{names['class_labels']}=[0]"
    text = repr("a photo of ..." if teacher.medium.name == "image" else "...")
    if teacher.source:
        values = dict(zip(teacher.source, ("image", "mask"), strict=False))
        text = ", ".join(["prompt='...'", *(f"{name}={value}" for name, value in values.items())])
    if names["prompt"] != "prompt":
        return f"{names['prompt']}=[{text}]"
    first = list(takes)[1]  # after self; an image in some pipelines
    return text if teacher.source or first == "prompt" else f"prompt={text}"


def source_lines(teacher: Teacher) -> str:
    """Python code that reads a source image and its mask at the size of the student; "" for other students."""
    if not teacher.source:
        return ""
    height, width = teacher.image_size
    names = ("image", "mask")[: len(teacher.source)]
    reads = [f'{name} = load_image("{name}.png").resize(({width}, {height}))\n' for name in names]
    return "".join(reads)


def source_import(teacher: Teacher) -> str:
    """The import that `source_lines` needs."""
    return "from diffusers.utils import load_image\n" if teacher.source else ""


def lora_front_end(
    record: dict[str, Any],
    kind: type[DiffusionPipeline],
    scheduler: str,
    prompt: str | None,
    output: str,
    teacher: Teacher,
) -> FrontEnd:
    """The call of the student's LoRA file on the teacher's pipeline.

    Args:
        record: The contents of `distill.json`.
        kind: Class of the teacher's pipeline.
        scheduler: Class name of the student's scheduler.
        prompt: See `call_lines`, as for `output`.
        output: The field of the pipeline's output.
        teacher: The teacher.
    """
    pipeline, folder = kind.__name__, record["lora"]["folder"]
    imports = f"from diffusers import {pipeline}, {scheduler}"
    sources, load_image = source_lines(teacher), source_import(teacher)
    if not is_stock(kind):
        imports = f"from diffusers import {scheduler}\nfrom {kind.__module__} import {pipeline}"
    file = f'subfolder="{folder}", weight_name="pytorch_lora_weights.safetensors"'
    tuned = record["teacher"].get("loras", [])
    names = [*(f"tune{n}" for n in range(1, len(tuned) + 1)), "few_step"]
    loads = [f'pipe.load_lora_weights({lora["path"]!r}, adapter_name="tune{n}")' for n, lora in enumerate(tuned, 1)]
    adapter = ', adapter_name="few_step"' if tuned else ""
    loads.append(f'pipe.load_lora_weights("{PLACEHOLDER}", {file}{adapter})')
    if tuned:
        scales = [*(lora["scale"] for lora in tuned), 1.0]
        loads.append(f"pipe.set_adapters({names}, {scales})")
    lines = "\n".join(loads)
    code = f"""{imports}
{load_image}
pipe = {pipeline}.from_pretrained({record["teacher"]["path"] or TEACHER!r})
pipe.scheduler = {scheduler}.from_pretrained("{PLACEHOLDER}", subfolder="scheduler")
{lines}
{sources}{call_lines(record["lora"]["calls"], prompt, output, ignored_note(record))}
"""
    note = f"`{folder}/` is the same student as a LoRA file for the teacher's pipeline."
    if tuned:
        note += " It was trained on the teacher with its fine-tunes, so it needs them at the scales above."
    return FrontEnd("LoRA on the teacher, with diffusers", "python", code, note)


def ignored_note(record: dict[str, Any]) -> str:
    """The end of the comment on a call: arguments that it takes without effect."""
    ignored = record.get("ignored_arguments", [])
    return f"; {' and '.join(ignored)} {'has' if len(ignored) == 1 else 'have'} no effect" if ignored else ""


def is_stock(kind: type[DiffusionPipeline]) -> bool:
    """Whether a pipeline class is one of diffusers, so that `DiffusionPipeline.from_pretrained` finds it."""
    return kind.__module__.partition(".")[0] == "diffusers"


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
    return f"Each sample has {medium.size}; `{code}` writes one to a file. {needs}".rstrip()


def model_card(
    record: dict[str, Any],
    kind: type[DiffusionPipeline],
    scheduler: str,
    teacher: Teacher,
    absent: Sequence[str] = (),
    widgets: Sequence[dict[str, Any]] = (),
) -> str:
    """The README of an exported pipeline, with its description and the calls that sample from it.

    Args:
        record: The contents of `distill.json`.
        kind: Class of the pipeline.
        scheduler: Class name of its scheduler.
        teacher: The teacher.
        absent: Components that the pipeline has to be loaded without explicitly.
        widgets: Samples in the pipeline's folder, from `gallery.write`.
    """
    record, without = cleaned(record), "".join(f", {name}=None" for name in absent)
    prompt, pipeline = prompt_argument(kind, teacher), kind.__name__
    prompts = prompt is not None and "class_labels" not in prompt
    steps = " or ".join(str(entry["num_steps"]) for entry in record["calls"])
    output = teacher.medium.output
    loader, module = ("DiffusionPipeline", "diffusers") if is_stock(kind) else (pipeline, kind.__module__)
    sources = source_lines(teacher)
    code = f"""from {module} import {loader}
{source_import(teacher)}
pipe = {loader}.from_pretrained("{PLACEHOLDER}"{without})
{sources}{call_lines(record["calls"], prompt, output, ignored_note(record))}
"""
    front_ends = [FrontEnd("diffusers", "python", code, sample_note(teacher.medium, output, scheduler))]
    if "lora" in record:
        front_ends.append(lora_front_end(record, kind, scheduler, prompt, output, teacher))
    tag = (
        "image-to-image"
        if teacher.source
        else teacher.medium.tag
        if prompts
        else f"unconditional-{teacher.medium.name}-generation"
    )
    sections = [
        "## Use\n\n" + "\n".join(front_end.section() for front_end in front_ends),
        usage_section(record, kind),
        f"## Guidance\n\n{guidance_note(record, teacher)}" if teacher.guided else "",
        gallery.section(widgets, len(record["times"])),
        f"## Training\n\n{training_note(record)}",
        f"## Limits\n\n{limits_note(record, teacher, steps)}",
        f"## Licence\n\n{license_note(record)}",
        "`distill.json` has the same information in machine-readable form.",
        f"Class: `{pipeline}`. Sampling angles (TrigFlow): {', '.join(f'{t:.4f}' for t in record['times'])} rad.",
    ]
    title = f"# {escape(record['name'])}"
    method = escape(METHOD_TITLES.get(record["method"], record["method"]))
    first = f"A {steps.replace(' or ', '- or ')}-step student of {origin(record)}, distilled with {method} by fewstep "
    body = "\n\n".join(section.strip("\n") for section in sections if section)
    front = written(metadata(record, tag, widgets))
    return f"{front}\n{title}\n\n{first}{record['version']}.\n\n{body}\n\n{MARKER.format(PLACEHOLDER)}\n"
