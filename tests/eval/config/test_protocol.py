"""Protocols: COCO's on a small substitute of the same form, resizing of images, and mistakes in protocols."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import center_crop

from eval.__main__ import evaluate
from eval.compare import compare
from eval.config.protocol import KEYS, read_protocol
from eval.features.extractors import extractor
from eval.features.image_folder import features_of_folder, read_image
from eval.features.resize import center_crop_resize
from eval.metrics.fid import frechet_distance
from eval.pipelines.generate import arguments
from eval.pipelines.loading import load_pipeline
from teachers.media import ANY_IMAGE
from tests.commands import eval_main as main
from tests.settings import ROOT

COCO = ROOT / "recipes/eval/coco30k.yaml"
CAPTIONS = ["a bag", "a coat", "a dress", "an ankle boot", "trousers"]


def photographs(place: Path, count: int = 6) -> Path:
    """A folder of images of several shapes, as in COCO."""
    random = np.random.RandomState(0)
    place.mkdir()
    for i in range(count):
        array = random.randint(0, 256, (40 + 3 * i, 52 - 2 * i, 3)).astype(np.uint8)
        Image.fromarray(array).save(place / f"{i}.png")
    return place


def test_the_coco_recipe_is_the_published_protocol():
    protocol = read_protocol(COCO)
    assert (protocol["samples"], protocol["size"], protocol["features"]) == (30_000, 256, "clean")
    assert protocol["clip"] == "openai/clip-vit-base-patch16"


@pytest.mark.exhaustive
def test_a_small_substitute_of_the_coco_protocol(make_run, tmp_path, text_pipeline, quick):
    """Captions as .jsonl and the .npz of real images of several shapes are next to the protocol's file."""
    stored = yaml.safe_load(COCO.read_text()) | {"samples": 5, "size": 16, "features": "pixels", "batch_size": 3}
    del stored["clip"]  # its weights are not on every machine
    folder, out = tmp_path / "protocols", tmp_path / "out"
    folder.mkdir()
    protocol = folder / "small.yaml"
    protocol.write_text(yaml.safe_dump(stored))
    (folder / "coco30k.jsonl").write_text("".join(json.dumps({"id": 7, "caption": c}) + "\n" for c in CAPTIONS))
    real = photographs(tmp_path / "val2014")
    options = ["--size", "16", "--features", "pixels"]
    assert main(["stats", str(real), "-o", str(folder / "coco_val2014.npz"), *options]) == 0

    run, fixed = make_run(), read_protocol(protocol)
    report = compare([run], out, protocol=protocol, **fixed, **quick)
    assert report["protocol"] == str(protocol)
    assert (report["samples"], report["size"], report["prompts"]["first"]) == (5, 16, CAPTIONS)
    assert not any("prompts are repeated" in note for note in report["notes"])
    assert "16 x 16 pixels" in (out / "report.html").read_text()

    # The same figures with Pillow, image by image.
    pipe = load_pipeline(text_pipeline, torch.device("cpu"), torch.float32)
    call = report["rows"][0]["call"]
    images = ANY_IMAGE.received(pipe(**arguments(pipe, call, CAPTIONS, range(5))))
    features = extractor("pixels")(torch.stack([with_pillow(to_pillow(image), 16) for image in images]))
    real_features = extractor("pixels")(torch.stack([with_pillow(Image.open(f), 16) for f in sorted(real.iterdir())]))
    expected = frechet_distance(features, real_features)
    assert report["rows"][0]["frechet_distance"] == pytest.approx(expected, rel=1e-3)

    report = compare([run], out, protocol=protocol, **fixed | quick | {"samples": 7})
    assert any("5 prompts for 7 samples" in note for note in report["notes"])


def test_the_command_line_overrides_the_protocol(make_run, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("samples: 4\nsize: 8\n")
    command = [str(make_run()), "--protocol", str(tmp_path / "p.yaml"), "--out", str(tmp_path / "out")]
    assert main([*command, "--samples", "1"]) == 2
    assert "--samples must be at least 2, got 1" in capsys.readouterr().err
    assert main([*command, "--size", "0"]) == 2
    assert "--size must be at least 1, got 0" in capsys.readouterr().err


def test_models_beside_the_protocol_are_found(tmp_path):
    for name in ("clap", "hps"):
        (tmp_path / name).mkdir()
    (tmp_path / "p.yaml").write_text("clap: clap\nscore: [hpsv2=hps, objects=elsewhere/detr, pickscore]\n")
    found = read_protocol(tmp_path / "p.yaml")
    assert found["clap"] == str(tmp_path / "clap")
    assert found["score"] == [f"hpsv2={tmp_path / 'hps'}", "objects=elsewhere/detr", "pickscore"]


def to_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def with_pillow(image: Image.Image, size: int) -> torch.Tensor:
    side = min(image.size)
    small = center_crop(image, [side, side]).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("missing", ["prompts", "reference", "clip"])
@pytest.mark.first_is_quick
def test_missing_files_are_refused_before_generation(missing, make_run, tmp_path, capsys):
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
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert str(tmp_path / "missing") in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sampels: 4", "unknown option 'sampels', did you mean 'samples'"),
        ("samples: many", "must be a whole number, got 'many'"),
        ("samples: true", "must be a whole number, got True"),
        ("samples: 1", "p.yaml must be at least 2, got 1"),
        ("samples: .inf", "must be a whole number, got inf"),
        ("seed: -1", "must be at least 0, got -1"),
        ("seed: 4294967296", "must be at most 4294967295"),
        ("size: 0", "must be at least 1, got 0"),
        ("batch_size: 0", "must be at least 1, got 0"),
        ("reference: null", "must have a value, got null"),
        ("prompts: ''", "must be a text that is not empty, got ''"),
        ("features: 3", "must be a string, got 3"),
        ("- a list", "must contain options and their values"),
        ("", "must contain options and their values"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_mistakes_in_a_protocol(text, sentence, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(text)
    assert main(["run", "--protocol", str(tmp_path / "p.yaml")]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["run", "--protocol", str(tmp_path / "no.yaml")]) == 2
    assert "--protocol must be a YAML file" in capsys.readouterr().err


def test_every_option_of_a_protocol_is_an_option_of_the_command():
    assert set(KEYS) <= {parameter.name for parameter in evaluate.commands["compare"].params}


@pytest.mark.parametrize("shape", [(48, 48), (40, 53), (53, 40), (64, 16), (8, 9)])
def test_center_crop_resize_equals_pillows_crop_and_lanczos_filter(shape):
    image = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([with_pillow(to_pillow(i), 16) for i in image])
    torch.testing.assert_close(center_crop_resize(image, 16), expected)


def test_center_crop_resize_keeps_images_of_the_right_size_and_marks_broken_ones(tmp_path):
    image = torch.rand(3, 3, 20, 20)
    assert center_crop_resize(image, None) is image
    assert center_crop_resize(image, 20) is image
    image[1, 0, 0, 0] = torch.nan
    assert center_crop_resize(image, 8).isnan().flatten(1).all(dim=1).tolist() == [False, True, False]


def test_statistics_record_the_size_of_their_images(tmp_path, capsys):
    real, file = photographs(tmp_path / "real"), tmp_path / "ref.npz"
    pixels, size = ["--features", "pixels"], ["--size", "12"]
    assert main(["stats", str(real), "-o", str(file), *pixels, *size]) == 0
    assert "6 images are too few for 192 feature dimensions" in capsys.readouterr().out
    assert main(["images", str(real), str(file), *pixels]) == 2
    assert "choose --size 12" in capsys.readouterr().err
    assert main(["images", str(real), str(file), *pixels, *size, "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["frechet_distance"] == pytest.approx(0, abs=1e-9)
    expected = extractor("pixels")(center_crop_resize(read_image(real / "0.png")[None], 12))
    torch.testing.assert_close(features_of_folder(real, extractor("pixels"), size=12)[:1], expected)
    assert main(["images", str(real), str(file), *pixels, "--size", "0"]) == 2
    assert "--size must be at least 1, got 0" in capsys.readouterr().err
