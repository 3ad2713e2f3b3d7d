"""Captions of the pocket video teacher: ten classes of clothing, eight motions, several templates."""

import re

import torch
from torch import Tensor

from teachers.media.motion import MOTIONS
from teachers.pocket.captions import label_of as class_of

OBJECTS: tuple[str, ...] = (
    "a t-shirt",
    "trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)
TEMPLATES: tuple[str, ...] = ("{0} {1}", "{0}, {1}", "a video of {0} {1}", "a clip of {0} that is {1}")
VAGUE_TEMPLATES: tuple[str, ...] = ("{0}", "a video of {0}", "something {1}")

_MOTION = re.compile(r"\b(" + "|".join(MOTIONS) + r")\b", re.IGNORECASE)


def captions(label: int, motion: int) -> list[str]:
    """The captions that name both a class (0..9) and a motion (0..7)."""
    return [template.format(OBJECTS[label], MOTIONS[motion]) for template in TEMPLATES]


def vague_captions(label: int, motion: int) -> list[str]:
    """The captions that name only one of a class (0..9) and a motion (0..7)."""
    return [template.format(OBJECTS[label], MOTIONS[motion]) for template in VAGUE_TEMPLATES]


def all_captions() -> list[str]:
    """All captions that the pocket video teacher was trained on, each once."""
    every = (
        caption
        for label in range(len(OBJECTS))
        for motion in range(len(MOTIONS))
        for caption in captions(label, motion) + vague_captions(label, motion)
    )
    return list(dict.fromkeys(every))


def balanced_labels(count: int) -> Tensor:
    """`count` pairs of class and motion, (count, 2), that cycle through all 80 pairs in a fixed order."""
    index = torch.arange(count)
    label = index % len(OBJECTS)
    motion = (index // len(OBJECTS) + label) % len(MOTIONS)  # any ten consecutive prompts differ in motion too
    return torch.stack([label, motion], dim=1)


def balanced_prompts(count: int) -> list[str]:
    """The prompts of `balanced_labels(count)`, which cycle through the templates."""
    pairs = len(OBJECTS) * len(MOTIONS)
    labels = balanced_labels(count).tolist()
    return [captions(c, m)[(k // pairs + k) % len(TEMPLATES)] for k, (c, m) in enumerate(labels)]


def label_of(prompt: str) -> tuple[int | None, int | None]:
    """The class (0..9) and the motion (0..7) that a prompt names, each None if it names none."""
    found = _MOTION.search(prompt)
    return class_of(prompt), MOTIONS.index(found.group(1).lower()) if found else None
