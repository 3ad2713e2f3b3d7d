"""Metrics of image folders, saved statistics, and images that cannot be used."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import eval.images
from eval.features import image_folder
from eval.features.extractors import Extractor, extractor
from eval.features.image_folder import features_of_folder, image_warnings, read_image
from eval.images import compare_features, too_few_samples
from eval.metrics.fid import frechet_distance
from eval.metrics.reference import Reference
from teachers.support.text import counted
from tests.commands import eval_main as main
from tests.teachers.support.icc import profile


def folder(path: Path, count: int, seed: int, size: int = 16, brightness: float = 1.0) -> Path:
    """A new folder of `count` random RGB images."""
    rng = np.random.RandomState(seed)
    path.mkdir(parents=True)
    for i in range(count):
        array = (rng.randint(0, 256, (size, size, 3)) * brightness).astype(np.uint8)
        Image.fromarray(array).save(path / f"{i:03d}.png")
    return path


PIXELS = ["--features", "pixels"]


@pytest.mark.slow
def test_metrics_of_two_folders_equal_the_functions(tmp_path, capsys):
    one, two = folder(tmp_path / "a", 220, 0), folder(tmp_path / "b", 210, 1)
    assert main(["images", str(one), str(two), *PIXELS, "--json", str(tmp_path / "metrics.json")]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    sets = [features_of_folder(path, extractor("pixels")) for path in (one, two)]
    assert metrics["frechet_distance"] == pytest.approx(frechet_distance(*sets), rel=1e-6)
    assert metrics["samples"] == 220
    assert metrics["reference_images"] == 210
    assert metrics["kid"] is None, "KID is defined for Inception features only"
    assert 0 < metrics["frechet_interval"][0] < metrics["frechet_distance"] < metrics["frechet_interval"][1]
    assert f"{metrics['frechet_distance']:.4f}" in printed
    assert f"{metrics['recall']:.4f}" in printed
    assert metrics["warnings"] == []


def test_distance_of_a_folder_to_itself_is_zero(tmp_path, capsys):
    one = folder(tmp_path / "a", 30, 0)
    assert main(["images", str(one), str(one), *PIXELS, "--json", str(tmp_path / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert metrics["precision"] == metrics["recall"] == metrics["coverage"] == 1
    assert metrics["frechet_interval"] is None
    assert "30 samples are too few for 192 feature dimensions" in capsys.readouterr().out


def test_saved_statistics_give_the_same_metrics_as_the_folder(tmp_path, capsys):
    one, two = folder(tmp_path / "a", 12, 0), folder(tmp_path / "b", 12, 1, brightness=0.5)
    assert main(["stats", str(two), "-o", str(tmp_path / "ref.npz"), *PIXELS]) == 0
    assert "of 12 images" in capsys.readouterr().out
    for target in (two, tmp_path / "ref.npz"):
        assert main(["images", str(one), str(target), *PIXELS, "--json", str(tmp_path / f"{target.stem}.json")]) == 0
    from_folder, from_file = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("b", "ref"))
    assert from_folder == from_file


def test_kid_is_computed_for_inception_features():
    clean = Extractor("clean", extractor("pixels").function)
    rows = [torch.rand(40, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    target = Reference(torch.zeros(6), torch.eye(6), rows[1])
    metrics = compare_features(Reference(rows[0].double().mean(0), rows[0].double().T.cov(), rows[0]), target, clean)
    assert metrics["name"] == "FID-clean@40"
    assert abs(metrics["kid"]) < 0.1


def test_grey_alpha_and_palette_images_are_read_as_rgb(tmp_path):
    """Images may differ in size: each is resized separately for the features."""
    grey = np.random.RandomState(0).randint(0, 256, (16, 16)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    rgba = np.stack([grey, grey, grey, 255 - grey], axis=2)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    expected = torch.from_numpy(grey)[None].expand(3, 16, 16) / 255
    for name in ("grey", "alpha", "palette"):
        torch.testing.assert_close(read_image(tmp_path / f"{name}.png"), expected)
    Image.fromarray(rgba).resize((24, 40)).save(tmp_path / "large.png")
    assert features_of_folder(tmp_path, extractor("pixels"), batch_size=3).shape == (4, 192)


def with_truncated_jpeg(path: Path) -> Path:
    file = folder(path, 3, 0) / "cut.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-900])
    return path


def with_16_bit_image(path: Path) -> Path:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder(path, 3, 0) / "deep.png")
    return path


def with_text_file(path: Path) -> Path:
    (folder(path, 3, 0) / "x.png").write_text("not an image")
    return path


def with_gif(path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder(path, 1, 0) / "a.gif")
    return path


UNUSABLE = {
    "missing": (lambda path: path, "does not exist"),
    "empty": (lambda path: folder(path, 0, 0), "contains 0 images"),
    "another ending": (
        with_gif,
        "contains 1 image; a distribution needs at least 2, better thousands. 1 file is not read, because clean-fid "
        "does not list such endings: a.gif",
    ),
    "one": (lambda path: folder(path, 1, 0), "contains 1 image; a distribution needs at least 2"),
    "truncated": (with_truncated_jpeg, "cut.jpg cannot be read as an image"),
    "16 bits": (with_16_bit_image, "more than 8 bits per channel"),
    "text": (with_text_file, "x.png cannot be read as an image"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.first_is_quick
def test_unusable_images_end_with_one_error_and_exit_code_2(case, side, tmp_path, capsys):
    make, message = UNUSABLE[case]
    paths = [folder(tmp_path / "good", 4, 0), make(tmp_path / "bad")]
    code = main(["images", str(paths[1 - side]), str(paths[side]), *PIXELS])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    if (case, side) != ("missing", 1):  # a missing reference may be a file or a name
        assert message in errors[0]


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_need_two_images(count, tmp_path, capsys):
    assert main(["stats", str(folder(tmp_path / "a", count, 0)), "-o", str(tmp_path / "ref.npz"), *PIXELS]) == 2
    assert f"contains {counted(count, 'image')};" in capsys.readouterr().err
    assert not (tmp_path / "ref.npz").exists()


def metrics_of(one: Path, two: Path, out: Path, *options: str) -> dict:
    assert main(["images", str(one), str(two), *PIXELS, "--json", str(out / "metrics.json"), *options]) == 0
    return json.loads((out / "metrics.json").read_text())


def test_grey_and_transparent_images_give_a_warning_and_the_metrics_of_rgb_copies(tmp_path, capsys):
    rgb, mixed, target = tmp_path / "rgb", tmp_path / "mixed", folder(tmp_path / "b", 12, 1)
    rgb.mkdir()
    mixed.mkdir()
    rng = np.random.RandomState(5)
    for i in range(12):
        pixels = rng.randint(0, 256, (16, 16, 1 if i < 5 else 3)).astype(np.uint8)
        Image.fromarray(np.broadcast_to(pixels, (16, 16, 3)).copy()).save(rgb / f"{i:02d}.png")
        if i < 5:
            Image.fromarray(pixels[:, :, 0]).save(mixed / f"{i:02d}.png")
        else:
            alpha = rng.randint(0, 256, (16, 16, 1)).astype(np.uint8)
            Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(mixed / f"{i:02d}.png")
    expected = metrics_of(rgb, target, tmp_path)
    assert not any("grey" in warning or "transparency" in warning for warning in expected["warnings"])
    capsys.readouterr()
    found = metrics_of(mixed, target, tmp_path)
    assert found["frechet_distance"] == pytest.approx(expected["frechet_distance"], rel=1e-9)
    assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])
    printed = capsys.readouterr().out
    assert f"warning: 5 of 12 images in {mixed} are grey" in printed
    assert f"warning: 7 of 12 images in {mixed} have transparency" in printed


def test_mixed_sizes_give_a_warning_and_are_resized_one_by_one(tmp_path, capsys):
    one, two = folder(tmp_path / "a", 12, 0), folder(tmp_path / "b", 12, 1)
    for i, size in ((3, 8), (4, 24), (9, 24)):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (size, 32, 3)).astype(np.uint8)).save(
            one / f"{i:03d}.png"
        )
    found = metrics_of(one, two, tmp_path)
    features = torch.cat([extractor("pixels")(read_image(file)[None]) for file in sorted(one.iterdir())])
    expected = frechet_distance(features, features_of_folder(two, extractor("pixels")))
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-9)
    assert f"the images in {one} have 3 different sizes (9 of 12 are 16 x 16)" in capsys.readouterr().out
    assert not any("sizes" in warning for warning in metrics_of(one, two, tmp_path, "--size", "8")["warnings"])


@pytest.mark.slow
def test_name_of_the_distance_says_when_samples_are_too_few(tmp_path):
    one, two = folder(tmp_path / "a", 12, 0), folder(tmp_path / "b", 200, 1)
    few, enough = metrics_of(one, two, tmp_path), metrics_of(two, one, tmp_path)
    assert few["name"] == "Frechet distance (pixels@12), biased (<192 dimensions)"
    assert any("12 samples are too few for 192 feature dimensions" in warning for warning in few["warnings"])
    assert enough["name"] == "Frechet distance (pixels@200)"
    assert any("12 reference images are too few" in warning for warning in enough["warnings"])


def test_image_size_that_the_features_do_not_support_is_an_error(tmp_path, capsys, pocket_weights):
    one = folder(tmp_path / "a", 3, 0, size=16)
    assert main(["images", str(one), str(one), "--features", "pocket"]) == 2
    assert "shape (3, 32, 32), got (3, 16, 16)" in capsys.readouterr().err


def test_nan_features_are_an_error(tmp_path, capsys, monkeypatch):
    path, pixels = folder(tmp_path / "a", 4, 0), extractor("pixels")
    broken = Extractor("pixels", lambda images: pixels.function(images) * float("nan"))
    monkeypatch.setattr(eval.images, "extractor_for", lambda *_: broken)
    assert main(["images", str(path), str(path), *PIXELS]) == 2
    assert "must have finite features, got NaN" in capsys.readouterr().err


def test_features_of_an_image_with_nan_are_nan():
    """A function that rounds to 8 bits, as Inception's does, would turn NaN into a number."""
    rounding = Extractor("clean", lambda images: images.mul(255).round().byte().float().flatten(1))
    images = torch.rand(3, 3, 4, 4)
    images[1, 2, 3, 0] = float("nan")
    assert rounding(images).isnan().any(dim=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="1 of 3 samples have features that are NaN"):
        frechet_distance(rounding(images), rounding(torch.rand(3, 3, 4, 4)))


def test_too_few_samples_is_a_warning_up_to_the_number_of_dimensions():
    assert too_few_samples(2049, 2048, "samples") == []
    (warning,) = too_few_samples(2048, 2048, "reference images")
    assert "2048 reference images are too few for 2048 feature dimensions" in warning and "KID" not in warning
    assert "(KID does not have this bias)" in too_few_samples(2, 2048, "samples", with_kid=True)[0]


def test_help_from_a_shell():
    process = subprocess.run(
        [sys.executable, "-m", "eval", "images", "--help"], capture_output=True, text=True, check=True
    )
    assert "--inception-weights" in process.stdout


def test_orientation_and_files_that_clean_fid_does_not_list_give_warnings(tmp_path):
    one = folder(tmp_path / "a", 3, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 16)).save(one / "turned.jpg", exif=exif)
    for name in ("b.BMP", "c.gif", "notes.txt", ".hidden.gif"):
        Image.new("RGB", (16, 16)).save(one / name, "BMP")
    orientation, unlisted = image_warnings(one)
    assert orientation.startswith("1 of 4 images") and "EXIF orientation: it is ignored, as in clean-fid" in orientation
    assert unlisted.startswith("2 files in")
    assert unlisted.endswith("because clean-fid does not list such endings: b.BMP, c.gif")


def test_colour_profiles_other_than_srgb_give_a_warning(tmp_path):
    one = folder(tmp_path / "a", 2, 0)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (16, 16)).save(one / "adobe.png", icc_profile=profile())
    Image.new("RGB", (16, 16)).save(one / "srgb.png", icc_profile=srgb)
    (warning,) = image_warnings(one)
    assert warning.startswith("1 of 4 images") and "a colour profile other than sRGB: it is ignored" in warning


def test_large_images_make_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "MAX_PIXELS", 2 * 16 * 16)
    files = sorted(folder(tmp_path / "a", 5, 0).iterdir())
    batches = list(image_folder.read_batches(files, 32))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), torch.stack([read_image(file) for file in files]))


def test_statistics_that_do_not_name_their_features_give_a_warning(tmp_path, capsys):
    np.savez(tmp_path / "other.npz", mu=np.full(192, 0.5), sigma=np.eye(192))
    metrics = metrics_of(folder(tmp_path / "a", 12, 0), tmp_path / "other.npz", tmp_path)
    (warning,) = (text for text in metrics["warnings"] if "does not say which features" in text)
    assert 'counts as made with "pixels"' in warning and warning in capsys.readouterr().out
