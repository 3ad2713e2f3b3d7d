"""Samples of a student for its model card: the Hub's widget and gallery."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config.recipe import Recipe
from distill.exporting.verify import exact_float32
from teachers import pocket
from teachers.core.denoiser import Denoiser
from teachers.core.sampling import sample
from teachers.core.teacher import Teacher
from teachers.media import Medium, Video

FOLDER = "gallery"  # in the pipeline's folder
COUNT = 4  # samples without prompts
# Prompts that belong to nobody: those of the training data may be confidential.
NEUTRAL = (
    "a red fox in fresh snow",
    "a lighthouse on a cliff at sunset",
    "a bowl of oranges on a wooden table",
    "a portrait of an old sailor",
)
SEED = 0


@dataclass(frozen=True)
class Gallery:
    """Samples of a student.

    Attributes:
        prompts: The prompt of each; None without prompts.
        samples: The samples in the judged range, (N, *medium.shape).
        num_steps: The number of sampling steps.
    """

    prompts: Sequence[str | None]
    samples: Tensor
    num_steps: int


def gallery_prompts(recipe: Recipe, teacher: Teacher) -> list[str] | None:
    """The prompts of the gallery: those of the validation, of the pocket teacher, or neutral ones; None without any."""
    if not teacher.guided:
        return None
    if recipe.evaluation.validation_prompts:
        return list(recipe.evaluation.validation_prompts[:COUNT])
    if recipe.data.prompts == "pocket" or recipe.data.images == "pocket":
        return pocket.balanced_prompts(10)[:COUNT]
    if any("class_labels" in entry for entry in _arguments(teacher)):
        return [str(number) for number in range(COUNT)]
    return list(NEUTRAL)


def _arguments(teacher: Teacher) -> list[set[str]]:
    import inspect

    kinds = [set(inspect.signature(kind.__call__).parameters) for kind in type(teacher).pipelines]
    return [names for names in kinds if "prompt" not in names]


@torch.no_grad()
def draw(recipe: Recipe, teacher: Teacher, student: Denoiser, times: Sequence[float]) -> Gallery:
    """Draw the gallery with the most steps that the student was made for, from fixed noise, uncurated.

    Args:
        recipe: The run's recipe.
        teacher: The run's teacher.
        student: The student.
        times: Decreasing angles of its sampling steps, in radians.
    """
    prompts = gallery_prompts(recipe, teacher)
    count = len(prompts) if prompts else (1 if teacher.medium.name != "image" else COUNT)
    if teacher.medium.name != "image" and prompts:
        prompts, count = prompts[:1], 1
    device = next(student.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    with exact_float32():
        cond = {k: v.to(device) for k, v in teacher.exact_condition(prompts or [""] * count).items()}
        samples = []
        for row in range(count):
            noise = torch.randn(1, *teacher.shape, generator=generator).to(device)
            own = {key: value[row : row + 1] for key, value in cond.items()}
            more = lambda: torch.randn(1, *teacher.shape, generator=generator).to(device)  # noqa: E731
            x0 = sample(student, noise, times, own, more)
            samples.append(teacher.medium.judged(teacher.exact_decode(x0)).cpu())
    return Gallery(prompts or [None] * count, torch.cat(samples), len(times))


def write(gallery: Gallery, medium: Medium, folder: Path) -> list[dict[str, Any]]:
    """Write the samples into a pipeline's folder.

    Args:
        gallery: The samples.
        medium: Their medium.
        folder: The pipeline's folder.

    Returns:
        Entries of the front matter's `widget`.
    """
    (folder / FOLDER).mkdir()
    ending = ".png" if medium.name == "image" else ".webp" if isinstance(medium, Video) else ".wav"
    widgets = []
    for number, prompt in enumerate(gallery.prompts):
        file = folder / FOLDER / f"{number}{ending}"
        medium.save(gallery.samples[number : number + 1], file, 1)
        text = {"text": prompt if prompt is not None else f"seed {number}"}
        widgets.append(text | {"output": {"url": f"{FOLDER}/{file.name}"}})
    return widgets


def section(widgets: Sequence[dict[str, Any]], num_steps: int) -> str:
    """The section of the card: the Hub shows `<Gallery />`, other readers the links."""
    if not widgets:
        return ""
    links = " ".join(f"[{n}]({widget['output']['url']})" for n, widget in enumerate(widgets, start=1))
    count = f"{num_steps} step{'s' * (num_steps != 1)}"
    return f"\n## Samples\n\n<Gallery />\n\nUncurated, from fixed noise, with {count}: {links}.\n"
