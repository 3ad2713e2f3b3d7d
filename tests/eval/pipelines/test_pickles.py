"""Pickled weights in evaluation: refused, or allowed by an option that the report names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from eval.compare import compare
from eval.config.names import PICKLES_ALLOWED
from eval.config.protocol import read_protocol
from tests.commands import eval_main


@pytest.fixture
def pickled(text_pipeline, tmp_path):
    """A pipeline whose network is stored as a pickle of tensors only."""
    folder = tmp_path / "pickled"
    shutil.copytree(text_pipeline, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return folder


def test_pickled_weights_are_refused_before_anything_is_measured(pickled, make_run, tmp_path, capsys):
    options = ["--samples", "2", "--features", "pixels", "--reference", "teacher", "--out", str(tmp_path / "out")]
    assert eval_main([str(make_run("student")), str(pickled), *options]) == 2
    assert "has no safetensors weights for unet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_report_says_that_pickled_weights_were_allowed(pickled, make_run, tmp_path, quick):
    out = tmp_path / "out"
    runs = [make_run("student"), pickled]
    compare(runs, out, samples=2, batch_size=2, steps="1", allow_pickle=True, **(quick | {"few_steps": ()}))
    report = json.loads((out / "report.json").read_text())
    assert report["allow_pickle"] is True and PICKLES_ALLOWED in report["notes"]
    for name in ("report.html", "report.md"):
        assert "Pickled weights were allowed" in (out / name).read_text(encoding="utf-8")


def test_a_protocol_can_allow_pickled_weights(tmp_path):
    file = tmp_path / "protocol.yaml"
    file.write_text("allow_pickle: true\nsamples: 4\n")
    assert read_protocol(file) == {"allow_pickle": True, "samples": 4}
    for value in ("yes please", "1"):
        file.write_text(f"allow_pickle: {value}\n")
        with pytest.raises(ValueError, match=r"allow_pickle in .* must be true or false"):
            read_protocol(file)
