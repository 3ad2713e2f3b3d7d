"""The shared tier through the loop: what is saved, resuming, exports, methods, refusals."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from distill.config.recipe import DTYPES, load, method_options
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.data.dataset import Plan
from distill.train import train
from distill.training import checkpoint
from distill.training import memory_plan as memory
from distill.training.engine import Engine
from distill.training.meta_device import MemoryTracker
from distill.training.run_folder import fingerprint
from teachers.families.stable_diffusion import StableDiffusion
from teachers.networks.adapters import unwrap
from teachers.networks.checkpointing import checkpoint_activations
from tests.settings import FAST

SHARED = [*FAST, "memory.tier=lora", "memory.rank=4"]
METHODS = {
    "dmd": "{name: dmd, regression_weight: 0.5, regression_distance: latent, regression_pairs: 6, "
    "gan_weight: 0.1, r1_weight: 0.1, fake_score_updates: 1}",
    "scm": "{name: scm, adaptation_steps: 1, tangent_warmup: 2, learned_weighting: true, second_times: [0.5, 0.9]}",
    "rcm": "{name: rcm, scm: {adaptation_steps: 1, second_times: [0.7]}, dmd: {fake_score_updates: 1}}",
}


@pytest.fixture
def recipe(text_pipeline, tmp_path):
    """`recipe(method, *overrides)` on the tiny pipeline with captioned images."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (50 * i, 20, 90)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text("a coat")

    def make(method, *overrides, fast=SHARED):
        file = tmp_path / f"{method}.yaml"
        file.write_text(
            f"name: {method}\noutput: {tmp_path / 'runs'}\ndata: {{images: {images}}}\nmethod: {METHODS[method]}\n"
            f"teacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0}}\n"
        )
        return load(file, [*fast, *overrides])

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_shared_run_is_bitwise_the_uninterrupted_one(recipe, method):
    whole, parts = (
        recipe(method, "train.steps=2", "train.checkpoint_every=1", f"name={n}") for n in ("whole", "parts")
    )
    train(whole)
    train(recipe(method, "train.steps=1", "name=parts"))
    train(parts)
    one, two = (checkpoint.load_newest(r.folder / "checkpoints") for r in (whole, parts))
    assert one.meta["step"] == 2
    for kept, again in ((one.weights, two.weights), (one.ema, two.ema)):
        assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_a_checkpoint_holds_adapters_and_not_the_base(recipe):
    run = recipe("dmd", "train.steps=2")
    train(run)
    saved = checkpoint.load_newest(run.folder / "checkpoints")
    assert {name.split(".")[0] for name in saved.weights} == {"student", "fake_score", "discriminator"}
    assert {name.split(".")[1] for name in saved.ema} == {"low_rank", "time_layers"}
    base = StableDiffusion.load(run.teacher.path, torch.device("cpu")).denoiser
    assert sum(x.numel() for x in saved.ema.values()) < 0.5 * sum(p.numel() for p in base.parameters())


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

    plan = Plan([""])
    marks = {fingerprint(r, plan) for r in (full, shared, other)}
    assert len(marks) == 3
    assert fingerprint(recipe("dmd", "memory.checkpointing=false"), plan) in marks
    assert (
        shared.memory.activation_checkpointing and not full.memory.activation_checkpointing
    )  # where memory is what the tier is for
    assert not recipe("dmd", "memory.checkpointing=false").memory.activation_checkpointing
    assert recipe("dmd", "memory.tier=full", "memory.checkpointing=true").memory.activation_checkpointing


CPU = torch.device("cpu")


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("tier", ["full", "lora"])
@pytest.mark.parametrize("method", ["dmd", "scm"])
def test_the_plan_is_what_a_turn_allocates(recipe, method, tier, checkpointing):
    """On real tensors, what is alive at the fullest moment, counted the same way, to 5%: kernels have buffers too."""
    plain = ["method.gan_weight=0", "method.r1_weight=0", "method.regression_weight=0"] if method == "dmd" else []
    run = recipe(method, *plain, f"memory.tier={tier}", f"memory.checkpointing={checkpointing}")
    planned = memory.plan(run, 4)
    teacher = StableDiffusion.load(run.teacher.path, CPU, DTYPES[run.teacher.precision])
    if tier == "lora":
        teacher.enable_lora(run.memory.rank)
    if checkpointing == "true":
        checkpoint_activations(teacher.denoiser.network)
    cls, options = method_options(run)
    distiller = cls(teacher, 2.0, options)
    cond = {key: value.float() for key, value in teacher.condition(["a coat"] * 4).items()}
    teacher.null_condition(cond)
    latents = torch.randn(4, *teacher.shape)
    peaks = []
    for phase in dict.fromkeys(distiller.phases(memory.LATE)):
        known = [*distiller.parameters(), *unwrap(teacher.denoiser.network).parameters(), latents, *cond.values()]
        with MemoryTracker(known, CPU) as live:
            distiller(phase, Batch(cond, BatchRandom((phase,), 0, 4, 4, CPU), latents), memory.LATE)[0].backward()
        peaks.append(live.peak)
        distiller.zero_grad(set_to_none=True)
    assert planned.gradients + planned.activations == pytest.approx(max(peaks), rel=0.05)
    trained = {p for modules in distiller.networks().values() for m in modules for p in m.parameters()}
    assert planned.optimizer == 8 * sum(p.numel() for p in trained)
    network = {*unwrap(teacher.denoiser.network).parameters(), *distiller.parameters()}
    assert planned.weights == sum(p.nbytes for p in network)


def test_the_plan_says_which_tier_fits(recipe, monkeypatch, capsys):
    run = recipe("dmd", "memory.tier=full")
    sizes = {"full": 30, "lora": 10}
    monkeypatch.setattr(memory, "plan", lambda r, n: memory.Plan(sizes[r.memory.tier] << 30, 0, 0, 0, 0, 0))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20 << 30)
    memory.print_plan(run, 1, CPU)
    assert not capsys.readouterr().out  # small runs are not planned
    monkeypatch.setattr(memory, "SMALL", 0)
    memory.print_plan(run, 1, CPU)
    title, _, full, shared, advice = capsys.readouterr().out.splitlines()
    assert "4 samples at a time; 20.0 free" in title
    assert full.endswith("30.00  does not fit (this run)") and shared.endswith("10.00  fits")
    assert "memory.checkpointing=true" in advice and "memory.tier=lora (fits)" in advice
    monkeypatch.setattr(memory, "plan", lambda *a: 1 / 0)
    memory.print_plan(run, 1, CPU)
    assert "no memory plan" in capsys.readouterr().out


def test_what_cannot_be_is_one_sentence(recipe, monkeypatch):
    with pytest.raises(ValueError, match=r"memory\.rank is 0"):
        recipe("dmd", "memory.rank=0")
    with pytest.raises(ValueError, match=r"train\.compile cannot follow"):
        recipe("dmd", "train.compile=blocks")
    with pytest.raises(ValueError, match="full, shared"):
        recipe("dmd", "memory.tier=half")
    monkeypatch.setattr(Engine, "refuse_sharding", refuse)
    with pytest.raises(ValueError, match="FSDP2"):
        train(recipe("dmd", "train.steps=1"))


def refuse(self, what):
    raise ValueError(f"{what} runs on one process or in DDP, not in FSDP2")
