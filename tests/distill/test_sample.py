"""`fewstep sample`: the call arguments of the export, reproducible images, error messages."""

import pytest
import torch
from PIL import Image

from distill.sample import sample_run
from tests.commands import fewstep

CPU = torch.device("cpu")


@pytest.fixture
def run(make_run):
    calls = [{"num_steps": n, "call": {"num_inference_steps": n, "guidance_scale": 1.0}} for n in (1, 2)]
    return make_run(calls=calls)


@pytest.mark.slow
def test_images_depend_on_seed_and_steps_only(run):
    one = sample_run(run, ["a coat"], 2, None, 0, CPU)[0]
    assert one.shape == (2, 3, 32, 32)
    assert torch.equal(one, sample_run(run / "pipeline", ["a coat"], 2, 1, 0, CPU)[0])
    assert not torch.equal(one, sample_run(run, ["a coat"], 2, 2, 0, CPU)[0])
    assert not torch.equal(one, sample_run(run, ["a coat"], 2, 1, 1, CPU)[0])
    assert not torch.equal(one[0], one[1])


@pytest.mark.slow
def test_command_writes_a_grid(run, tmp_path, capsys):
    out = tmp_path / "new" / "x.png"
    assert fewstep("sample", run, "--prompt", "a coat", "--prompt", "a bag", "--count", 3, "--out", out) == 0
    assert Image.open(out).size == (3 * 32, 2 * 32)
    assert "6 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--prompt", "a coat", "--num-steps", "50"], "--num-steps must be 1 or 2 for this student, got 50"),
        ([], "--prompt is required for StableDiffusionPipeline"),
        (["--prompt", "a coat", "--count", "0"], "--count must be at least 1, got 0"),
        (["--prompt", "a coat", "--out", "x.txt"], "--out must end in .png, .jpg or .webp, got x.txt"),
    ],
)
@pytest.mark.first_is_quick
def test_wrong_arguments_are_errors(run, capsys, arguments, match):
    assert fewstep("sample", run, *arguments) == 2
    assert match in capsys.readouterr().err


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no distill\.json"):
        sample_run(tmp_path, ["a coat"], 1, 1, 0, CPU)[0]
