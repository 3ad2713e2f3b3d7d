"""Feature extractors, the judge of prompts, and the references that features are compared with."""

import io
import urllib.error

import numpy as np
import pytest
import torch
from cleanfid.resize import make_resizer
from PIL import Image

import eval.features as module
import teachers.pocket
from eval.features import extractor, prompt_judge
from eval.reference import reference
from teachers.pocket.captions import CLASS_NAMES


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_pixels_are_block_means():
    pixels = extractor("pixels")
    batch = images(size=16)
    expected = batch.reshape(4, 3, 8, 2, 8, 2).mean(dim=(3, 5)).flatten(1)
    assert pixels.name == "pixels"
    torch.testing.assert_close(pixels(batch), expected)
    assert pixels(images(size=20)).shape == (4, 192)


def test_pocket_features_are_the_classifiers(pocket_weights):
    torch.testing.assert_close(extractor("pocket")(images()), teachers.pocket.classifier().features(images()))
    with pytest.raises(ValueError, match="32 x 32"):
        extractor("pocket")(images(size=16))


def test_pocket_without_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers.pocket, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"teachers\.pocket\.make"):
        extractor("pocket")


def test_unknown_features_and_shapes_are_refused():
    with pytest.raises(ValueError, match='no feature extractor "dino"'):
        extractor("dino")
    with pytest.raises(ValueError, match="B, 3, H, W"):
        extractor("pixels")(torch.zeros(2, 1, 8, 8))


def test_judge_compares_the_class_seen_with_the_class_asked_for(pocket_weights):
    judge = prompt_judge("pocket")
    seen = teachers.pocket.classifier()(images()).argmax(1).tolist()
    names = [names[0] for names in CLASS_NAMES]
    prompts = [f"a photo of a {names[seen[0]]}", f"a {names[(seen[1] + 1) % 10]}", "something else", names[seen[3]]]
    verdict = judge(images(), prompts)
    assert verdict[[0, 1, 3]].tolist() == [1, 0, 1]
    assert verdict[2].isnan()
    assert prompt_judge("pixels") is None


def test_inception_weights_offline(tmp_path, monkeypatch):
    def offline(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(module.urllib.request, "urlopen", offline)
    with pytest.raises(ValueError, match=r"could not be fetched .*no route.* download"):
        extractor("inception")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_cut_download_leaves_nothing(tmp_path, monkeypatch):
    class Cut(io.BytesIO):
        def read(self, size=-1):
            raise ConnectionResetError("cut")

    monkeypatch.setattr(module.urllib.request, "urlopen", lambda url, timeout: Cut())
    with pytest.raises(ValueError, match="cut"):
        module._download("https://example.invalid/x.pt", tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_inception_feeds_clean_fids_resizing(tmp_path, monkeypatch):
    """With a stand-in for the network: 8-bit rounding, Pillow's bicubic at 299, values in [0, 255]."""

    class Network(torch.nn.Module):
        def __init__(self, path, download):
            super().__init__()

        def forward(self, x):
            return x.flatten(1)

    monkeypatch.setattr(module, "InceptionV3W", Network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "inception-2015-12-05.pt").touch()
    made = extractor("inception")(images(1)).reshape(3, 299, 299)
    eight_bit = (images(1)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    expected = make_resizer("PIL", False, "bicubic", (299, 299))(eight_bit)
    np.testing.assert_allclose(made.permute(1, 2, 0).numpy(), expected)


def test_reference_from_npz_folder_and_pocket(tmp_path, pocket_weights):
    pixels = extractor("pixels")
    np.savez(tmp_path / "stats.npz", mu=np.arange(3.0), sigma=np.eye(3))
    found = reference(str(tmp_path / "stats.npz"), pixels)
    mean, covariance = found.mean, found.covariance
    assert found.features is None
    assert mean.tolist() == [0, 1, 2]
    assert covariance.dtype == torch.float64

    folder = tmp_path / "real"
    folder.mkdir()
    arrays = (images(3, size=16) * 255).byte()
    for i, array in enumerate(arrays):
        Image.fromarray(array.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    found = reference(str(folder), pixels)
    mean = found.mean
    torch.testing.assert_close(mean, pixels(arrays.float() / 255).double().mean(0))

    mean = reference("pocket", extractor("pocket")).mean
    torch.testing.assert_close(mean, teachers.pocket.reference()[0])


def test_bad_references_are_refused(tmp_path, pocket_weights):
    pixels = extractor("pixels")
    with pytest.raises(ValueError, match="choose --features pocket"):
        reference("pocket", pixels)
    with pytest.raises(ValueError, match="there is no reference"):
        reference(str(tmp_path / "missing.npz"), pixels)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="mu and sigma"):
        reference(str(tmp_path / "text.npz"), pixels)
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match="mu and sigma"):
        reference(str(tmp_path / "other.npz"), pixels)
    np.savez(tmp_path / "flat.npz", mu=np.zeros(3), sigma=np.zeros(3))
    with pytest.raises(ValueError, match=r"want \(D,\) and \(D, D\)"):
        reference(str(tmp_path / "flat.npz"), pixels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds 0 images"):
        reference(str(tmp_path / "empty"), pixels)
