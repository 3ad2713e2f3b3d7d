"""The shared tier through the loop: what is saved, resuming, exports, methods, refusals."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from distill import checkpoint
from distill.engine import Engine
from distill.recipe import load
from distill.run import fingerprint
from distill.train import train
from teachers.stable_diffusion import StableDiffusion

FAST = [
    "train.batch_size=4",
    "train.evaluate_every=0",
    "train.evaluate_samples=6",
    "train.evaluate_teacher_steps=2",
    "train.checkpoint_every=2",
    "train.tracker=none",
    "memory.tier=shared",
    "memory.rank=4",
]
METHODS = {
    "dmd": "{name: dmd, regression_weight: 0.5, regression_distance: latent, regression_pairs: 6}",
    "gan": "{name: dmd, gan_weight: 0.1, r1_weight: 0.1}",
    "scm": "{name: scm, adaptation_steps: 1, tangent_warmup: 2, learned_weighting: true, second_times: [0.5, 0.9]}",
    "rcm": "{name: rcm, scm: {adaptation_steps: 1, second_times: [0.7]}}",
}


@pytest.fixture
def recipe(text_pipeline, tmp_path):
    """`recipe(method, *overrides)` on the tiny pipeline with captioned images."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (50 * i, 20, 90)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text("a coat")

    def make(method, *overrides, fast=FAST):
        file = tmp_path / f"{method}.yaml"
        file.write_text(
            f"name: {method}\noutput: {tmp_path / 'runs'}\ndata: {{images: {images}}}\nmethod: {METHODS[method]}\n"
            f"teacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0}}\n"
        )
        return load(file, [*fast, *overrides])

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_shared_run_is_bitwise_the_uninterrupted_one(recipe, method):
    whole = recipe(method, "train.steps=4", "name=whole", "memory.checkpointing=true")
    train(whole)
    train(recipe(method, "train.steps=2", "name=parts"))
    parts = recipe(method, "train.steps=4", "name=parts")
    train(parts)
    one, two = (checkpoint.load_newest(r.folder / "checkpoints") for r in (whole, parts))
    for name in one.average:  # with activations computed again on one side
        assert torch.allclose(one.average[name], two.average[name], atol=1e-5), name
    train(recipe(method, "train.steps=4", "name=again"))
    three = checkpoint.load_newest(whole.folder.parent / "again" / "checkpoints")
    assert all(torch.equal(three.average[name], two.average[name]) for name in three.average)
    assert all(torch.equal(three.weights[name], two.weights[name]) for name in three.weights)


def test_a_checkpoint_holds_adapters_and_not_the_base(recipe):
    run = recipe("dmd", "train.steps=2")
    train(run)
    saved = checkpoint.load_newest(run.folder / "checkpoints")
    sides = {name.split(".")[-2] for name in saved.weights if "low_rank" in name}
    assert sides == {"A", "B"} and all("low_rank" in name or "clocks" in name for name in saved.weights)
    assert {name.split(".")[0] for name in saved.weights} == {"student", "fake_score"}
    base = StableDiffusion.load(run.teacher.path, torch.device("cpu")).denoiser
    assert sum(x.numel() for x in saved.average.values()) < 0.5 * sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_the_exports_of_a_shared_run(recipe, method):
    """A pipeline with no trace of peft, and a LoRA file that makes the stock teacher draw the same pictures."""
    run = recipe(method, "train.steps=3", "teacher.precision=float32", "optimizers.student.lr=0.01")
    folder = train(run)
    record = json.loads((folder / "distill.json").read_text())
    names = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").keys()
    assert not any("lora" in name or "base_layer" in name for name in names)
    fused = DiffusionPipeline.from_pretrained(folder)
    stock = StableDiffusionPipeline.from_pretrained(run.teacher.path, safety_checker=None)
    stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    teachers_own = draw(stock, record["lora"]["calls"][0]["call"])
    stock.load_lora_weights(folder / record["lora"]["folder"])
    for plain, low_rank in zip(record["calls"], record["lora"]["calls"], strict=True):
        wanted, found = draw(fused, plain["call"]), draw(stock, low_rank["call"])
        assert (found - wanted).abs().max() < 1e-3
    assert (teachers_own - wanted).abs().max() > 1e-2
    card = (folder / "README.md").read_text()
    assert "load_lora_weights" in card and "LCMScheduler.from_pretrained" in card


def draw(pipe, call):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a coat", output_type="np", generator=generator, **call).images)


def test_no_steps_export_the_teacher_itself(recipe):
    run = recipe("dmd", "train.steps=0", "teacher.precision=float32")
    trained = load_file(train(run) / "unet" / "diffusion_pytorch_model.safetensors")
    teacher = StableDiffusion.load(run.teacher.path, torch.device("cpu")).denoiser.network.state_dict()
    assert all(torch.equal(trained[key], teacher[key]) for key in teacher)


def test_half_precision_is_the_shared_tiers_default_and_runs_know_their_tier(recipe):
    full, shared, other = (recipe("dmd", *o) for o in (("memory.tier=full",), (), ("memory.rank=8",)))
    assert (full.teacher.precision, shared.teacher.precision) == ("float32", "bfloat16")
    assert recipe("dmd", "teacher.precision=float32").teacher.precision == "float32"

    class Nothing:
        pass

    plan = __import__("distill.data", fromlist=["Plan"]).Plan([""])
    marks = {fingerprint(r, plan) for r in (full, shared, other)}
    assert len(marks) == 3
    assert fingerprint(recipe("dmd", "memory.checkpointing=true"), plan) in marks


def test_what_cannot_be_is_one_sentence(recipe, monkeypatch):
    with pytest.raises(ValueError, match=r"memory\.rank is 0"):
        recipe("dmd", "memory.rank=0")
    with pytest.raises(ValueError, match="full, shared"):
        recipe("dmd", "memory.tier=half")
    monkeypatch.setattr(Engine, "refuse_sharding", refuse)
    with pytest.raises(ValueError, match="FSDP2"):
        train(recipe("dmd", "train.steps=1"))


def refuse(self, what):
    raise ValueError(f"{what} runs on one process or in DDP, not in FSDP2")
