"""Images as a medium: reading, receiving, writing."""

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torchvision.transforms.v2 import functional as V

from teachers.media import Image, Medium
from teachers.media.pictures import fit, tile, to_pil
from teachers.support.images import read_for_training

IMAGE = Image(height=24, width=32)
PIXELS = np.random.default_rng(0).integers(0, 255, (50, 41, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(41, 50), (32, 24), (200, 20), (5, 9)])
@pytest.mark.first_is_quick
def test_files_are_read_as_for_training(tmp_path, mode, size):
    image = PillowImage.fromarray(PIXELS).resize(size).convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    decoded = read_for_training(file, "a", 32)
    expected = fit(V.pil_to_tensor(decoded.image), 24, 32).float() / 127.5 - 1
    reading = IMAGE.read(file)
    assert torch.equal(reading.values, expected)
    assert bool(reading.notes) == decoded.transparent == (mode == "RGBA")
    assert torch.equal(IMAGE.read(file.read_bytes(), "a").values, expected)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    for check in (IMAGE.read, IMAGE.check):
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
            check(tmp_path / "a.png")


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
def test_outputs_of_pipelines_are_received(kind):
    output, images = OUTPUTS[kind], IMAGE.received(OUTPUTS[kind])
    assert images.shape[1] == 3 and images.dtype == torch.float32 and 0 <= images.min() <= images.max() <= 1
    if kind == "pil":
        assert torch.equal(images[0], torch.from_numpy(PIXELS).permute(2, 0, 1) / 255)
    if kind == "tensor":
        assert torch.equal(images, output.clamp(0, 1))
    if kind == "grey tensor":
        assert torch.equal(images, output[:, None].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("output", [torch.rand(2, 4, 8, 8), torch.rand(2, 3, 2, 8, 8), None, []])
def test_other_outputs_are_refused(output):
    with pytest.raises(
        ValueError, match=r"a pipeline must return images as \(B, 3, H, W\), \(B, H, W, 3\) or PIL, got"
    ):
        IMAGE.received(output)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_grids_are_written(tmp_path, ending, columns):
    images = torch.rand(5, 3, 24, 32)
    assert IMAGE.save(images, tmp_path / f"a.{ending}", columns) == [tmp_path / f"a.{ending}"]
    to_pil(tile(images, columns)).save(tmp_path / f"b.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_a_grid_without_a_number_of_columns_is_square():
    assert to_pil(tile(torch.rand(5, 3, 24, 32))).size == (96, 48)
    assert to_pil(tile(torch.rand(1, 3, 24, 32))).size == (32, 24)


def test_the_decoded_range_is_judged_in_0_to_1():
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
