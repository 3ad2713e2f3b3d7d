"""train.compile: the same losses and checkpoints as without it, and an error message without a compiler.

The tests use the backend "aot_eager", which traces and differentiates like the real backend but needs no C++ compiler.
"""

import copy
import json

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch._dynamo.utils import counters

from distill.config.recipe import load
from distill.methods import compiling
from distill.methods.discriminator import features
from distill.methods.jvp import jvp
from distill.train import train
from distill.training import checkpoint
from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import Flow
from teachers.pocket.parts import make_unet
from tests.settings import RECIPES

FAST = ["train.batch_size=2", "train.log_every=1", "train.evaluate_every=0", "train.evaluate_samples=2"]
FAST += ["train.evaluate_teacher_steps=1", "train.tracker=none", "optimizers.student.schedule=constant"]
UNCONDITIONAL = [
    "optimizers.fake_score.schedule=constant",
    "teacher.family=unconditional",
    "teacher.guidance=1.0",
    "data.prompts=null",
    "evaluation.features=pixels",
    "evaluation.reference=null",
]
METHODS = {
    "dmd": UNCONDITIONAL,
    "sid": UNCONDITIONAL,
    "scm": ["method.adaptation_steps=2", "method.tangent_warmup=2", "method.second_times=[0.5]"],
}


@pytest.fixture(autouse=True)
def no_compiler_needed(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def run(pipeline, folder, name, method, steps, *overrides):
    fixed = [f"output={folder}", f"teacher.path={pipeline}", f"name={name}", f"train.steps={steps}"]
    recipe = load(RECIPES / f"{method}.yaml", [*FAST, *METHODS[method], *fixed, *overrides])
    train(recipe)
    return recipe.folder


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [value for line in lines for key, value in sorted(line.items()) if key.endswith("loss")]


@pytest.mark.parametrize(
    ("method", "pipeline", "modes"),
    [
        ("scm", "text_pipeline", ("none", "blocks")),
        ("dmd", "unconditional_pipeline", ("networks", "none")),  # few channels compile quickly
        ("sid", "unconditional_pipeline", ("networks", "none")),  # its gradient flows through the compiled teacher
    ],
)
@pytest.mark.exhaustive
def test_compiled_and_eager_runs_have_the_same_losses_and_resume_each_other(request, tmp_path, method, pipeline, modes):
    teacher = request.getfixturevalue(pipeline)
    eager = run(teacher, tmp_path, "eager", method, 6)
    graphs = counters["stats"]["unique_graphs"]
    run(teacher, tmp_path, "mixed", method, 3, f"train.compile={modes[0]}")
    mixed = run(teacher, tmp_path, "mixed", method, 6, f"train.compile={modes[1]}")
    assert counters["stats"]["unique_graphs"] > graphs  # something was compiled
    assert losses(mixed) == pytest.approx(losses(eager), rel=1e-5)
    one, two = (checkpoint.load_newest(folder / "checkpoints") for folder in (eager, mixed))
    assert one.weights.keys() == two.weights.keys() and one.ema.keys() == two.ema.keys()
    assert len(losses(mixed)) >= 6


def dit() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "networks"])
@pytest.mark.first_by_default
def test_derivatives_and_features_of_a_compiled_network_are_those_of_the_eager_one(mode):
    """Compiled code contains neither derivative rules nor hooks, so both run without compilation."""
    denoiser = Denoiser(dit(), Flow(), "flow_prediction")
    cond = {"class_labels": torch.tensor([1, 2])}
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 1.1])

    def velocity(x, t):
        return denoiser.velocity(x, t, cond)

    with torch.no_grad():
        eager = velocity(x, t)
    derivative, hidden = jvp(velocity, (x, t), (torch.ones_like(x), t))[1], features(denoiser, x, t, cond)
    compiling.compile_network(denoiser.network, mode)
    with torch.no_grad():
        assert torch.allclose(velocity(x, t), eager, atol=1e-6)
    assert torch.equal(jvp(velocity, (x, t), (torch.ones_like(x), t))[1], derivative)
    assert torch.equal(features(denoiser, x, t, cond), hidden)


def test_compiles_repeated_blocks_or_the_whole_network():
    """Repeated blocks are found by diffusers' names or by the network's module lists. Parameter names do not change."""
    network = dit()
    names = list(network.state_dict())
    compiling.compile_network(network, "blocks")
    compiled = [m for m in network.modules() if m._compiled_call_impl is not None]
    assert compiled == list(network.transformer_blocks)
    assert list(network.state_dict()) == names
    assert copy.deepcopy(network)._compiled_call_impl is None
    whole = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    compiling.compile_network(whole, "blocks")
    assert [m for m in whole.modules() if m._compiled_call_impl is not None] == [whole]
    unet = make_unet()
    compiling.compile_network(unet, "blocks")
    assert {type(m).__name__ for m in unet.modules() if m._compiled_call_impl is not None} == {"BasicTransformerBlock"}


def broken(graph, inputs):
    raise RuntimeError("No working C++ compiler found\nand more lines")


@pytest.mark.slow
def test_missing_compiler_is_an_error_before_anything_is_loaded(text_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .*No working C\+\+ compiler found.*compile=none"):
        run(text_pipeline, tmp_path, "broken", "dmd", 1, "train.compile=blocks")


def test_compilation_by_accelerate_is_refused(text_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match=r"dynamo_config .* set train.compile=blocks"):
        run(text_pipeline, tmp_path, "whole", "dmd", 1)
