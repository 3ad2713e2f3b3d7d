"""Feature extractors, the prompt judge, and the references that features are compared with."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

import teachers.pocket
from eval.features.extractors import Extractor, extractor, prompt_judge
from eval.metrics.reference import Reference, reference, save
from teachers.loading.embedded import EMBEDDED
from teachers.pocket.captions import CLASS_NAMES


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_pixel_features_are_block_means():
    pixels = extractor("pixels")
    batch = images(size=16)
    expected = batch.reshape(4, 3, 8, 2, 8, 2).mean(dim=(3, 5)).flatten(1)
    assert pixels.name == "pixels"
    torch.testing.assert_close(pixels(batch), expected)
    assert pixels(images(size=20)).shape == (4, 192)


def test_pocket_features_are_those_of_the_classifier(pocket_weights):
    torch.testing.assert_close(extractor("pocket")(images()), EMBEDDED["pocket"].judge().features(images()))
    with pytest.raises(ValueError, match=r"shape \(3, 32, 32\), got"):
        extractor("pocket")(images(size=16))


def test_error_for_missing_pocket_weights_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers.pocket, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"benchmarks\.pocket\.make"):
        extractor("pocket")


def test_unknown_features_and_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match='unknown feature extractor "dino"'):
        extractor("dino")
    with pytest.raises(ValueError, match="B, 3, H, W"):
        extractor("pixels")(torch.zeros(2, 1, 8, 8))


def test_judge_compares_the_predicted_class_with_the_class_in_the_prompt(pocket_weights):
    judge = prompt_judge("pocket")
    predicted = EMBEDDED["pocket"].judge()(images()).argmax(1).tolist()
    names, other = [names[0] for names in CLASS_NAMES], "something else"
    prompts = [f"a photo of a {names[predicted[0]]}", f"a {names[(predicted[1] + 1) % 10]}", other, names[predicted[3]]]
    verdict = judge(images(), prompts)
    assert verdict[[0, 1, 3]].tolist() == [1, 0, 1]
    assert verdict[2].isnan()
    assert prompt_judge("pixels") is None


def test_name_of_a_frechet_distance_has_features_and_count():
    def named(name, count):
        return Extractor(name, lambda images: images).figure(count)

    assert named("clean", 10_000) == "FID-clean@10k"
    assert named("legacy_tensorflow", 50_000) == "FID-legacy_tensorflow@50k"
    assert named("dinov2", 1_500) == "FD-DINOv2@1500"
    assert named("pocket", 1000) == "Frechet distance (pocket@1000)"


@pytest.fixture
def tiny_models(tmp_path):
    """A DINOv2 and a CLIP model with random weights, saved with save_pretrained."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **small)).save_pretrained(tmp_path / "dinov2")
    BitImageProcessor(**sizes).save_pretrained(tmp_path / "dinov2")
    vision = CLIPVisionConfig(image_size=28, patch_size=14, intermediate_size=32, **small)
    text = CLIPTextConfig(intermediate_size=32, **small)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(**sizes).save_pretrained(tmp_path / "clip")
    return tmp_path


@pytest.mark.slow
def test_features_of_transformers_models_are_their_embeddings(tiny_models):
    pil_images = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images()]
    found = extractor(f"clip={tiny_models / 'clip'}")
    assert found.name == "clip"
    pixels = CLIPImageProcessor.from_pretrained(tiny_models / "clip")(pil_images, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(tiny_models / "clip").get_image_features(**pixels).pooler_output
    assert expected.shape == (4, 12)
    torch.testing.assert_close(found(images()), expected, atol=1e-4, rtol=1e-3)

    pixels = BitImageProcessor.from_pretrained(tiny_models / "dinov2")(pil_images, return_tensors="pt")
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(tiny_models / "dinov2")(**pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(f"dinov2={tiny_models / 'dinov2'}")(images()), expected, atol=1e-3, rtol=1e-3)


def test_missing_transformers_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"transformers could not load .*save_pretrained"):
        extractor(f"dinov2={tmp_path}")


def test_saved_statistics_are_read_back_with_the_name_of_their_features(tmp_path):
    pixels, made = extractor("pixels"), Reference(torch.rand(192).double(), torch.eye(192).double(), torch.rand(5, 192))
    save(tmp_path / "new" / "ref.npz", made, pixels)
    back = reference(str(tmp_path / "new" / "ref.npz"), pixels)
    assert torch.equal(back.mean, made.mean)
    assert torch.equal(back.covariance, made.covariance)
    assert torch.equal(back.features, made.features)
    assert back.note is None
    with pytest.raises(ValueError, match='made with the features "pixels", not "pocket"; choose --features pixels'):
        reference(str(tmp_path / "new" / "ref.npz"), Extractor("pocket", lambda batch: batch))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        save(tmp_path / "file" / "ref.npz", made, pixels)


def test_statistics_in_the_formats_of_edm_and_adm(tmp_path):
    mu, sigma = np.random.RandomState(0).rand(4).astype(np.float32), np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8), mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
    for name in ("edm", "adm"):
        found = reference(str(tmp_path / f"{name}.npz"), extractor("pixels"))
        assert found.mean.tolist() == mu.astype(np.float64).tolist()
        assert found.features is None
        assert "does not say which features" in found.note and "ADM and EDM need legacy_tensorflow" in found.note


def test_named_statistics_of_clean_fid(tmp_path, monkeypatch):
    import cleanfid

    monkeypatch.setattr(cleanfid, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "stats").mkdir()
    np.savez(tmp_path / "stats/mine_clean_custom_na.npz", mu=np.arange(3.0), sigma=np.eye(3))
    np.savez(tmp_path / "stats/mine_clean_custom_na_kid.npz", feats=np.ones((4, 3)))
    clean = Extractor("clean", lambda batch: batch)
    found = reference("clean-fid:mine/na/custom", clean)
    assert found.mean.tolist() == [0, 1, 2]
    assert found.features.shape == (4, 3)
    with pytest.raises(ValueError, match="choose --features clean"):
        reference("clean-fid:mine/na/custom", extractor("pixels"))
    with pytest.raises(ValueError, match="NAME/RESOLUTION/SPLIT"):
        reference("clean-fid:mine", clean)

    def offline(*_):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(ValueError, match=r"cannot be downloaded .*no route"):
        reference("clean-fid:other/32/train", clean)


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
    torch.testing.assert_close(mean, EMBEDDED["pocket"].reference()[0])


def test_unusable_references_are_errors(tmp_path, pocket_weights):
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
    with pytest.raises(ValueError, match=r"must have the shapes \(D,\) and \(D, D\)"):
        reference(str(tmp_path / "flat.npz"), pixels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains 0 images"):
        reference(str(tmp_path / "empty"), pixels)
