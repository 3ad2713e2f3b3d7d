"""Cells of the table that hold for every family: files in other forms, and ComfyUI's own formulas."""

import json
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from benchmarks.wild.cells import PROMPT, Case
from distill.exporting.formats import Form, convert
from distill.exporting.verify import exact_float32
from teachers.core.sampling import sample
from teachers.core.trigflow import Flow


def images(pipe: object, case: Case) -> list[Tensor]:
    """The images of every documented call."""
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    found = []
    for call in case.calls():
        torch.manual_seed(4)
        with exact_float32():
            rng = torch.Generator().manual_seed(4)
            found.append(pipe(PROMPT, **call, generator=rng, output_type="pt").images)  # type: ignore[operator]
    return found


def image_gap(pipe: object, case: Case) -> float:
    """The largest difference of a pipeline's images from the exported one's, which the export compared already."""
    pairs = zip(images(pipe, case), images(case.load(), case), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def half_precision(case: Case) -> float:
    """`--variant fp16`, computed in float32: the difference is the rounding of the weights."""
    out = case.work / "half"
    convert(case.folder, out, "diffusers", Form(half=True))
    return image_gap(DiffusionPipeline.from_pretrained(out, variant="fp16").to(torch.float32), case)


def sharded(case: Case) -> float:
    """`--max-shard-size`, with several files for the network."""
    out = case.work / "shards"
    convert(case.folder, out, "diffusers", Form(shard="30KB"))
    network = "unet" if (out / "unet").is_dir() else "transformer"
    assert len(list((out / network).glob("*-of-*.safetensors"))) > 1
    return image_gap(DiffusionPipeline.from_pretrained(out), case)


def single_file(case: Case) -> float:
    """`--format single-file`, read by `from_single_file` with the base model's config, and the exported scheduler."""
    out = case.work / "student.safetensors"
    if not out.exists():
        convert(case.folder, out, "single-file", Form())
    pipe = case.load()
    again = type(pipe).from_single_file(str(out), config=str(case.teacher_folder), scheduler=pipe.scheduler)
    for part in again.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # diffusers leaves T5 in training mode, with dropout
    return image_gap(again, case)


def comfy(case: Case) -> float:
    """ComfyUI's formulas at the workflow's sigmas, with the student's own network, against the project's sampler.

    For a table: input x / sqrt(sigma^2 + 1), clean x - sigma eps, and noise sqrt(sigma_max^2 + 1) z at the end of the
    table, sigma z elsewhere. The sampler "lcm" adds sigma z to the clean latents.
    """
    out = case.work / "student.comfyui.json"
    if not out.exists():
        convert(case.folder, case.work / "student.safetensors", "single-file", Form())
    text = json.loads(out.read_text(encoding="utf-8"))["6"]["inputs"]["sigmas"]
    levels = [float(level) for level in text.split(", ")]
    student, times = case.student, case.record["times"]
    rng = torch.Generator().manual_seed(6)
    noises = [torch.randn(1, *case.teacher.shape, generator=rng) for _ in times]
    cond, flow = case.teacher.condition([PROMPT]), isinstance(student.path, Flow)
    largest = float(student.path.angle(torch.tensor([student.path.num_train_timesteps - 1.0])).tan())
    with exact_float32():
        rest = iter(noises[1:])
        expected = sample(student, noises[0], times, cond, lambda: next(rest), torch.float64)
        x0 = torch.zeros_like(noises[0])
        for i, (level, noise) in enumerate(zip(levels, noises, strict=False)):
            if flow:
                native = (1 - level) * x0 + level * noise
            else:
                full = i == 0 and abs(level / largest - 1) < 1e-4
                x = x0 + (noise * (level**2 + 1) ** 0.5 if full else noise * level)
                native = x / (level**2 + 1) ** 0.5
            t = torch.full((1,), times[i], dtype=torch.float64)
            x0 = student.denoise(native / student.path.scale(t).item(), t, cond)
    return float((x0 - expected).abs().max() / expected.std().clamp_min(1))


FILES: dict[str, Callable[[Case], float]] = {
    "--variant fp16": half_precision,
    "--max-shard-size": sharded,
    "--format single-file, from_single_file": single_file,
    "ComfyUI workflow (its formulas)": comfy,
}
