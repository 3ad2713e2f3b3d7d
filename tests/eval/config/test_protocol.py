"""Protocols: the one of COCO on a stand-in of the same form, one size for all images, and what can be wrong in one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import center_crop

from eval.config.protocol import KINDS, read_protocol
from eval.features.extractors import extractor
from eval.features.image_folder import features_of_folder, read_image
from eval.features.resize import center_crop_resize
from eval.metrics.fid import frechet_distance
from eval.pipelines.generate import arguments, images_of, load_pipeline
from tests.commands import eval_main as main
from tests.settings import ROOT

pytestmark = pytest.mark.usefixtures("quick")
COCO = ROOT / "recipes/eval/coco30k.yaml"
CAPTIONS = ["a bag", "a coat", "a dress", "an ankle boot", "trousers"]


def photographs(place: Path, count: int = 6) -> Path:
    """A folder of pictures of several shapes, as COCO's are."""
    draw = np.random.RandomState(0)
    place.mkdir()
    for i in range(count):
        array = draw.randint(0, 256, (40 + 3 * i, 52 - 2 * i, 3)).astype(np.uint8)
        Image.fromarray(array).save(place / f"{i}.png")
    return place


def test_the_recipe_is_the_published_protocol():
    protocol = read_protocol(COCO)
    assert (protocol["samples"], protocol["size"], protocol["features"]) == (30_000, 256, "clean")
    assert protocol["clip"] == "openai/clip-vit-base-patch16"


def test_a_stand_in_of_the_same_form(make_run, tmp_path, text_pipeline):
    """Captions as .jsonl, real pictures of several shapes -> .npz at the size, both beside the protocol's file."""
    stored = yaml.safe_load(COCO.read_text()) | {"samples": 5, "size": 16, "features": "pixels", "batch_size": 3}
    del stored["clip"]  # no weights here
    place = tmp_path / "protocols"
    place.mkdir()
    (place / "small.yaml").write_text(yaml.safe_dump(stored))
    run, command = make_run(), ["--protocol", str(place / "small.yaml"), "--out", str(tmp_path / "out")]

    (place / "coco30k.jsonl").write_text("".join(json.dumps({"id": 7, "caption": c}) + "\n" for c in CAPTIONS))
    real = photographs(tmp_path / "val2014")
    options = ["--size", "16", "--features", "pixels"]
    assert main(["stats", str(real), "-o", str(place / "coco_val2014.npz"), *options]) == 0
    assert main([str(run), *command]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["protocol"] == str(place / "small.yaml")
    assert (report["samples"], report["size"], report["prompts"]["first"]) == (5, 16, CAPTIONS)
    assert not any("go round again" in note for note in report["notes"])
    assert "16 x 16 pixels" in (tmp_path / "out/report.html").read_text()

    # The same by hand, image by image, with Pillow alone.
    pipe = load_pipeline(text_pipeline, torch.device("cpu"), torch.float32)
    call = report["rows"][0]["call"]
    drawn = images_of(pipe(**arguments(pipe, call, CAPTIONS, range(5))))
    seen = extractor("pixels")(torch.stack([by_hand(as_picture(image), 16) for image in drawn]))
    known = extractor("pixels")(torch.stack([by_hand(Image.open(file), 16) for file in sorted(real.iterdir())]))
    assert report["rows"][0]["frechet_distance"] == pytest.approx(frechet_distance(seen, known), rel=1e-3)

    assert main([str(run), *command, "--samples", "7", "--size", "16"]) == 0, "the command line wins"
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["samples"] == 7
    assert any("5 prompts for 7 samples" in note for note in report["notes"])


def as_picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def by_hand(picture: Image.Image, size: int) -> torch.Tensor:
    side = min(picture.size)
    small = center_crop(picture, [side, side]).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("missing", ["prompts", "reference", "clip"])
def test_missing_files_are_refused_before_anything_is_drawn(missing, make_run, tmp_path, capsys):
    stored = yaml.safe_load(COCO.read_text()) | {"samples": 4, "features": "pixels"}
    here = {"prompts": tmp_path / "captions.txt", "reference": tmp_path / "ref.npz"}
    here["prompts"].write_text("a bag\n")
    np.savez(here["reference"], mu=np.zeros(192), sigma=np.eye(192))
    stored |= {key: str(path) for key, path in here.items()} | {missing: str(tmp_path / "missing")}
    if missing != "clip":
        del stored["clip"]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(stored))
    out = tmp_path / "out"
    assert main([str(make_run()), "--protocol", str(tmp_path / "p.yaml"), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert str(tmp_path / "missing") in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sampels: 4", 'unknown option "sampels", did you mean "samples"'),
        ("samples: many", "sets samples to 'many'; it has to be a number"),
        ("samples: true", "it has to be a number"),
        ("features: 3", "it has to be a text"),
        ("- a list", "has to hold options"),
        ("", "has to hold options"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_mistakes_in_a_protocol(text, sentence, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(text)
    assert main(["run", "--protocol", str(tmp_path / "p.yaml")]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["run", "--protocol", str(tmp_path / "no.yaml")]) == 2
    assert "there is no protocol" in capsys.readouterr().err


def test_every_option_of_a_protocol_is_one_of_the_command():
    from eval.__main__ import parser

    assert set(KINDS) <= set(vars(parser().parse_args(["run"])))


@pytest.mark.parametrize("shape", [(48, 48), (40, 53), (53, 40), (64, 16), (8, 9)])
def test_center_crop_resize_equals_pillows_crop_and_lanczos(shape):
    image = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(center_crop_resize(image, 16), torch.stack([by_hand(as_picture(i), 16) for i in image]))


def test_center_crop_resize_keeps_images_of_that_size_and_marks_images_with_nan():
    image = torch.rand(3, 3, 20, 20)
    assert center_crop_resize(image, None) is image
    assert center_crop_resize(image, 20) is image
    image[1, 0, 0, 0] = torch.nan
    assert center_crop_resize(image, 8).isnan().flatten(1).all(dim=1).tolist() == [False, True, False]


def test_statistics_know_their_size(tmp_path, capsys):
    real, made = photographs(tmp_path / "real"), tmp_path / "ref.npz"
    pixels, size = ["--features", "pixels"], ["--size", "12"]
    assert main(["stats", str(real), "-o", str(made), *pixels, *size]) == 0
    assert "6 images are too few for 192 feature dimensions" in capsys.readouterr().out
    assert main(["images", str(real), str(made), *pixels]) == 2
    assert "choose --size 12" in capsys.readouterr().err
    assert main(["images", str(real), str(made), *pixels, *size, "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["frechet_distance"] == pytest.approx(0, abs=1e-9)
    expected = extractor("pixels")(center_crop_resize(read_image(real / "0.png")[None], 12))
    torch.testing.assert_close(features_of_folder(real, extractor("pixels"), size=12)[:1], expected)
    assert main(["images", str(real), str(made), *pixels, "--size", "0"]) == 2
    assert "at least one pixel" in capsys.readouterr().err
