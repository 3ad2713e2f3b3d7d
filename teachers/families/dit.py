"""DiT: a class-conditional diffusion transformer; a "prompt" is a class, by number or by name."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, DiTPipeline

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.latent import LatentTeacher
from teachers.loading.source import Pipelines


class DiT(LatentTeacher):
    """`DiTPipeline`. The empty prompt is the class that stands for none, as the pipeline's guidance has it."""

    pipelines: ClassVar[Pipelines] = (DiTPipeline,)

    def condition(self, prompts: Sequence[str]) -> Condition:
        return {"class_labels": torch.tensor([self.label(prompt) for prompt in prompts], device=self.device)}

    def label(self, prompt: str) -> int:
        """The class number of a prompt; ValueError where there is no such class."""
        classes, word = self.stock.transformer.config.num_embeds_ada_norm, prompt.strip()
        if not word:
            return classes
        if word.isdigit() and int(word) < classes:
            return int(word)
        if word in self.stock.labels:
            return self.stock.labels[word]
        known = self.stock.labels
        names = f", or a name that the pipeline knows, such as {next(iter(known))!r}" if known else ""
        raise ValueError(f"{prompt!r} is no class of this DiT; write a number from 0 to {classes - 1}{names}")

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DiffusionPipeline:
        pipeline: Any = super().pipeline(student, times)
        names: dict[int, list[str]] = {}
        for name, number in self.stock.labels.items():
            names.setdefault(number, []).append(name)
        pipeline.labels = dict(self.stock.labels)
        pipeline.register_to_config(id2label={number: ", ".join(same) for number, same in names.items()})
        return pipeline
