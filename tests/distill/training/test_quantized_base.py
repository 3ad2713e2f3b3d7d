"""Runs with memory.quantize: resuming, exports, cards, keys and memory plans."""

import json

import pytest
import torch

import distill
from distill.config.sections import DTYPES
from distill.train import train
from distill.training import checkpoint, memory_plan
from distill.training.run_folder import stored_contents
from distill.training.setup import load_teacher
from teachers.networks.quantized import QuantizedLinear
from tests.runs import interrupted

CPU = torch.device("cpu")


@pytest.mark.parametrize(("method", "form"), [("scm", "nf4"), ("dmd", "int8")])
@pytest.mark.exhaustive
def test_a_run_resumes_bitwise_and_its_exports_are_exact(lora_recipe, method, form):
    """`train` compares the pipeline with the student, and the LoRA file on the dequantized base."""
    whole = lora_recipe(method, "train.steps=2", "train.checkpoint_every=1", f"memory.quantize={form}")
    folder = train(whole)
    record = json.loads((folder / "distill.json").read_text())
    assert record["teacher"]["quantization"] == form
    assert max(record["checked"]["difference"], record["checked"]["lora_difference"]) < 1e-3
    assert f"those of the teacher in {form}, dequantized" in (folder / "README.md").read_text()
    parts = interrupted(whole, "parts")
    train(parts)
    one, two = (checkpoint.load_newest(r.folder / "checkpoints") for r in (whole, parts))
    assert one.meta["step"] == two.meta["step"] == 2
    assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    assert not any("packed" in name for name in one.weights)


def test_contents_name_the_form_so_that_caches_and_runs_differ(lora_recipe):
    plain, nf4 = (stored_contents(lora_recipe("dmd", f"memory.quantize={form}")) for form in ("none", "nf4"))
    assert "quantization" not in plain and nf4 == plain | {"quantization": "nf4"}


def test_a_whole_student_has_no_quantized_weights(lora_recipe):
    with pytest.raises(ValueError, match=r"memory\.quantize must be none with memory\.tier=full"):
        lora_recipe("dmd", "memory.tier=full", "memory.quantize=nf4")
    run = lora_recipe("dmd", "memory.quantize=nf4")
    assert memory_plan.in_tier(run, "full").memory.quantize == "none"


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.exhaustive
def test_the_plan_counts_the_quantized_weights(lora_recipe, form):
    run = lora_recipe("scm", f"memory.quantize={form}", "teacher.precision=bfloat16")
    plain = lora_recipe("scm", "teacher.precision=bfloat16")
    network = load_teacher(run, CPU).denoiser.network
    layers = [m for m in network.modules() if isinstance(m, QuantizedLinear)]
    packed = sum(b.nbytes for layer in layers for b in layer.buffers())
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    saved = DTYPES["bfloat16"].itemsize * weights - packed
    assert saved > (0.9 if form == "int8" else 1.4) * weights
    assert memory_plan.plan(plain, 2).weights - memory_plan.plan(run, 2).weights == saved


def test_advice_names_quantization_where_adapters_alone_do_not_fit(lora_recipe, monkeypatch):
    sizes = {"none": 30, "nf4": 10}
    monkeypatch.setattr(
        memory_plan, "plan", lambda run, *_: memory_plan.MemoryPlan(sizes[run.memory.quantize] << 30, 0, 0, 0, 0, 0)
    )
    run, smaller = (lora_recipe("scm", f"memory.quantize={form}") for form in sizes)
    lora, free = memory_plan.plan(run), 20 << 30
    assert memory_plan.advice(run, 1, free, lora).endswith("memory.quantize=nf4 with LoRA adapters (fits)")
    assert "nf4" not in memory_plan.advice(run, 1, 40 << 30, lora)
    assert memory_plan.advice(run, 1, 5 << 30, lora).endswith("memory.quantize=nf4 with LoRA adapters")
    assert "nf4" not in memory_plan.advice(smaller, 1, free, lora)


@pytest.mark.exhaustive
def test_a_run_does_not_change_a_teacher_in_memory(lora_recipe, text_pipeline):
    """Runs with adapters on quantized weights and a negative prompt, then one of another kind, with one teacher."""
    teacher = distill.load_teacher(str(text_pipeline))
    before, network = teacher.digest(), teacher.denoiser.network
    data = {"latents": torch.randn(6, *teacher.shape), "captions": ["a coat"] * 6}
    settings = ("train.steps=1", "memory.quantize=int8", "teacher.negative_prompt=blurry", "name=lora")
    folder = distill.train(lora_recipe("scm", *settings), teacher, **data)
    assert teacher.digest() == before and teacher.denoiser.network is network and teacher.negative_prompt is None
    assert not any(isinstance(m, QuantizedLinear) for m in network.modules())
    assert distill.train(lora_recipe("scm", *settings), teacher, **data) == folder  # it is the same run

    whole = distill.train(lora_recipe("scm", "train.steps=1", "memory.tier=full", "name=whole"), teacher, **data)
    assert not list(whole.parent.rglob("pytorch_lora_weights.safetensors")) and teacher.digest() == before
