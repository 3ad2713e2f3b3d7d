"""Samples of a student for its model card: the Hub's widget and gallery."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.config.recipe import Recipe
from distill.exporting.verify import exact_float32
from eval.pipelines.jobs import steps_text
from eval.pipelines.signatures import argument
from teachers.core.denoiser import Denoiser
from teachers.core.sampling import sample
from teachers.core.teacher import Teacher
from teachers.loading.embedded import EMBEDDED
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
NEUTRAL_BY_MEDIUM = {
    "image": NEUTRAL,
    "video": ("a red fox runs through fresh snow",),
    "audio": ("rain on a tin roof",),
}
SEED = 0


@dataclass(frozen=True)
class Gallery:
    """Samples of a student.

    Attributes:
        prompts: The prompt of each; None without prompts.
        samples: The samples in the judged range, (N, *medium.shape).
    """

    prompts: Sequence[str | None]
    samples: Tensor


def gallery_prompts(recipe: Recipe, teacher: Teacher) -> list[str] | None:
    """The prompts of the gallery: of the validation, of an embedded teacher, or neutral ones; None without any."""
    if not teacher.prompted:
        return None
    if recipe.evaluation.validation_prompts:
        return list(recipe.evaluation.validation_prompts[:COUNT])
    for source in (recipe.teacher.path, recipe.data.prompts, recipe.data.images):
        if source in EMBEDDED:
            return EMBEDDED[source].prompts()[:COUNT]
    if any(argument(kind, "prompt") is None and argument(kind, "class_labels") for kind in type(teacher).pipelines):
        return [str(number) for number in range(COUNT)]
    return list(NEUTRAL_BY_MEDIUM[teacher.medium.name])


@torch.no_grad()
def draw(recipe: Recipe, teacher: Teacher, student: Denoiser, times: Sequence[float]) -> Gallery:
    """Draw the gallery with the most steps that the student was made for, from fixed noise, uncurated.

    Args:
        recipe: The run's recipe.
        teacher: The run's teacher.
        student: The student.
        times: Decreasing angles of its sampling steps, in radians.
    """
    count = COUNT if teacher.medium.name == "image" else 1
    prompts = (gallery_prompts(recipe, teacher) or [""] * count)[:count]
    device = next(student.parameters()).device
    generator = torch.Generator().manual_seed(SEED)

    def noise() -> Tensor:
        return torch.randn(1, *teacher.shape, generator=generator).to(device)

    with exact_float32():
        cond = {k: v.to(device) for k, v in teacher.exact_condition(prompts).items()}
        samples = []
        for row in range(len(prompts)):
            own = {key: value[row : row + 1] for key, value in cond.items()}
            x0 = sample(student, noise(), times, own, noise)
            samples.append(teacher.medium.judged(teacher.exact_decode(x0)).cpu())
    return Gallery(prompts if teacher.prompted else [None] * len(prompts), torch.cat(samples))


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
    count = steps_text(num_steps)
    return f"\n## Samples\n\n<Gallery />\n\nUncurated, from fixed noise, with {count}: {links}.\n"
