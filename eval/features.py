"""What images are compared by: feature extractors and judges of prompt agreement, each by its name.

pocket      64 features of the clothing classifier that ships with the pocket teacher; images of 32 x 32 only
inception   2048 features of Inception-v3 as clean-fid computes them (Parmar et al., arXiv 2104.11222): "FID" proper
pixels      8 x 8 average-pooled RGB: works for any image, sees little, and is named so that nobody takes it for FID
"""

import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import make_resizer
from torch import Tensor

from teachers import pocket

NAMES = ("pocket", "inception", "pixels")
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


@dataclass(frozen=True)
class Extractor:
    """Images (B, 3, H, W) in [0, 1] -> features (B, D), float32. `name` goes into every figure made with it."""

    name: str
    function: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have the shape (B, 3, H, W), not {tuple(images.shape)}; stack RGB images")
        return self.function(images.float()).float()


def extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """The feature extractor called `name` ("pocket", "inception" or "pixels") on `device`.

    Raises ValueError for another name, or where its weights are neither on this machine nor to be had.
    """
    if name == "pocket":
        model = _pocket(device)
        return Extractor(name, lambda images: model.features(images.to(device)))
    if name == "inception":
        return Extractor(name, _inception(torch.device(device)))
    if name == "pixels":
        return Extractor(name, lambda images: F.adaptive_avg_pool2d(images.to(device), 8).flatten(1))
    raise ValueError(f'there is no feature extractor "{name}"; choose one of {", ".join(NAMES)}')


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
            'make it with "python -m teachers.pocket.make", or choose other features ("pixels" need no weights)'
        )
    return pocket.classifier().to(device)


def _inception(device: torch.device) -> Callable[[Tensor], Tensor]:
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "inception-2015-12-05.pt"
    if not weights.is_file():
        _download(INCEPTION_URL, weights)
    model = InceptionV3W(str(weights.parent), download=False).to(device).eval()
    resize = make_resizer("PIL", False, "bicubic", (299, 299))

    def features(images: Tensor) -> Tensor:
        # clean-fid judges 8-bit image files, so round as saving would; its resizing is Pillow's, one image at a time.
        pixels = images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.stack([torch.from_numpy(resize(image)).permute(2, 0, 1) for image in pixels])
        return model(resized.to(device))

    return features


def _download(url: str, path: Path) -> None:
    """Fetch `url` to `path` through a temporary name, so that a cut line leaves nothing that looks whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(url, timeout=20) as answer, partial.open("wb") as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(
            f"the Inception weights are not at {path} and could not be fetched ({error}); "
            f"download {url} to that place, or choose other features"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
