"""LoRA adapters on one base: exact switching, gradients, tangents, LoRA files."""

import copy
import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.func import jvp as reference_jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.jvp import jvp
from distill.methods.scm import SCM, SCMOptions
from teachers.core.denoiser import Denoiser
from teachers.networks.adapters import merged_copy
from teachers.networks.checkpointing import checkpoint_activations
from teachers.networks.storage import StoredConv2d, StoredLinear
from tests.settings import in_turn
from tests.teachers.networks.lora import CLASSES, FAMILIES, LORA, inputs_of, perturb

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sampled
def test_new_adapter_equals_the_teacher_and_a_trained_one_does_not_change_it(load, name):
    teacher = load(name)
    x, t, cond = inputs_of(teacher)
    before = teacher.denoiser.velocity(x, t, cond)
    student = teacher.student()
    assert torch.equal(student.velocity(x, t, cond), before)
    fake_score = perturb(teacher.student())
    changed = fake_score.velocity(x, t, cond)
    assert (changed - before).abs().max() > 1e-3
    assert torch.equal(teacher.denoiser.velocity(x, t, cond), before)
    assert torch.equal(student.velocity(x, t, cond), before)
    assert torch.equal(copy.deepcopy(fake_score).velocity(x, t, cond), changed)
    assert not list(teacher.denoiser.parameters())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in (*student.parameters(), *fake_score.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sampled
def test_merged_copy_is_an_ordinary_network_with_equal_outputs(load, name):
    teacher = load(name, torch.bfloat16)
    student = perturb(teacher.student())
    x, t, cond = inputs_of(teacher)
    network = merged_copy(student.network)
    kinds = {type(module) for module in network.modules()}
    assert not kinds & {StoredLinear, StoredConv2d} and not any("peft" in kind.__module__ for kind in kinds)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    ordinary = Denoiser(network, student.path, student.prediction, call=student.call)
    expected = student.velocity(x, t, cond)
    assert torch.allclose(ordinary.velocity(x, t, cond), expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sampled
def test_adapters_on_a_half_precision_base_have_the_gradients_of_a_float32_base(load, name):
    teacher = load(name, torch.bfloat16)
    student = perturb(teacher.student())
    x, t, cond = inputs_of(teacher)
    results = []
    for _ in ("half", "float32"):
        student.zero_grad()
        student.velocity(x, t, cond).square().sum().backward()
        results.append([p.grad.clone() for p in student.parameters()])
        teacher.denoiser.network.lora_base.base.float()
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-4 * max(1, two.abs().max().item()))


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_tangent_is_exact_through_adapters(load, precision):
    """Equal to torch.func.jvp of the merged float32 copy; a bf16 base adds no error beyond its rounded weights."""
    teacher = load("Stable Diffusion 1.5", precision)
    checkpoint_activations(teacher.denoiser.network)  # has no effect without gradients
    student = perturb(teacher.student())
    teacher.refit_time_embedding(student, 8.0)
    x, t, cond = inputs_of(teacher)
    dx, dt = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)), torch.ones_like(t)
    ordinary = Denoiser(merged_copy(student.network), student.path, student.prediction, student.time_scale)
    _, tangent = jvp(lambda x, t: student.velocity(x, t, cond), (x, t), (dx, dt))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        _, expected = reference_jvp(lambda x, t: ordinary.velocity(x, t, cond), (x, t), (dx, dt))
    assert (tangent - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.slow
def test_scm_rescales_the_time_of_the_student_only(load):
    teacher = load("Stable Diffusion 1.5")
    x, t, cond = inputs_of(teacher)
    before = teacher.denoiser.velocity(x, t, cond)
    method = SCM(teacher, 2.0, SCMOptions())
    assert torch.equal(teacher.denoiser.velocity(x, t, cond), before)
    assert torch.equal(teacher.student().velocity(x, t, cond), before)
    assert method.student.time_scale == 8.0
    batch = Batch(cond, BatchRandom(("x",), 0, 2, 2, CPU), torch.randn(2, 4, 8, 8))
    for step in (0, 500):
        method("student", batch, step)[0].backward()
    assert all(p.grad is not None for p in method.student.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), in_turn(LORA, [1, 2]))
@pytest.mark.sampled
def test_lora_file_on_the_stock_pipeline_gives_the_images_of_the_export(load, tiny, tmp_path, name, count):
    teacher = load(name)
    student = perturb(teacher.student(), 0.02)
    teacher.refit_time_embedding(student, 8.0)
    times = [student.path.t_max, 0.8][:count]
    exported = teacher.pipeline(student, times)
    assert teacher.save_lora(student, times, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]

    stock = DiffusionPipeline.from_pretrained(tiny(name)[1])
    stock.scheduler = type(exported.scheduler).from_config(exported.scheduler.config)
    arguments = {"prompt": ["a coat", "a boot"], "output_type": "latent"}
    images = []
    for step, pipe in enumerate((exported, stock, stock)):
        call = arguments | (teacher.lora_call if step else teacher.calls)(count, times)
        if step == 2:
            pipe.load_lora_weights(tmp_path)
        pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(5)  # some pipelines use the global generator for later steps
        images.append(pipe(**call, generator=torch.Generator().manual_seed(0)).images)
    expected, without_lora, with_lora = images
    assert (without_lora - expected).abs().max() > 1e-2
    assert (with_lora - expected).abs().max() < 2e-4 * expected.std()


@pytest.mark.parametrize("name", ["PixArt-Sigma 512", *CLASSES])
@pytest.mark.slow
def test_families_without_lora_support_write_no_lora_file(load, tmp_path, name):
    teacher = load(name)
    assert not teacher.save_lora(teacher.student(), [teacher.denoiser.path.t_max], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_missing_peft_raises_an_error_with_the_install_command(load, monkeypatch):
    teacher = load("Stable Diffusion 1.5")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[lora\]"'):
        teacher.student()


@pytest.mark.slow
def test_embedded_guidance_with_adapters_raises_an_error(load):
    with pytest.raises(ValueError, match=r"method\.guidances"):
        SCM(load("Stable Diffusion 1.5"), 2.0, SCMOptions(guidances=(1.5, 2.0)))
