"""Checks of an exported student from its folder alone, without the run's checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch

from distill.checks.stock import prompts_for
from distill.checks.table import Check
from distill.config.registry import TEACHERS, find
from distill.exporting.verify import TOLERANCE, differences, load_exported, promised_calls
from eval.pipelines.jobs import steps_text
from teachers.core.denoiser import Denoiser
from teachers.core.few_step import lcm_timesteps
from teachers.core.teacher import Teacher
from teachers.core.trigflow import VariancePreserving
from teachers.loading.location import INDEX
from teachers.loading.record import RECORD, read_record
from teachers.support.text import read_text

PROMPTS_FILE = "training_prompts.txt"


def check_student(folder: Path, device: torch.device) -> list[Check]:
    """Sample an exported network with the project's own sampler and with its stock pipeline, at every promised call.

    Args:
        folder: The pipeline's folder, with its `distill.json`.
        device: Where the networks go.

    Returns:
        One check for each number of steps, and what the export stored about its own comparison.

    Raises:
        ValueError: If `distill.json` lacks an entry.
    """
    record = checked_record(folder)
    family = find(TEACHERS, record["teacher"]["family"])
    size = family.size_argument(record["teacher"].get("size"))
    teacher: Teacher = family.load(str(folder), device, sigma_data=record["teacher"].get("sigma_data"), **size)
    student = teacher.denoiser
    scales = embed_scales(teacher, student, record)
    pipe = load_exported(family_class(family, folder), folder, device)
    prompts = example_prompts(folder, pipe)
    calls = promised_calls(record["calls"], scales)
    worst = differences(pipe, teacher, student, angles(student, record), calls, prompts)
    checks = [Check(f"export, {steps_text(n)}", gap, TOLERANCE) for n, gap in worst.items()]
    if stored := record.get("checked"):
        checks.append(
            Check("export against the run's student", stored["difference"], TOLERANCE, "when it was exported")
        )
    return checks


def checked_record(folder: Path) -> dict[str, Any]:
    """The contents of a pipeline's `distill.json`; ValueError if it is not readable."""
    file = folder / RECORD
    record = read_record(folder)
    try:
        parts = {"times": record["times"], "calls": record["calls"], "teacher.family": record["teacher"]["family"]}
        if empty := [name for name, value in parts.items() if not value]:
            raise ValueError(f"{empty[0]} must not be empty")
        dict(record["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not readable ({error}); export the run again") from error
    return record


def angles(student: Denoiser, record: dict[str, Any]) -> list[float]:
    """The student's sampling angles on the exported schedule, whose table can differ from the teacher's."""
    times: list[float] = record["times"]
    if not isinstance(student.path, VariancePreserving):
        return times
    timesteps = record.get("timesteps") or lcm_timesteps(student.path, len(times))
    return student.path.angle(torch.tensor(timesteps)).tolist()


def embed_scales(teacher: Teacher, student: Denoiser, record: dict[str, Any]) -> list[float]:
    """The guidance scales that the student has an input for, which then become its defaults; empty for others."""
    scales: list[float] = list(record["options"].get("guidances") or ())
    if scales:
        student.defaults = teacher.guidance_condition(student, torch.tensor(scales[:1]))
        student.guidance_input = True
    return scales


def family_class(family: type[Teacher], folder: Path) -> Any:
    """The class of the pipeline in `folder`, among those of the family and diffusers' own."""
    name = json.loads(read_text(folder / INDEX))["_class_name"]
    for kind in family.pipelines:
        if kind.__name__ == name:
            return kind
    raise ValueError(f"{folder} is a {name}, which the family of its teacher does not take")


def example_prompts(folder: Path, pipe: Any) -> list[str]:
    """Training prompts that the export stored, else prompts that the pipeline takes."""
    stored = folder / PROMPTS_FILE
    if stored.is_file():
        return read_text(stored).split("\n")[:2]
    return prompts_for(type(pipe)) or [""]
