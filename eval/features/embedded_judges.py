"""The judges of the embedded teachers: features for Frechet distances, and agreement with prompts.

The classes of objects and instruments are judged by small networks that ship with the teachers. The motion of clips
(image moments) and the pitch of sounds (harmonic sum) are judged by arithmetic, without a network.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from teachers.loading.embedded import EMBEDDED
from teachers.media.motion import motion_labels
from teachers.support.keys import content

Judge = Callable[[Tensor, list[str]], Tensor]  # samples in the judged range and B prompts -> (B,): 1, 0, or NaN
Predicted = tuple[Tensor, ...]


def load_judge(name: str, device: torch.device | str) -> Any:
    """The judge's network of an embedded teacher, on `device`.

    Raises:
        ValueError: If its weights are missing or damaged.
    """
    try:
        return EMBEDDED[name].judge().to(device)
    except ValueError as error:
        raise ValueError(f'the features "{name}" cannot be computed: {error}, or choose other features') from error


def judge_features(name: str, device: torch.device | str) -> tuple[Callable[[Tensor], Tensor], str]:
    """The feature function of an embedded teacher's judge, and a hash of its weights."""
    judge, teacher = load_judge(name, device), EMBEDDED[name]
    return lambda samples: judge.features(samples.to(device)), content(teacher.present(teacher.judge_file))


def agreement(name: str, device: torch.device | str) -> Judge:
    """The judge of prompt agreement of an embedded teacher: 1 if all that a prompt names is recognized."""
    judge, label_of = load_judge(name, device), EMBEDDED[name].package.label_of

    @torch.no_grad()
    def judged(samples: Tensor, prompts: list[str]) -> Tensor:
        samples = samples.float().to(device)
        classes = judge(samples).argmax(dim=1)
        predicted: Predicted = (classes,) if name == "pocket" else (classes, arithmetic(name, samples))
        requested = [label_of(prompt) for prompt in prompts]
        labels = [label if isinstance(label, tuple) else (label,) for label in requested]
        return agreeing(predicted, labels)

    return judged


def arithmetic_agreement(name: str) -> Judge | None:
    """The judge of a prompt's motion or note, which has no network; None for features without one."""
    if name not in EMBEDDED or name == "pocket":
        return None
    label_of = EMBEDDED[name].package.label_of

    @torch.no_grad()
    def judged(samples: Tensor, prompts: list[str]) -> Tensor:
        return agreeing((arithmetic(name, samples.float()),), [label_of(prompt)[1:] for prompt in prompts])

    return judged


def arithmetic(name: str, samples: Tensor) -> Tensor:
    """The motion of clips or the note of sounds (B,), as an index."""
    found: Tensor = motion_labels(samples) if name == "pocket-video" else EMBEDDED[name].package.pitch(samples)
    return found


def agreeing(predicted: Predicted, requested: list[tuple[int | None, ...]]) -> Tensor:
    """Whether every requested label is predicted: (B,) on the CPU with 1, 0, or NaN where nothing is requested.

    Args:
        predicted: For each kind of label the predictions (B,).
        requested: For each sample the label of each kind, or None.
    """
    wanted = torch.tensor([[-1 if label is None else label for label in row] for row in requested])
    right = (torch.stack(predicted, dim=1).cpu() == wanted) | (wanted < 0)
    return torch.where((wanted < 0).all(dim=1), torch.nan, right.all(dim=1).float())
