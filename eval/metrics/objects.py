"""Object checks in the manner of GenEval: whether a detector finds the objects that a prompt names, and how many.

A prompt is parsed for the detector's own class names, with a number word or digits before them: "two dogs and a red
car" asks for exactly two dogs and at least one car. A sample passes if every class has as many detections as asked for.

Source: Ghosh et al., "GenEval" (arXiv 2310.11513), section 3, which uses Mask2Former with these confidences. Colours
and positions are not checked, and other detectors give other figures, so the detector's name is part of the figure's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from eval.features.transformers_models import load_pretrained
from eval.metrics.base import Figure
from eval.metrics.context import MetricContext
from eval.metrics.intervals import share_interval
from eval.metrics.prompt_score import PromptScore

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9  # of a detection, if a number is not asked for and if it is
BREAKS = {",", ";", ".", "a", "an", "the", "and", "with", "of", "on", "in", "next", "to"}  # end a noun's description
IRREGULAR = {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep", "scissors": "scissors"}


def requested(prompt: str, labels: Iterable[str]) -> dict[str, int | None]:
    """The classes that a prompt names.

    Args:
        prompt: The prompt.
        labels: The detector's class names. Of overlapping names the longest counts: "hot dog" is no "dog".

    Returns:
        For each class the number that is asked for; None if no number is, so at least one.
    """
    text = prompt.lower()
    found: dict[str, int | None] = {}
    for label in sorted(set(labels), key=lambda label: (-len(label), label)):
        name = label.lower()
        forms = "|".join(map(re.escape, dict.fromkeys([f"{name}es", f"{name}s", IRREGULAR.get(name, name), name])))
        match = re.search(rf"\b(?:{forms})\b", text)
        if match is None:
            continue
        before = re.findall(r"\w+|[,;.]", text[: match.start()])[-3:]  # a number and up to two adjectives
        nearest = next((word for word in reversed(before) if word in BREAKS or number_of(word)), "")
        found[label] = number_of(nearest)
        text = f"{text[: match.start()]};{text[match.end() :]}"
    return found


def number_of(word: str) -> int | None:
    """The number that a word says, from 2 to 99; None for others."""
    return NUMBERS.get(word) or (int(word) if word.isdecimal() and 1 < int(word) < 100 else None)


def passes(wanted: Mapping[str, int | None], detections: Sequence[tuple[str, float]]) -> bool:
    """Whether detections, each a class name and its confidence, are what was asked for."""
    for label, count in wanted.items():
        limit = CONFIDENCE if count is None else COUNTING_CONFIDENCE
        found = sum(name == label and confidence >= limit for name, confidence in detections)
        if found < 1 or (count is not None and found != count):
            return False
    return True


class ObjectChecks(PromptScore):
    """Share of the samples that show the objects which their prompt names."""

    key = "objects"
    heading = "Objects"
    help = (
        "Higher is better. Share of the samples in which an object detector finds the objects that the prompt names, "
        "in the number that it names, in the manner of GenEval (arXiv 2310.11513), with its 95% interval. Samples "
        "whose prompt names no class of the detector do not count. Colours and positions are not checked."
    )
    needs = frozenset({"images", "prompts", "objects"})
    position = 73
    format = ".1%"
    named_by = "objects"
    lowest = 0.0

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.model, self.processor = load_pretrained(
            self.source,
            AutoImageProcessor,
            "--score objects=FOLDER",
            context.allow_pickle,
            kind=AutoModelForObjectDetection,
        )
        self.model = self.model.to(context.device)
        self.labels: dict[int, str] = {int(k): str(v) for k, v in self.model.config.id2label.items()}
        self.heading = f"Objects ({Path(self.source).name})@{context.samples}"

    @torch.no_grad()
    def prompt_score(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """1 or 0 for each image; NaN if its prompt names no class."""
        eight_bit = list(samples.clamp(0, 1).mul(255).round().byte().cpu())
        inputs = self.processor(images=eight_bit, return_tensors="pt").to(self.context.device)
        found = self.processor.post_process_object_detection(self.model(**inputs), threshold=CONFIDENCE)
        scores = []
        for prompt, boxes in zip(prompts, found, strict=True):
            wanted = requested(prompt, self.labels.values())
            pairs = zip(boxes["labels"].tolist(), boxes["scores"].tolist(), strict=True)
            detections = [(self.labels.get(label, ""), score) for label, score in pairs]
            scores.append(float(passes(wanted, detections)) if wanted else float("nan"))
        return torch.tensor(scores)

    def figure(self, known: Tensor, complete: bool) -> Figure:
        """The share, with the Wilson score interval."""
        figure = super().figure(known, complete)
        return Figure(figure.value, share_interval(figure.value, len(known)), figure.influence)
