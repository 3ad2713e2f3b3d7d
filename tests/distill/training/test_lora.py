"""Runs with memory.tier=lora: checkpoints, resuming, exports and defaults."""

import itertools
import json

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from distill.data.plan import Plan
from distill.train import train
from distill.training import checkpoint
from distill.training.engine import Engine
from distill.training.run_folder import fingerprint
from teachers.families.stable_diffusion import StableDiffusion
from tests.runs import interrupted

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "precision"),
    [("dmd", "float32"), ("sid", "float32"), ("scm", "float32"), ("lcm", "bfloat16")],
)
@pytest.mark.first_by_default
def test_resumed_run_is_bitwise_identical(lora_recipe, method, precision):
    whole = lora_recipe(method, "train.steps=2", "train.checkpoint_every=1", f"teacher.precision={precision}")
    train(whole)
    parts = interrupted(whole, "parts")
    train(parts)
    one, two = (checkpoint.load_newest(r.folder / "checkpoints") for r in (whole, parts))
    assert one.meta["step"] == 2
    for uninterrupted, resumed in ((one.weights, two.weights), (one.ema, two.ema)):
        assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


@pytest.mark.slow
def test_checkpoint_contains_adapters_without_the_base(lora_recipe):
    run = lora_recipe("dmd", "train.steps=2")
    train(run)
    saved = checkpoint.load_newest(run.folder / "checkpoints")
    assert {name.split(".")[0] for name in saved.weights} == {"student", "fake_score", "discriminator"}
    assert {name.split(".")[1] for name in saved.ema} == {"low_rank", "time_layers"}
    base = StableDiffusion.load(run.teacher.path, CPU).denoiser
    assert sum(x.numel() for x in saved.ema.values()) < 0.5 * sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("method", ["dmd", "scm"])
@pytest.mark.exhaustive
def test_exported_pipeline_and_lora_file_give_the_same_images(lora_recipe, method):
    """The pipeline has no LoRA layers, and the LoRA file gives its images with the teacher's stock pipeline."""
    run = lora_recipe(method, "train.steps=3", "optimizers.student.lr=0.01")
    folder = train(run)
    record = json.loads((folder / "distill.json").read_text())
    names = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").keys()
    assert not any("lora" in name or "base_layer" in name for name in names)
    merged = DiffusionPipeline.from_pretrained(folder)
    stock = StableDiffusionPipeline.from_pretrained(run.teacher.path, safety_checker=None)
    stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    untrained = sample_images(stock, record["lora"]["calls"][0]["call"])
    stock.load_lora_weights(folder / record["lora"]["folder"])
    for call, lora_call in zip(record["calls"], record["lora"]["calls"], strict=True):
        expected, actual = sample_images(merged, call["call"]), sample_images(stock, lora_call["call"])
        assert (actual - expected).abs().max() < 1e-3
    assert (untrained - expected).abs().max() > 1e-2
    card = (folder / "README.md").read_text()
    assert "load_lora_weights" in card and "LCMScheduler.from_pretrained" in card


def sample_images(pipe, call):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a coat", output_type="np", generator=generator, **call).images)


@pytest.mark.exhaustive
def test_zero_steps_export_the_teacher(lora_recipe):
    run = lora_recipe("dmd", "train.steps=0")
    exported = load_file(train(run) / "unet" / "diffusion_pytorch_model.safetensors")
    teacher = StableDiffusion.load(run.teacher.path, CPU).denoiser.network.state_dict()
    assert all(torch.equal(exported[key], teacher[key]) for key in teacher)


@pytest.mark.slow
def test_defaults_and_fingerprints_depend_on_the_tier(lora_recipe):
    auto = "teacher.precision=auto"
    full, lora, other = (lora_recipe("dmd", auto, *o) for o in (("memory.tier=full",), (), ("memory.rank=8",)))
    assert (full.teacher.precision, lora.teacher.precision) == ("float32", "bfloat16")
    assert lora_recipe("dmd", "teacher.precision=float32").teacher.precision == "float32"

    plan = Plan([""])
    fingerprints = [fingerprint(r, plan) for r in (full, lora, other)]
    assert all(one != two for one, two in itertools.combinations(fingerprints, 2))
    assert fingerprint(lora_recipe("dmd", auto, "memory.checkpointing=false"), plan) in fingerprints
    assert lora.memory.activation_checkpointing and not full.memory.activation_checkpointing
    assert not lora_recipe("dmd", "memory.checkpointing=false").memory.activation_checkpointing
    assert lora_recipe("dmd", "memory.tier=full", "memory.checkpointing=true").memory.activation_checkpointing


@pytest.mark.slow
def test_unsupported_combinations_are_rejected(lora_recipe, monkeypatch):
    with pytest.raises(ValueError, match=r"memory\.rank must be at least 1, got 0"):
        lora_recipe("dmd", "memory.rank=0")
    with pytest.raises(ValueError, match=r"train\.compile must be none with memory\.tier=lora"):
        lora_recipe("dmd", "train.compile=blocks")
    with pytest.raises(ValueError, match="full, lora"):
        lora_recipe("dmd", "memory.tier=half")

    def refuse(self, setting):
        raise ValueError(f"{setting} cannot be combined with FSDP2")

    monkeypatch.setattr(Engine, "refuse_sharding", refuse)
    with pytest.raises(ValueError, match=r"memory\.tier=lora cannot be combined with FSDP2"):
        train(lora_recipe("dmd", "train.steps=1"))
