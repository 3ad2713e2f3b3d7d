"""Images as a medium behave as the readers and writers of images did before there were media."""

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from distill.data.images import Row
from distill.data.pixels import fit as fit_for_training
from distill.data.pixels import row_pixels
from distill.sample import grid
from eval.pipelines.generate import images_of
from teachers.media import Image, Medium
from teachers.media.pictures import fit, tile, to_pil

IMAGE = Image(height=24, width=32)
PIXELS = np.random.default_rng(0).integers(0, 255, (50, 41, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(41, 50), (32, 24), (200, 20), (5, 9)])
def test_files_are_read_as_for_training(tmp_path, mode, size):
    image = PillowImage.fromarray(PIXELS).resize(size).convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    expected = row_pixels(Row(str(file), None, file), 24, 32, captioned=False)
    reading = IMAGE.read(file)
    assert torch.equal(reading.values, expected[0])
    assert bool(reading.notes) == expected[1]
    assert torch.equal(IMAGE.read(file.read_bytes(), "a").values, expected[0])


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_damaged_files_have_the_same_message_as_for_training(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image") as raised:
        IMAGE.read(tmp_path / "a.png")
    row = Row(str(tmp_path / "a.png"), None, tmp_path / "a.png")
    assert str(raised.value) == row_pixels(row, 24, 32, captioned=False)


@pytest.mark.parametrize("size", [(7, 9), (50, 41), (3, 300), (24, 32)])
def test_cropping_is_that_of_training(size):
    pixels = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    assert torch.equal(fit(pixels, 24, 32), fit_for_training(pixels, 24, 32))


OUTPUTS = {
    "tensor": torch.rand(2, 3, 8, 8) * 1.2,
    "grey tensor": torch.rand(2, 8, 8),
    "one channel": torch.rand(2, 1, 8, 8),
    "half": torch.rand(2, 3, 8, 8).half(),
    "array": np.random.default_rng(0).random((2, 8, 8, 3), dtype=np.float32),
    "bytes": PIXELS[None, :8, :8],
    "pil": [PillowImage.fromarray(PIXELS), PillowImage.fromarray(PIXELS[::-1].copy())],
    "list": list(torch.rand(2, 3, 8, 8)),
    "tuple": (torch.rand(2, 3, 8, 8), None),
    "object": type("Output", (), {"images": torch.rand(2, 3, 8, 8)}),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_pipelines_are_received_as_before(kind):
    assert torch.equal(IMAGE.received(OUTPUTS[kind]), images_of(OUTPUTS[kind]))


@pytest.mark.parametrize("output", [torch.rand(2, 4, 8, 8), torch.rand(2, 3, 2, 8, 8), None, []])
def test_other_outputs_are_refused_as_before(output):
    with pytest.raises(ValueError) as expected:
        images_of(output)
    with pytest.raises(ValueError) as raised:
        IMAGE.received(output)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_grids_are_written_as_before(tmp_path, ending, columns):
    images = torch.rand(5, 3, 24, 32)
    assert IMAGE.save(images, tmp_path / f"a.{ending}", columns) == [tmp_path / f"a.{ending}"]
    grid(images, columns).save(tmp_path / f"b.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_a_grid_without_a_number_of_columns_is_square():
    assert to_pil(tile(torch.rand(5, 3, 24, 32))).size == (96, 48)
    assert to_pil(tile(torch.rand(1, 3, 24, 32))).size == (32, 24)


def test_the_decoded_range_is_judged_as_before():
    decoded = torch.randn(2, *IMAGE.shape)
    assert torch.equal(IMAGE.judged(decoded), (decoded / 2 + 0.5).clamp(0, 1))


def test_the_still_is_the_image_and_browsers_receive_a_png():
    sample = torch.rand(IMAGE.shape)
    assert torch.equal(IMAGE.still(sample), sample)
    (playable,) = IMAGE.playable(sample[None])
    assert (playable.mime, playable.width, playable.height) == ("image/png", 32, 24)


def test_an_image_is_a_value():
    assert Image(24, 32) == IMAGE
    assert IMAGE.seconds is None
    assert repr(IMAGE) == "Image(height=24, width=32)"
    assert isinstance(IMAGE, Medium)
    with pytest.raises(TypeError, match="abstract"):
        Medium()
