"""accelerate's variables do not change training silently."""

import os

import pytest
import torch
from safetensors.torch import load_file

from distill.config.recipe import load
from distill.config.sections import TrainRecipe
from distill.train import train
from distill.training.engine import Engine
from distill.training.environment import check_environment, without_accelerate_variables
from tests.settings import FAST, RECIPES

NONE = TrainRecipe(tracker="none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "train.precision=no"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "train.precision=no"),
        ("ACCELERATE_MIXED_PRECISION", "no", None),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.accumulation=1"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "train.accumulation=1"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", None),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "train.max_norm=1"),
        ("ACCELERATE_DOWNCAST_BF16", "true", None),
        ("ACCELERATE_DYNAMO_USE_FULLGRAPH", "true", None),
        ("ACCELERATE_DYNAMO_MODE", "max-autotune", None),
        ("ACCELERATE_SPLIT_BATCHES", "true", None),
        ("ACCELERATE_EVEN_BATCHES", "false", None),
        ("ACCELERATE_FP8_BACKEND", "TE", None),
        ("ACCELERATE_SOMETHING_NEW", "true", None),
    ],
)
def test_variables_change_nothing_and_differences_are_said(tmp_path, monkeypatch, capsys, name, value, message):
    monkeypatch.setenv(name, value)
    engine = Engine(NONE, tmp_path)
    assert engine.accelerator.gradient_accumulation_steps == 1
    assert engine.accelerator.mixed_precision == "no"
    assert engine.accelerator.state.dynamo_plugin.backend.value == "NO"
    weight = torch.nn.Parameter(torch.ones(3))
    engine.accelerator.backward(weight.sum())
    assert torch.equal(weight.grad, torch.ones(3))
    printed = capsys.readouterr().out.splitlines()
    expected = [] if message is None else [f"{name}={value} in the environment is ignored: the recipe says {message}"]
    assert printed == expected
    assert os.environ[name] == value


def test_equal_values_are_not_mentioned(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert not check_environment(TrainRecipe(precision="bf16", accumulation=4))


@pytest.mark.parametrize("word", ["true", "True", "1", "yes"])
@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_other_ways_of_training_are_errors(monkeypatch, tmp_path, name, word):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", word)
    with pytest.raises(ValueError, match=f"{name} cannot train several networks"):
        Engine(NONE, tmp_path)


def test_compilation_by_accelerate_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match=r"train\.compile=blocks"):
        Engine(NONE, tmp_path)


def test_fsdp_without_a_launcher_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="needs processes that a launcher starts together"):
        Engine(NONE, tmp_path)


def test_variables_about_processes_and_devices_stay(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with without_accelerate_variables():
        assert os.environ["ACCELERATE_USE_CPU"] == "true" and "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.exhaustive
def test_weights_do_not_depend_on_the_environment(tmp_path, text_pipeline, monkeypatch):
    """accelerate divides the loss by its own number of accumulation steps, before the gradients are clipped."""

    def weights(name):
        words = [f"output={tmp_path}", f"name={name}", f"teacher.path={text_pipeline}", "train.steps=2"]
        folder = train(load(RECIPES / "dmd.yaml", [*FAST, *words]))
        return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")

    plain = weights("plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert all(torch.equal(plain[name], value) for name, value in weights("changed").items())
