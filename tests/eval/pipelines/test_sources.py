"""Source images of a comparison: one set for all rows, checked before anything is generated."""

import json
import shutil

import pytest
import torch
from PIL import Image

from eval.pipelines.sources import sources_for

COLORS = ("red", "lime", "blue")


@pytest.fixture
def images(tmp_path):
    """A folder of three source images with instructions."""
    folder = tmp_path / "images"
    folder.mkdir()
    for color in COLORS:
        Image.new("RGB", (20, 24), color).save(folder / f"{color}.png")
    rows = [{"original_image": f"{color}.png", "edit_prompt": f"not {color}"} for color in COLORS]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_all_pipelines_get_the_same_rows_in_the_order_of_the_metadata(images, tiny_source, tmp_path):
    folder = tiny_source("InstructPix2Pix")[1]
    shutil.copytree(folder, tmp_path / "copy")
    sources = sources_for([folder, tmp_path / "copy"], str(images))
    assert sources.prompts(4) == ["not red", "not lime", "not blue", "not red"]
    corners = sources.read([0, 1, 2, 3])[:, :, 0, 0]
    assert torch.equal(corners, 2 * torch.eye(3)[[0, 1, 2, 0]] - 1) and sources.shape == (3, 16, 16)


@pytest.mark.slow
def test_pipelines_with_source_images_of_other_sizes_are_not_compared(images, tiny_source, tmp_path):
    folder, other = tiny_source("InstructPix2Pix")[1], tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 2 * config["sample_size"]}))
    with pytest.raises(ValueError, match=r"source images of one size.* takes 16 x 16 pixels, .*other takes 32 x 32"):
        sources_for([folder, other], str(images))


def test_images_that_cannot_be_read_are_refused_before_the_evaluation(images, tiny_source):
    (images / "blue.png").write_bytes((images / "blue.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"blue\.png"):
        sources_for([tiny_source("InstructPix2Pix")[1]], str(images))
