"""`python -m distill.sample`: the export's own call, the same picture twice, one sentence for a mistake."""

import pytest
import torch
from PIL import Image

from distill.sample import draw
from tests.commands import fewstep

CPU = torch.device("cpu")


@pytest.fixture
def run(make_run):
    calls = [{"num_steps": n, "call": {"num_inference_steps": n, "guidance_scale": 1.0}} for n in (1, 2)]
    return make_run(calls=calls)


def test_a_seed_is_a_picture_and_other_steps_another(run):
    one = draw(run, ["a coat"], 2, None, 0, CPU)
    assert one.shape == (2, 3, 32, 32)
    assert torch.equal(one, draw(run / "pipeline", ["a coat"], 2, 1, 0, CPU))
    assert not torch.equal(one, draw(run, ["a coat"], 2, 2, 0, CPU))
    assert not torch.equal(one, draw(run, ["a coat"], 2, 1, 1, CPU))
    assert not torch.equal(one[0], one[1])


def test_the_command_writes_a_grid(run, tmp_path, capsys):
    out = tmp_path / "new" / "x.png"
    assert fewstep("sample", run, "--prompt", "a coat", "--prompt", "a bag", "--count", 3, "--out", out) == 0
    assert Image.open(out).size == (3 * 32, 2 * 32)
    assert "6 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--prompt", "a coat", "--num-steps", "50"], "takes 1 or 2 steps, not 50"),
        ([], "give --prompt"),
        (["--prompt", "a coat", "--count", "0"], "--count must be at least 1, got 0"),
        (["--prompt", "a coat", "--out", "x.txt"], "--out must end in .png, .jpg or .webp, got x.txt"),
    ],
)
def test_mistakes_are_sentences(run, capsys, arguments, match):
    assert fewstep("sample", run, *arguments) == 2
    assert match in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no distill\.json"):
        draw(tmp_path, ["a coat"], 1, 1, 0, CPU)
