"""What images are compared by: feature extractors and judges of prompt agreement, each by its name.

pocket      64 features of the clothing classifier that ships with the pocket teacher; images of 32 x 32 only
clean, legacy_tensorflow, legacy_pytorch
            2048 features of Inception-v3, "FID" proper, in clean-fid's modes (`eval.features.inception`); inception means clean
dinov2, clip
            features of a transformers model (`eval.features.transformers_models`), from the hub or, as dinov2=FOLDER, from a folder
pixels      8 x 8 average-pooled RGB: works for any image, sees little, and is named so that nobody takes it for FID
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.config.names import FEATURES, INCEPTION_MODES, VISION_MODELS
from eval.features.inception import inception
from eval.features.transformers_models import transformer
from teachers import pocket


@dataclass(frozen=True)
class Extractor:
    """Images (B, 3, H, W) in [0, 1] -> features (B, D), float32. `name` goes into every figure made with it."""

    name: str
    function: Callable[[Tensor], Tensor]

    def figure(self, count: int, dimensions: int = 0) -> str:
        """What a Frechet distance with these features and `count` samples is called, such as "FID-clean@10k".

        Where the samples are no more than the features' `dimensions`, the name says that the distance is biased.
        """
        biased = f", biased (<{dimensions} dimensions)" if count <= dimensions else ""
        many = f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)
        if self.name in INCEPTION_MODES:
            return f"FID-{self.name}@{many}{biased}"
        if self.name in VISION_MODELS:
            return f"FD-{VISION_MODELS[self.name].label}@{many}{biased}"
        return f"Frechet distance ({self.name}@{count}){biased}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of an image with a NaN are NaN: rounding to 8 bits inside a function would make it black."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have the shape (B, 3, H, W), not {tuple(images.shape)}; stack RGB images")
        broken = ~images.isfinite().flatten(1).all(dim=1)
        features = self.function(images.float().nan_to_num()).float()
        return features.masked_fill(broken.to(features.device)[:, None], torch.nan)


def extractor(name: str, device: torch.device | str = "cpu", weights: Path | None = None) -> Extractor:
    """The feature extractor called `name` (see above) on `device`; `weights` is a file of Inception weights.

    Raises ValueError for another name, or where its weights are neither on this machine nor to be had.
    """
    if name == "pocket":
        model = _pocket(device)
        return Extractor(name, lambda images: model.features(images.to(device)))
    if name in ("inception", *INCEPTION_MODES):
        mode = "clean" if name == "inception" else name
        return Extractor(mode, inception(mode, torch.device(device), weights))
    kind, _, source = name.partition("=")
    if kind in VISION_MODELS:
        return Extractor(kind, transformer(kind, source or None, torch.device(device)))
    if name == "pixels":
        return Extractor(name, lambda images: F.adaptive_avg_pool2d(images.to(device), 8).flatten(1))
    raise ValueError(f'there is no feature extractor "{name}"; choose one of {", ".join(FEATURES)}')


def prompt_judge(name: str, device: torch.device | str = "cpu") -> Callable[[Tensor, list[str]], Tensor] | None:
    """The judge that goes with the features `name`, or None where those features recognise nothing.

    It takes images (B, 3, H, W) in [0, 1] and their B prompts, and returns (B,): 1 where the image shows what its
    prompt asks for, 0 where not, NaN where the prompt asks for nothing that the judge knows.
    """
    if name != "pocket":
        return None
    model = _pocket(device)

    @torch.no_grad()
    def judge(images: Tensor, prompts: list[str]) -> Tensor:
        labels = [pocket.label_of(prompt) for prompt in prompts]
        seen = model(images.float().to(device)).argmax(dim=1).cpu()
        wanted = torch.tensor([-1 if label is None else label for label in labels])
        return torch.where(wanted < 0, torch.nan, (seen == wanted).float())

    return judge


def _pocket(device: torch.device | str) -> pocket.Classifier:
    if not (pocket.FOLDER / "classifier.safetensors").is_file():
        raise ValueError(
            f'the features "pocket" need the classifier in {pocket.FOLDER}, which is not there; '
            'make it with "python -m benchmarks.pocket.make", or choose other features ("pixels" need no weights)'
        )
    return pocket.classifier().to(device)
