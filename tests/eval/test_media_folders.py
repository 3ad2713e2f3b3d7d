"""`fewstep eval images` and `stats` for folders of clips and sounds."""

import json

import numpy as np
import pytest
import torch

from eval.images import medium_of_folder
from teachers.media import ANY_IMAGE, Audio, Image, Video
from tests.commands import eval_main as main

CLIP, SOUND = Video(9, 16, 16, 8), Audio(1, 2000, 8000)


def folder(path, medium, count=4, seed=0, first_frozen=False):
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        sample = torch.rand(1, *medium.shape, generator=generator)
        if first_frozen and number == 0:
            sample = sample[:, :, :1].expand_as(sample)
        ending = ".webp" if isinstance(medium, Video) else ".wav"
        medium.save(sample, path / f"{number}{ending}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("medium", "features"), [(CLIP, "motion"), (SOUND, "spectrum")], ids=["video", "audio"])
def test_two_folders_are_compared(tmp_path, capsys, medium, features):
    one, two = folder(tmp_path / "one", medium), folder(tmp_path / "two", medium, seed=1)
    out = tmp_path / "figures.json"
    assert main(["images", str(one), str(two), "--features", features, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["name"].startswith(f"Frechet distance ({features}@4)") and figures["frechet_distance"] > 0
    assert f"the same numbers of {medium.plural}" in " ".join(figures["warnings"])
    assert main(["images", str(one), str(one), "--features", features, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert main(["stats", str(two), "-o", str(tmp_path / "two.npz"), "--features", features]) == 0
    assert f"of 4 {medium.plural} to" in capsys.readouterr().out
    assert np.load(tmp_path / "two.npz")["features"].shape[0] == 4
    assert main(["images", str(one), str(tmp_path / "two.npz"), "--features", features, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["frechet_distance"] == pytest.approx(figures["frechet_distance"], rel=1e-3)


def test_the_medium_is_that_of_the_first_file(tmp_path):
    assert medium_of_folder(folder(tmp_path / "clips", CLIP, first_frozen=True), "motion") == CLIP
    assert medium_of_folder(folder(tmp_path / "sounds", SOUND), "spectrum") == SOUND
    assert medium_of_folder(tmp_path, "pixels") == ANY_IMAGE


@pytest.mark.parametrize(("medium", "advice"), [(CLIP, "motion"), (SOUND, "spectrum")], ids=["video", "audio"])
def test_clips_and_sounds_are_not_taken_for_images(tmp_path, capsys, medium, advice):
    """A clip as WebP is an image to clean-fid, and pictures beside sounds are not the sounds."""
    mixed = folder(tmp_path / "mixed", medium)
    for number in range(3):
        Image(16, 16).save(torch.rand(1, 3, 16, 16), mixed / f"{number}.png")
    for words in (["images", mixed, mixed], ["stats", mixed, "-o", tmp_path / "x.npz"]):
        assert main([*words, "--features", "pixels"]) == 2
        error = capsys.readouterr().err
        assert f"must contain images only for the features pixels, but has 4 {medium.plural} (0." in error
        assert f"use --features {advice}" in error and error.count("\n") == 1
    for file in mixed.iterdir():
        file.unlink() if file.suffix != ".png" else None
    assert main(["stats", mixed, "-o", tmp_path / "x.npz", "--features", "pixels"]) == 0


def test_wrong_folders_and_options_are_errors_in_one_line(tmp_path, capsys):
    sounds = folder(tmp_path / "sounds", SOUND)
    assert main(["stats", str(sounds), "-o", str(tmp_path / "x.npz"), "--features", "motion"]) == 2
    assert "contains no clips (.mp4" in capsys.readouterr().err
    assert main(["images", str(sounds), str(sounds), "--features", "spectrum", "--size", "32"]) == 2
    assert "--size is for images, got 32 for sounds; omit it" in capsys.readouterr().err
    (sounds / "0.wav").write_bytes(b"no sound")
    assert main(["stats", str(sounds), "-o", str(tmp_path / "x.npz"), "--features", "spectrum"]) == 2
    error = capsys.readouterr().err
    assert "0.wav cannot be read as a sound" in error and error.count("\n") == 1
