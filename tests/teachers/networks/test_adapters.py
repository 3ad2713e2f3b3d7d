"""LoRA adapters on one base: exact switching, activation checkpointing, tangents, LoRA files."""

import copy
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.func import jvp as reference_jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import teachers.networks.checkpointing
from distill.config.registry import TEACHERS, find
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.discriminator import frozen
from distill.methods.dmd import DMD, DMDOptions
from distill.methods.jvp import jvp
from distill.methods.scm import SCM, SCMOptions
from teachers.core.denoiser import Denoiser
from teachers.families.stable_diffusion import StableDiffusion
from teachers.networks.adapters import merged_copy
from teachers.networks.checkpointing import checkpoint_activations
from teachers.networks.storage import StoredConv2d, StoredLinear, store

CPU = torch.device("cpu")
CLASSES = ["unconditional UNet", "DiT"]
LORA = ["Stable Diffusion 1.5", "Stable Diffusion XL", "Stable Diffusion 3.5", "Flux.1 dev", "Sana"]
FAMILIES = [*LORA, "PixArt-Sigma 512", *CLASSES]


@pytest.fixture
def load(tiny):
    """Function load(name, precision) -> a new teacher with LoRA enabled."""

    def teacher(name, precision=torch.float32, rank=4):
        family, folder = tiny(name)
        torch.manual_seed(0)
        loaded = find(TEACHERS, family).load(str(folder), CPU, precision)
        loaded.enable_lora(rank)
        return loaded

    return teacher


def perturb(denoiser: Denoiser, by: float = 0.05) -> Denoiser:
    """Change every trained weight of `denoiser` in place; returns it."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(by * parameter.std().nan_to_num(1).clamp(0.1) * torch.randn(parameter.shape, generator=rng))
    return denoiser


def inputs_of(teacher, count=2):
    """Noisy latents, angles and a condition."""
    rng = torch.Generator().manual_seed(2)
    prompts = ["1", "7"] if teacher.__class__.__name__ == "DiT" else ["a coat", "a boot"]
    cond = teacher.condition(prompts[:count])
    low, high = teacher.denoiser.path.t_min + 0.1, teacher.denoiser.path.t_max - 0.1
    return torch.randn(count, *teacher.shape, generator=rng), torch.linspace(low, high, count), cond


@pytest.mark.parametrize("name", FAMILIES)
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


@pytest.mark.parametrize("name", FAMILIES)
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


def test_autoencoder_of_a_bfloat16_teacher_stays_in_float32(tiny):
    family, folder = tiny("Stable Diffusion 1.5")
    teacher = find(TEACHERS, family).load(str(folder), CPU, torch.bfloat16)
    stored = DiffusionPipeline.from_pretrained(folder).vae.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in teacher.stock.vae.state_dict().items())
    assert teacher.denoiser.network.dtype == torch.bfloat16
    assert teacher.text_pipeline().text_encoder.dtype == torch.bfloat16


def test_base_in_half_precision_computes_in_float32(load):
    """Outputs and gradients equal those of the same weights in float32, and outputs under autocast."""
    network = UNet2DConditionModel.from_config(load("Stable Diffusion 1.5").stock.unet.config).requires_grad_(False)
    network.to(torch.bfloat16)
    reference = copy.deepcopy(network).float()
    store(network)
    inputs = torch.randn(2, 4, 8, 8, requires_grad=True), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 32)
    one, two = (n(*inputs).sample for n in (network, reference))
    assert one.dtype == torch.float32 and torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(*(torch.autograd.grad(out.square().sum(), inputs[0])[0] for out in (one, two)), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(network(*inputs).sample, reference(*inputs).sample, atol=2e-2)
    stored = sum(p.nbytes for p in network.parameters())
    assert stored < 0.52 * sum(p.nbytes for p in reference.parameters())


def test_no_float32_weight_is_saved_for_backward():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 64, 3, padding=1), nn.Linear(8, 32))
    store(network.requires_grad_(False).to(torch.bfloat16))
    saved = []
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        network[1:](x)
    assert [x.dtype for x in saved] == [torch.bfloat16] * 2
    assert next(network.parameters()).dtype == torch.float32  # diffusers reads a network's dtype from it


def dmd(teacher, **options):
    torch.manual_seed(0)
    method = DMD(teacher, 2.0, DMDOptions(**options))
    for part in (method.student, method.fake_score):
        perturb(part)
    return method


def gradients(method, latents=None):
    """Gradients of each phase of DMD, with the other networks called between forward and backward."""
    by_phase = {}
    for phase, modules in method.networks().items():
        batch = Batch(inputs_of(method.teacher)[2], BatchRandom(("x", phase), 0, 2, 2, CPU), latents)
        loss, _ = method(phase, batch, 0)
        x, t, cond = inputs_of(method.teacher)
        for other in (method.student, method.fake_score, method.teacher.denoiser):
            other.velocity(x, t, cond).detach()
        loss.backward()
        by_phase[phase] = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
        assert len(by_phase[phase]) == sum(1 for m in modules for _ in m.parameters())
        method.zero_grad(set_to_none=True)
    return by_phase


@pytest.mark.parametrize("name", FAMILIES)
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


@pytest.mark.parametrize("features", [None, "fake_score", "teacher"])
def test_checkpointing_recomputes_with_the_right_adapter(load, features):
    options = {"gan_weight": 0.5, "discriminator_weight": 0.5, "gan_features": features} if features else {}
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4)) if features else None
    expected = gradients(dmd(load("Stable Diffusion 1.5"), **options), latents)
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    actual = gradients(dmd(teacher, **options), latents)
    for phase, values in expected.items():
        for one, two in zip(actual[phase], values, strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-6 * max(1, two.abs().max().item())), phase


def test_checkpointing_without_pinned_blocks_uses_the_wrong_adapter(load, monkeypatch):
    monkeypatch.setattr(teachers.networks.checkpointing, "pinned", lambda block, context: block)
    expected = gradients(dmd(load("Stable Diffusion 1.5")))["student"]
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    try:
        actual = gradients(dmd(teacher))["student"]
    except (torch.utils.checkpoint.CheckpointError, AssertionError):
        return  # another number of tensors, or adapters without a gradient
    assert max((one - two).abs().max() for one, two in zip(actual, expected, strict=True)) > 1e-3


def test_checkpointing_saves_fewer_activations():
    teacher = StableDiffusion.load("pocket", CPU)
    x, t, cond = inputs_of(teacher)

    def saved_bytes() -> int:
        sizes = {}
        network = teacher.student()
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = network.velocity(x, t, cond)
        return sum(sizes.values()) + 0 * output.numel()

    without = saved_bytes()
    checkpoint_activations(teacher.denoiser.network)
    assert saved_bytes() < 0.7 * without


def test_frozen_parameters_stay_frozen_in_recomputation(load):
    """Features for the discriminator give the fake score no gradient, although backward runs after it is unfrozen."""
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    fake_score = perturb(teacher.student())
    x, t, cond = inputs_of(teacher)
    x.requires_grad_()
    with frozen(fake_score):
        out = fake_score.velocity(x, t, cond)
    out.square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None and p.requires_grad for p in fake_score.parameters())


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


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("count", [1, 2])
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
def test_families_without_lora_support_write_no_lora_file(load, tmp_path, name):
    teacher = load(name)
    assert not teacher.save_lora(teacher.student(), [teacher.denoiser.path.t_max], tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_peft_raises_an_error_with_the_install_command(load, monkeypatch):
    teacher = load("Stable Diffusion 1.5")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[lora\]"'):
        teacher.student()


def test_network_without_checkpointing_support_raises_an_error():
    with pytest.raises(ValueError, match="Linear does not support activation checkpointing"):
        checkpoint_activations(nn.Linear(2, 2))
    assert not checkpoint_activations(nn.Linear(2, 2), required=False)


def test_embedded_guidance_with_adapters_raises_an_error(load):
    with pytest.raises(ValueError, match=r"method\.guidances"):
        SCM(load("Stable Diffusion 1.5"), 2.0, SCMOptions(guidances=(1.5, 2.0)))
