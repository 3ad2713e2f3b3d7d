"""Captions of the pocket video teacher: ten classes of clothing, eight motions, several templates."""

import re

from torch import Tensor

from teachers.media.motion import MOTIONS
from teachers.pocket.captions import label_of as class_of
from teachers.pocket.pairs import balanced_pairs, every_caption, prompts_of

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
    return every_caption(len(OBJECTS), len(MOTIONS), captions, vague_captions)


def balanced_labels(count: int) -> Tensor:
    """`count` pairs of class and motion, (count, 2), that cycle through all 80 pairs in a fixed order."""
    return balanced_pairs(count, len(OBJECTS), len(MOTIONS), stride=1)


def balanced_prompts(count: int) -> list[str]:
    """The prompts of `balanced_labels(count)`, which cycle through the templates."""
    return prompts_of(balanced_labels(count), len(OBJECTS) * len(MOTIONS), captions)


def label_of(prompt: str) -> tuple[int | None, int | None]:
    """The class (0..9) and the motion (0..7) that a prompt names, each None if it names none."""
    found = _MOTION.search(prompt)
    return class_of(prompt), MOTIONS.index(found.group(1).lower()) if found else None
