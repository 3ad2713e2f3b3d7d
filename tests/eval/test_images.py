"""Folders of images: the metrics on their own, what is kept, and every way in which images can be bad."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eval.features.extractors import extractor
from eval.features.image_folder import features_of_folder, read
from eval.images import compare, too_few_samples
from eval.metrics.fid import frechet_distance
from eval.metrics.reference import Reference
from tests.commands import eval_main as main


def folder(place, count: int, seed: int, size: int = 16, bright: float = 1.0):
    draw = np.random.RandomState(seed)
    place.mkdir(parents=True)
    for i in range(count):
        array = (draw.randint(0, 256, (size, size, 3)) * bright).astype(np.uint8)
        Image.fromarray(array).save(place / f"{i:03d}.png")
    return place


PIXELS = ["--features", "pixels"]


def test_two_folders(tmp_path, capsys):
    one, two = folder(tmp_path / "a", 220, 0), folder(tmp_path / "b", 210, 1)
    assert main(["images", str(one), str(two), *PIXELS, "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    sets = [features_of_folder(place, extractor("pixels")) for place in (one, two)]
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(*sets), rel=1e-6)
    assert figures["samples"] == 220
    assert figures["reference_images"] == 210
    assert figures["kid"] is None, "a kernel Inception distance is Inception's"
    assert 0 < figures["frechet_interval"][0] < figures["frechet_distance"] < figures["frechet_interval"][1]
    assert f"{figures['frechet_distance']:.4f}" in printed
    assert f"{figures['recall']:.4f}" in printed
    assert figures["warnings"] == []


def test_a_folder_against_itself(tmp_path, capsys):
    one = folder(tmp_path / "a", 30, 0)
    assert main(["images", str(one), str(one), *PIXELS, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1
    assert figures["frechet_interval"] is None
    assert "30 samples cannot fill 192 dimensions" in capsys.readouterr().out


def test_kept_statistics_stand_in_for_the_folder(tmp_path, capsys):
    one, two = folder(tmp_path / "a", 12, 0), folder(tmp_path / "b", 12, 1, bright=0.5)
    assert main(["stats", str(two), "-o", str(tmp_path / "ref.npz"), *PIXELS]) == 0
    assert "of 12 images" in capsys.readouterr().out
    for target in (two, tmp_path / "ref.npz"):
        assert main(["images", str(one), str(target), *PIXELS, "--json", str(tmp_path / f"{target.stem}.json")]) == 0
    told = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("b", "ref")]
    assert told[0] == told[1]


def test_kid_with_inceptions_features():
    made = extractor("pixels")
    clean = type(made)("clean", made.function)
    rows = [torch.rand(40, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    target = Reference(torch.zeros(6), torch.eye(6), rows[1])
    figures = compare(Reference(rows[0].double().mean(0), rows[0].double().T.cov(), rows[0]), target, clean)
    assert figures["name"] == "FID-clean@40"
    assert abs(figures["kid"]) < 0.1


def test_colours_and_sizes(tmp_path):
    """Grey is repeated, alpha dropped, palettes resolved; sizes may differ, since each image is resized on its own."""
    grey = np.random.RandomState(0).randint(0, 256, (16, 16)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    rgba = np.stack([grey, grey, grey, 255 - grey], axis=2)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    expected = torch.from_numpy(grey)[None].expand(3, 16, 16) / 255
    for name in ("grey", "alpha", "palette"):
        torch.testing.assert_close(read(tmp_path / f"{name}.png"), expected)
    Image.fromarray(rgba).resize((24, 40)).save(tmp_path / "large.png")
    assert features_of_folder(tmp_path, extractor("pixels"), batch_size=3).shape == (4, 192)


def truncated(place):
    folder(place, 3, 0)
    file = place / "cut.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-900])
    return place


def deep(place):
    folder(place, 3, 0)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(place / "deep.png")
    return place


def text(place):
    folder(place, 3, 0)
    (place / "x.png").write_text("no image")
    return place


BAD = {
    "missing": (lambda place: place, "does not exist"),
    "empty": (lambda place: folder(place, 0, 0), "holds 0 images"),
    "one": (lambda place: folder(place, 1, 0), "holds 1 images; a distribution needs at least two"),
    "truncated": (truncated, "cut.jpg cannot be read as an image"),
    "16 bits": (deep, "more than 8 bits a channel"),
    "text": (text, "x.png cannot be read as an image"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("side", [0, 1])
def test_bad_images_are_one_sentence_and_exit_code_2(bad, side, tmp_path, capsys):
    make, sentence = BAD[bad]
    places = [folder(tmp_path / "good", 4, 0), make(tmp_path / "bad")]
    code = main(["images", str(places[1 - side]), str(places[side]), *PIXELS])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(told) == 1
    if (bad, side) != ("missing", 1):  # as a reference it might have been a file or a name
        assert sentence in told[0]


@pytest.mark.parametrize(("count", "sentence"), [(0, "holds 0 images"), (1, "holds 1 images")])
def test_statistics_need_a_distribution_too(count, sentence, tmp_path, capsys):
    assert main(["stats", str(folder(tmp_path / "a", count, 0)), "-o", str(tmp_path / "ref.npz"), *PIXELS]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "ref.npz").exists()


def figures_of(one, two, place, *options) -> dict:
    assert main(["images", str(one), str(two), *PIXELS, "--json", str(place / "figures.json"), *options]) == 0
    return json.loads((place / "figures.json").read_text())


def test_grey_and_transparent_images_are_told_and_count_as_their_colours(tmp_path, capsys):
    """The same figures as for copies in plain RGB."""
    plain, odd, target = tmp_path / "plain", tmp_path / "odd", folder(tmp_path / "b", 12, 1)
    plain.mkdir()
    odd.mkdir()
    draw = np.random.RandomState(5)
    for i in range(12):
        pixels = draw.randint(0, 256, (16, 16, 1 if i < 5 else 3)).astype(np.uint8)
        Image.fromarray(np.broadcast_to(pixels, (16, 16, 3)).copy()).save(plain / f"{i:02d}.png")
        if i < 5:
            Image.fromarray(pixels[:, :, 0]).save(odd / f"{i:02d}.png")
        else:
            alpha = draw.randint(0, 256, (16, 16, 1)).astype(np.uint8)
            Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(odd / f"{i:02d}.png")
    usual = figures_of(plain, target, tmp_path)
    assert not any("grey" in warning or "transparency" in warning for warning in usual["warnings"])
    capsys.readouterr()
    told = figures_of(odd, target, tmp_path)
    assert told["frechet_distance"] == pytest.approx(usual["frechet_distance"], rel=1e-9)
    assert (told["precision"], told["recall"]) == (usual["precision"], usual["recall"])
    printed = capsys.readouterr().out
    assert f"warning: 5 of 12 images in {odd} are grey" in printed
    assert f"warning: 7 of 12 images in {odd} have transparency" in printed


def test_mixed_sizes_are_told_and_judged_one_by_one(tmp_path, capsys):
    one, two = folder(tmp_path / "a", 12, 0), folder(tmp_path / "b", 12, 1)
    for i, size in ((3, 8), (4, 24), (9, 24)):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (size, 32, 3)).astype(np.uint8)).save(
            one / f"{i:03d}.png"
        )
    told = figures_of(one, two, tmp_path)
    features = torch.cat([extractor("pixels")(read(file)[None]) for file in sorted(one.iterdir())])
    expected = frechet_distance(features, features_of_folder(two, extractor("pixels")))
    assert told["frechet_distance"] == pytest.approx(expected, rel=1e-9)
    assert f"the images in {one} are of 3 sizes (9 of 12 are 16 x 16)" in capsys.readouterr().out
    assert not any("sizes" in warning for warning in figures_of(one, two, tmp_path, "--size", "8")["warnings"])


def test_too_few_samples_are_named_in_the_figure(tmp_path):
    one, two = folder(tmp_path / "a", 12, 0), folder(tmp_path / "b", 200, 1)
    few, enough = figures_of(one, two, tmp_path), figures_of(two, one, tmp_path)
    assert few["name"] == "Frechet distance (pixels@12), biased (<192 dimensions)"
    assert any("12 samples cannot fill 192 dimensions" in warning for warning in few["warnings"])
    assert enough["name"] == "Frechet distance (pixels@200)"
    assert any("12 reference images cannot fill" in warning for warning in enough["warnings"])


def test_images_that_the_features_cannot_judge(tmp_path, capsys, pocket_weights):
    one = folder(tmp_path / "a", 3, 0, size=16)
    assert main(["images", str(one), str(one), "--features", "pocket"]) == 2
    assert "32 x 32" in capsys.readouterr().err


def test_features_that_are_no_numbers(tmp_path, capsys, monkeypatch):
    one, made = folder(tmp_path / "a", 4, 0), extractor("pixels")
    broken = type(made)("pixels", lambda images: made.function(images) * float("nan"))
    monkeypatch.setattr("eval.images.extractor", lambda *_: broken)
    assert main(["images", str(one), str(one), *PIXELS]) == 2
    assert "4 of 4 samples have features that are NaN" in capsys.readouterr().err


def test_a_broken_image_is_no_black_one():
    """Functions that round to 8 bits, as Inception's does, would turn NaN into a number."""
    made = type(extractor("pixels"))("clean", lambda images: images.mul(255).round().byte().float().flatten(1))
    images = torch.rand(3, 3, 4, 4)
    images[1, 2, 3, 0] = float("nan")
    assert made(images).isnan().any(dim=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="1 of 3 samples have features that are NaN"):
        frechet_distance(made(images), made(torch.rand(3, 3, 4, 4)))


def test_shortage_names_what_lacks():
    assert too_few_samples(2049, 2048, "samples") == []
    assert "2048 reference images cannot fill 2048 dimensions" in too_few_samples(2048, 2048, "reference images")[0]


def test_from_a_shell(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "eval", "images", "--help"], capture_output=True, text=True, check=True
    )
    assert "--inception-weights" in told.stdout
