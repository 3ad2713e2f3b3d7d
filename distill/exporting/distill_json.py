"""The contents of `distill.json`: how to call an exported pipeline, its origin, its evaluation and its cost."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from distill import __version__
from distill.config.recipe import Recipe
from distill.data.dataset import Dataset
from distill.exporting.comfy import known_schedule
from distill.exporting.model_card.metadata import is_hub_id
from distill.exporting.source_files import EVALUATION_SOURCES
from distill.methods.base import Distiller
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher
from teachers.core.trigflow import VariancePreserving
from teachers.loading.embedded import EMBEDDED
from teachers.loading.lora_files import lora_record
from teachers.loading.prompts import read_prompts
from teachers.media import to_record

PROMPTS = "training_prompts.txt"  # in the pipeline's folder
# A copy of evaluation.prompts, because `fewstep eval` reads no other file.
EVALUATION_PROMPTS = "evaluation_prompts.txt"


def data_record(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """The entry "data" of `distill.json`: kind and number of training rows, and the dataset on the Hub if it is one."""
    data = recipe.data
    kind = (
        "source images with instructions"
        if dataset.sources
        else "captioned samples"
        if data.images
        else "latents"
        if data.latents
        else "prompts"
    )
    source = data.images or data.latents or data.prompts
    hub = {"hub": source} if source and data.images and is_hub_id(source) else {}
    return {"kind": kind, "rows": len(dataset.prompt), **hub}


def evaluation_prompts(recipe: Recipe, record: dict[str, Any]) -> list[str]:
    """The prompts of the recipe's evaluation that are stored with the pipeline; none if it names no file of them.

    If the file has become unreadable since the recipe was checked, `record` names the training prompts instead, with a
    warning: the export of a long training must not fail because of it.
    """
    if record["evaluation"]["prompts"] != EVALUATION_PROMPTS or recipe.evaluation.prompts is None:
        return []
    try:
        return read_prompts(recipe.evaluation.prompts)
    except (OSError, ValueError) as error:
        warnings.warn(f"{error}; the pipeline is evaluated with its training prompts instead", stacklevel=2)
        record["evaluation"]["prompts"] = PROMPTS
        return []


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def student_call(teacher: Teacher, student: Denoiser, times: Sequence[float]) -> dict[str, Any]:
    """The call arguments of an exported pipeline for the steps at `times`."""
    return teacher.calls(len(times), times) | teacher.timesteps_call(student, times)


def _has_known_schedule(student: Denoiser) -> bool:
    path = student.path
    return not isinstance(path, VariancePreserving) or known_schedule(path.alphas_cumprod) is not None


def describe(
    recipe: Recipe,
    teacher: Teacher,
    distiller: Distiller,
    student: Denoiser,
    times: Sequence[float],
    cost: dict[str, Any],
    features: str,
) -> dict[str, Any]:
    """The contents of `distill.json`: how to call the pipeline, its origin, its evaluation and its cost.

    Args:
        recipe: The run's recipe.
        teacher: The run's teacher.
        distiller: The method.
        student: The student.
        times: Decreasing angles of its sampling steps, in radians; those of `export.schedule` that are nearest to
            them are recorded.
        cost: Training steps, seconds, samples and device.
        features: The features of the evaluation.
    """
    teacher.export_schedule = recipe.export.schedule
    times = teacher.native_times(student, times)
    timesteps = teacher.native_timesteps(student, times)
    bent = timesteps is None and isinstance(student.path, VariancePreserving)
    source = recipe.teacher
    scale = {"guidance_scale": source.guidance} if student.guidance_input else {}
    negative = {"negative_prompt": source.negative_prompt} if source.negative_prompt is not None else {}
    return {
        "format": 1,
        "version": __version__,
        "name": recipe.name,
        "method": recipe.method["name"],
        "options": {key: value for key, value in recipe.method.items() if key != "name"},
        "teacher": {
            "family": source.family,
            "path": source.path,
            "sigma_data": teacher.denoiser.path.sigma_data,
            **({"size": dict(source.size)} if source.size else {}),
            **negative,
            **({"loras": [lora_record(lora) for lora in source.loras]} if source.loras else {}),
            **({} if recipe.memory.quantize == "none" else {"quantization": recipe.memory.quantize}),
            "num_steps": source.num_steps,
            "call": teacher.usual_call(source.num_steps, source.guidance) | negative,
        },
        **({} if teacher.medium.name == "image" else {"medium": to_record(teacher.medium)}),
        "times": times,
        **({} if timesteps is None else {"timesteps": timesteps}),
        "export": recipe.export.schedule,  # what the recipe says; "schedule" is what the pipeline has
        "schedule": "bent" if bent else "native",
        **({"preconditioned": True} if student.path.preconditioned else {}),
        **({} if _has_known_schedule(student) else {"own_schedule": True}),  # that ComfyUI and A1111 do not have
        **({"consistency": True} if student.is_consistency else {}),
        "calls": [
            {"num_steps": n, "call": student_call(teacher, student, times[:n]) | scale}
            for n in distiller.step_counts(times)
        ],
        "evaluation": {
            "prompts": _evaluation_prompts(recipe, teacher),
            "features": features,
            "reference": recipe.evaluation.reference,
        },
        "cost": cost,
    }


def _evaluation_prompts(recipe: Recipe, teacher: Teacher) -> str | None:
    """The source of prompts for `fewstep eval`: an embedded teacher, or a file or folder in the pipeline's folder."""
    if not teacher.prompted:
        return None
    if teacher.source:
        return EVALUATION_SOURCES
    named, data = recipe.evaluation.prompts, recipe.data
    chosen = named or data.images or data.latents or data.prompts
    if chosen is not None and chosen in EMBEDDED:
        return chosen
    return EVALUATION_PROMPTS if named else PROMPTS
