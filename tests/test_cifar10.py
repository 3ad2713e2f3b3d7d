"""The benchmark on CIFAR-10 at a tiny size: every stage runs, and the same command repeats none of them."""

import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from benchmarks import cifar10
from distill.config.recipe import load
from tests.settings import FAST


@pytest.fixture
def package(tmp_path):
    """Two files of the data set's form, with eight images each."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 1024, 3), dtype=np.uint8)
    for number, rows in enumerate((pixels[:8], pixels[8:]), start=1):
        Image.fromarray(rows).save(tmp_path / f"data_batch_{number}.png")
    return tmp_path, pixels


def test_each_row_of_a_file_is_an_image(package):
    folder, pixels = package
    images = cifar10.read_images(folder)
    assert images.shape == (16, 3, 32, 32) and images[9, 2, 3, 4] == pixels[9, 3 * 32 + 4, 2]
    with pytest.raises(ValueError, match=r"must have the files data_batch_1\.png"):
        cifar10.read_images(folder / "gone")


def test_the_loss_of_a_perfect_network_is_zero():
    """For data of one image, its own mirror image, x0 is known at every angle, and so is the velocity."""
    image = torch.full((1, 3, 32, 32), 191, dtype=torch.uint8)

    class Perfect:
        path = cifar10.EdmUNet(small_unet(8), cifar10.EDMEulerScheduler(sigma_data=0.5)).denoiser.path

        def velocity(self, x_t, t, cond):
            x0, (cos, sin) = (191 / 127.5 - 1) / 0.5, (t.cos()[:, None, None, None], t.sin()[:, None, None, None])
            return cos * (x_t - cos * x0) / sin - sin * x0

    value, figures = cifar10.edm_loss(Perfect(), image, 64)(torch.Generator().manual_seed(0))
    assert value < 1e-6 and figures["loss"] is value


def small_unet(channels):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(32, 3, 3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=8, **blocks)


@pytest.mark.exhaustive
def test_every_stage_runs_once(package, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "MEASURED_STEPS", 1)
    monkeypatch.setattr(cifar10, "make_unet", small_unet)
    one_time = {"cifar10_scm": ["method.second_times=[1.0]"]}
    monkeypatch.setattr(cifar10, "load", lambda name, words: load(name, [*words, *one_time.get(name, [])]))
    out = tmp_path / "out"
    words = ["cifar10", str(tmp_path), "--out", str(out), "--device", "cpu", "--features", "pixels", "--samples", "4"]
    words += ["--batch-size", "2", "--teacher-minutes", "0.0001", "--student-minutes", "0.0001"]
    settings = [word for word in FAST if word.startswith("train.")]
    monkeypatch.setattr("sys.argv", [*words, "--set", *settings, "train.precision=no", "teacher.num_steps=2"])
    cifar10.main()
    rows = json.loads((out / "report" / "report.json").read_text())["rows"]
    assert [(row["method"], row["num_steps"]) for row in rows if row["method"] in cifar10.METHODS] == [
        ("dmd", 1),
        ("scm", 1),
        ("scm", 2),
    ]
    plan = (out / "plan.json").read_text()
    assert set(json.loads(plan)) == {"teacher", *cifar10.METHODS}
    before = (out / "scm" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    cifar10.main()
    assert (out / "plan.json").read_text() == plan
    assert (out / "scm/pipeline/unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before
