"""DiT: a class-conditional diffusion transformer; a prompt is the number or the name of a class."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, DiTPipeline

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent import LatentTeacher
from teachers.loading.source import Pipelines


class DiT(LatentTeacher):
    """`DiTPipeline`. The empty prompt is the null class of classifier-free guidance."""

    pipelines: ClassVar[Pipelines] = (DiTPipeline,)
    takes_flow: ClassVar[bool] = False

    def condition(self, prompts: Sequence[str]) -> Condition:
        return {"class_labels": torch.tensor([self.label(prompt) for prompt in prompts], device=self.device)}

    def label(self, prompt: str) -> int:
        """The class number of a prompt.

        Raises:
            ValueError: If there is no such class.
        """
        classes, text = self.stock.transformer.config.num_embeds_ada_norm, prompt.strip()
        if not text:
            return int(classes)
        if text.isdigit() and int(text) < classes:
            return int(text)
        if text in self.stock.labels:
            return int(self.stock.labels[text])
        known = self.stock.labels
        names = f" or a class name such as {next(iter(known))!r}" if known else ""
        raise ValueError(f"a prompt for this DiT must be a number from 0 to {classes - 1}{names}, got {prompt!r}")

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        pipeline: Any = super().pipeline(student, times)
        names: dict[int, list[str]] = {}
        for name, number in self.stock.labels.items():
            names.setdefault(number, []).append(name)
        pipeline.labels = dict(self.stock.labels)
        pipeline.register_to_config(id2label={number: ", ".join(same) for number, same in names.items()})
        return pipeline
