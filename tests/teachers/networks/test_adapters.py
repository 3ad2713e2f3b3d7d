"""One base under several adapters: exact switching, checkpointing that keeps to its adapter, tangents, LoRA files."""

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
    """`load(name, precision)` -> a teacher of its own whose network is shared."""

    def teacher(name, precision=torch.float32, rank=4):
        family, folder = tiny(name)
        torch.manual_seed(0)
        made = find(TEACHERS, family).load(str(folder), CPU, precision)
        made.enable_lora(rank)
        return made

    return teacher


def moved(denoiser: Denoiser, by: float = 0.05) -> Denoiser:
    """`denoiser` with every trained weight changed."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(by * parameter.std().nan_to_num(1).clamp(0.1) * torch.randn(parameter.shape, generator=draw))
    return denoiser


def points(teacher, count=2):
    draw = torch.Generator().manual_seed(2)
    prompts = ["1", "7"] if teacher.__class__.__name__ == "DiT" else ["a coat", "a boot"]
    cond = teacher.condition(prompts[:count])
    low, high = teacher.denoiser.path.t_min + 0.1, teacher.denoiser.path.t_max - 0.1
    return torch.randn(count, *teacher.shape, generator=draw), torch.linspace(low, high, count), cond


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_adapter_is_the_teacher_and_a_moved_one_leaves_the_teacher_alone(load, name):
    teacher = load(name)
    x, t, cond = points(teacher)
    before = teacher.denoiser.velocity(x, t, cond)
    student = teacher.student()
    assert torch.equal(student.velocity(x, t, cond), before)
    fake = moved(teacher.student())
    apart = fake.velocity(x, t, cond)
    assert (apart - before).abs().max() > 1e-3
    assert torch.equal(teacher.denoiser.velocity(x, t, cond), before)
    assert torch.equal(student.velocity(x, t, cond), before)
    assert torch.equal(copy.deepcopy(fake).velocity(x, t, cond), apart)
    assert not list(teacher.denoiser.parameters())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in (*student.parameters(), *fake.parameters()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_copy_is_an_ordinary_network_that_does_the_same(load, name):
    teacher = load(name, torch.bfloat16)
    student = moved(teacher.student())
    x, t, cond = points(teacher)
    network = merged_copy(student.network)
    kinds = {type(module) for module in network.modules()}
    assert not kinds & {StoredLinear, StoredConv2d} and not any("peft" in kind.__module__ for kind in kinds)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    ordinary = Denoiser(network, student.path, student.prediction, call=student.call)
    wanted = student.velocity(x, t, cond)
    assert torch.allclose(ordinary.velocity(x, t, cond), wanted, atol=1e-4 * wanted.abs().max().item())


def test_a_teacher_in_bfloat16_keeps_its_autoencoder_in_float32(tiny):
    family, folder = tiny("Stable Diffusion 1.5")
    teacher = find(TEACHERS, family).load(str(folder), CPU, torch.bfloat16)
    stored = DiffusionPipeline.from_pretrained(folder).vae.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in teacher.stock.vae.state_dict().items())
    assert teacher.denoiser.network.dtype == torch.bfloat16 and teacher.encoders().text_encoder.dtype == torch.bfloat16


def test_a_base_in_half_precision_computes_in_float32(load):
    """As the same weights in float32 do, backward and under autocast too."""
    network = UNet2DConditionModel.from_config(load("Stable Diffusion 1.5").stock.unet.config).requires_grad_(False)
    network.to(torch.bfloat16)
    wide = copy.deepcopy(network).float()
    store(network)
    inputs = torch.randn(2, 4, 8, 8, requires_grad=True), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 32)
    one, two = (n(*inputs).sample for n in (network, wide))
    assert one.dtype == torch.float32 and torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(*(torch.autograd.grad(out.square().sum(), inputs[0])[0] for out in (one, two)), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(network(*inputs).sample, wide(*inputs).sample, atol=2e-2)
    stored = sum(p.nbytes for p in network.parameters())
    assert stored < 0.52 * sum(p.nbytes for p in wide.parameters())


def test_no_float32_weight_is_kept_for_backward():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 64, 3, padding=1), nn.Linear(8, 32))
    store(network.requires_grad_(False).to(torch.bfloat16))
    kept = []
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        network[1:](x)
    assert [x.dtype for x in kept] == [torch.bfloat16] * 2
    assert next(network.parameters()).dtype == torch.float32  # from which diffusers reads a network's dtype


def dmd(teacher, **options):
    torch.manual_seed(0)
    method = DMD(teacher, 2.0, DMDOptions(**options))
    for part in (method.student, method.fake_score):
        moved(part)
    return method


def gradients(method, latents=None):
    """DMD's turns with the other networks called between forward and backward, as gradient accumulation may."""
    found = {}
    for phase, modules in method.networks().items():
        batch = Batch(points(method.teacher)[2], BatchRandom(("x", phase), 0, 2, 2, CPU), latents)
        loss, _ = method(phase, batch, 0)
        x, t, cond = points(method.teacher)
        for other in (method.student, method.fake_score, method.teacher.denoiser):
            other.velocity(x, t, cond).detach()
        loss.backward()
        found[phase] = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
        assert len(found[phase]) == sum(1 for m in modules for _ in m.parameters())
        method.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_in_half_precision_trains_every_part_of_its_adapters(load, name):
    """The same gradients as on the same weights in float32."""
    teacher = load(name, torch.bfloat16)
    student = moved(teacher.student())
    x, t, cond = points(teacher)
    found = []
    for _ in ("half", "float32"):
        student.zero_grad()
        student.velocity(x, t, cond).square().sum().backward()
        found.append([p.grad.clone() for p in student.parameters()])
        teacher.denoiser.network.lora_base.base.float()
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-4 * max(1, two.abs().max().item()))


@pytest.mark.parametrize("features", [None, "fake_score", "teacher"])
def test_checkpointing_keeps_to_its_adapter(load, features):
    options = {"gan_weight": 0.5, "discriminator_weight": 0.5, "gan_features": features} if features else {}
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4)) if features else None
    without = gradients(dmd(load("Stable Diffusion 1.5"), **options), latents)
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    within = gradients(dmd(teacher, **options), latents)
    for phase, wanted in without.items():
        for one, two in zip(within[phase], wanted, strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-6 * max(1, two.abs().max().item())), phase


def test_without_the_pin_checkpointing_takes_the_wrong_adapter(load, monkeypatch):
    monkeypatch.setattr(teachers.networks.checkpointing, "pinned", lambda block, again: block)
    wanted = gradients(dmd(load("Stable Diffusion 1.5")))["student"]
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    try:
        found = gradients(dmd(teacher))["student"]
    except (torch.utils.checkpoint.CheckpointError, AssertionError):
        return  # another number of tensors, or adapters left without a gradient: told, at least
    assert max((one - two).abs().max() for one, two in zip(found, wanted, strict=True)) > 1e-3


def test_checkpointing_keeps_less():
    teacher = StableDiffusion.load("pocket", CPU)
    x, t, cond = points(teacher)

    def kept() -> int:
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

    whole = kept()
    checkpoint_activations(teacher.denoiser.network)
    assert kept() < 0.7 * whole


def test_frozen_parameters_stay_frozen_in_what_is_computed_again(load):
    """The discriminator's features: no gradient for the fake score, though backward runs when it trains again."""
    teacher = load("Stable Diffusion 1.5")
    checkpoint_activations(teacher.denoiser.network)
    fake = moved(teacher.student())
    x, t, cond = points(teacher)
    x.requires_grad_()
    with frozen(fake):
        out = fake.velocity(x, t, cond)
    out.square().sum().backward()
    assert x.grad.abs().max() > 0 and all(p.grad is None and p.requires_grad for p in fake.parameters())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_tangent_is_exact_through_adapters(load, precision):
    """Against torch.func of the plain float32 copy: a base in bf16 costs nothing but its rounded weights."""
    teacher = load("Stable Diffusion 1.5", precision)
    checkpoint_activations(teacher.denoiser.network)  # it is off without gradients
    student = moved(teacher.student())
    teacher.refit_time_embedding(student, 8.0)
    x, t, cond = points(teacher)
    dx, dt = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)), torch.ones_like(t)
    ordinary = Denoiser(merged_copy(student.network), student.path, student.prediction, student.time_scale)
    _, found = jvp(lambda x, t: student.velocity(x, t, cond), (x, t), (dx, dt))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        _, wanted = reference_jvp(lambda x, t: ordinary.velocity(x, t, cond), (x, t), (dx, dt))
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_scm_moves_the_students_clock_and_not_the_teachers(load):
    teacher = load("Stable Diffusion 1.5")
    x, t, cond = points(teacher)
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
def test_a_lora_file_on_the_stock_pipeline_gives_the_exports_images(load, tiny, tmp_path, name, count):
    teacher = load(name)
    student = moved(teacher.student(), 0.02)
    teacher.refit_time_embedding(student, 8.0)
    times = [student.path.t_max, 0.8][:count]
    fused = teacher.pipeline(student, times)
    assert teacher.save_lora(student, times, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]

    stock = DiffusionPipeline.from_pretrained(tiny(name)[1])
    stock.scheduler = type(fused.scheduler).from_config(fused.scheduler.config)
    inputs = {"prompt": ["a coat", "a boot"], "output_type": "latent"}
    images = []
    for step, pipe in enumerate((fused, stock, stock)):
        call = inputs | (teacher.lora_call if step else teacher.calls)(count, times)
        if step == 2:
            pipe.load_lora_weights(tmp_path)
        pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(5)  # the noise of later steps, where a pipeline takes it from here
        images.append(pipe(**call, generator=torch.Generator().manual_seed(0)).images)
    wanted, teachers_own, found = images
    assert (teachers_own - wanted).abs().max() > 1e-2
    assert (found - wanted).abs().max() < 2e-4 * wanted.std()


@pytest.mark.parametrize("name", ["PixArt-Sigma 512", *CLASSES])
def test_families_whose_pipelines_take_no_lora_say_so(load, tmp_path, name):
    teacher = load(name)
    assert not teacher.save_lora(teacher.student(), [teacher.denoiser.path.t_max], tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_peft_the_sentence_says_what_to_install(load, monkeypatch):
    teacher = load("Stable Diffusion 1.5")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[lora\]"'):
        teacher.student()


def test_a_network_that_cannot_checkpoint_is_named():
    with pytest.raises(ValueError, match="Linear cannot checkpoint"):
        checkpoint_activations(nn.Linear(2, 2))
    assert not checkpoint_activations(nn.Linear(2, 2), asked=None)


def test_an_embedded_guidance_is_refused(load):
    with pytest.raises(ValueError, match=r"method\.guidances"):
        SCM(load("Stable Diffusion 1.5"), 2.0, SCMOptions(guidances=(1.5, 2.0)))
