"""What users of the demo ask for, and what they get."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from teachers.media import Playable

MAX_PROMPT_LENGTH = 1000  # characters
MAX_BATCH = 8  # samples of one call
MAX_GUIDANCE = 30.0
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        prompt: The prompt; ignored if the pipelines take none.
        seed: Seed of the first sample's noise; sample i of a batch has the seed `seed` + i.
        num_steps: Steps of the students; each uses the nearest number that it supports.
        teacher_steps: Steps of the teacher.
        guidance: Guidance scale of the teacher and of pipelines that are not students; None: that of their calls.
        negative_prompt: Their negative prompt; "": that of their calls.
        count: Samples of one call.
    """

    prompt: str
    seed: int = 0
    num_steps: int = 1
    teacher_steps: int = 0
    guidance: float | None = None
    negative_prompt: str = ""
    count: int = 1

    def check(self) -> None:
        """Raise ValueError if a value is out of range, whatever the pipelines are."""
        for name, text in (("prompt", self.prompt), ("negative prompt", self.negative_prompt)):
            if len(text) > MAX_PROMPT_LENGTH:
                raise ValueError(f"the {name} must have at most {MAX_PROMPT_LENGTH:,} characters, got {len(text):,}")
        if self.num_steps < 1:
            raise ValueError(f"the students' steps must be at least 1, got {self.num_steps}")
        if not 1 <= self.count <= MAX_BATCH:
            raise ValueError(f"the number of samples must be from 1 to {MAX_BATCH}, got {self.count}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"the seed must be from 0 to {LARGEST_SEED}, got {self.seed}")
        if self.guidance is not None and not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(f"the guidance must be from 0 to {MAX_GUIDANCE:g}, got {self.guidance}")


@dataclass(frozen=True)
class TimedSamples:
    """The samples of one pipeline call and their cost.

    Attributes:
        pipeline: The pipeline's name.
        images: The images at their own size; the stills of clips or sounds.
        seeds: Their seeds.
        steps: Denoising steps of the call.
        evaluations: Network evaluations of each sample, counted.
        milliseconds: Time of the pipeline call.
        megabytes: Peak memory during the call: of the GPU, or of the whole process.
        weights: MB of the pipeline's weights.
        baked: Whether guidance is part of the weights, so guidance and negative prompt do not apply.
        playables: The clips or sounds; empty for images.
    """

    pipeline: str
    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    steps: int
    evaluations: float
    milliseconds: float
    megabytes: float
    weights: float
    baked: bool = False
    playables: tuple[Playable, ...] = ()


def batch_arguments(calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Call arguments of one sample each as those of one batch."""
    first = calls[0]
    batch: dict[str, Any] = {}
    for name, value in first.items():
        values = [call[name] for call in calls]
        if isinstance(value, torch.Tensor) and len(calls) > 1:
            batch[name] = torch.cat(values)
        elif isinstance(value, list) and len(value) == 1 and name not in ("timesteps", "sigmas"):
            batch[name] = [entry for value in values for entry in value]
        else:
            batch[name] = sum(values) if name in ("batch_size", "num_images_per_prompt") else value
    return batch
