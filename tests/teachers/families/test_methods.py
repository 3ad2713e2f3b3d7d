"""All methods and LoRA on the real architecture of every family of images, clips and sounds."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.config.registry import TEACHERS, find
from distill.methods.discriminator import features
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.f_distill import FDistill, FDistillOptions
from distill.methods.jvp import jvp
from distill.methods.lcm import LCM, LCMOptions
from distill.methods.rcm import RCM, RCMOptions
from distill.methods.scm import SCM, SCMOptions
from distill.methods.sid import SID, SIDOptions
from teachers.core.denoiser import Denoiser
from teachers.networks.adapters import merged_copy
from teachers.networks.checkpointing import checkpoint_activations
from tests.settings import in_turn
from tests.teachers.families import media
from tests.teachers.families.stock import NAMES as IMAGES
from tests.teachers.families.stock import difference
from tests.teachers.families.training import EXPERTS, batch_of, step, with_precisions

CPU = torch.device("cpu")
KINDS = [*IMAGES, *media.KINDS]  # every kind of network; the other pipelines of `media` differ in their call only
every_kind = pytest.mark.parametrize("name", KINDS)
# Guidance scales of pipelines that embed them: students receive the default.
GUIDANCE = {"Flux.1 dev": 3.5, "HunyuanVideo": 6.0, "Flux.2 dev": 4.0}
GAN = {"gan_weight": 1e-3, "r1_weight": 1.0}
# DMD, sCM and rCM train every kind of network; of the methods that are made of the same parts, each trains some.
OTHERS = in_turn(KINDS, ["SiD", "f-distill", "LCM"])


def kinds_of(method):
    return pytest.mark.parametrize("name", [name for name, other in OTHERS if other == method])


def forward_mode(function, primals, tangents):
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
        return torch.func.jvp(function, primals, tangents)


@pytest.mark.slow
@every_kind
@pytest.mark.sampled
def test_dmd_gradient_is_zero_before_training_and_each_phase_trains(name, load_any, record):
    """The fake score equals the teacher at first, so DMD's gradient is zero."""
    teacher = load_any(name)
    torch.manual_seed(0)
    distiller = DMD(teacher, GUIDANCE.get(name, 1.0), DMDOptions())
    batch = batch_of(teacher, name)
    with torch.no_grad():
        x = distiller.generate(batch)
    gradient, _ = distiller.gradient(x, x + 0.5 * torch.randn_like(x), torch.tensor([0.4, 1.2]), batch.cond)
    record(name, "DMD step", gradient.abs().max().item())
    assert gradient.abs().max() < 1e-4
    distiller = DMD(teacher, 2.0, DMDOptions(**({} if name in IMAGES or name == EXPERTS else GAN)))
    for phase in ("fake_score", "student"):
        step(distiller, phase, teacher, name)


@pytest.mark.slow
@kinds_of("SiD")
@pytest.mark.sampled
def test_sid_gradient_is_zero_before_training_and_each_phase_trains(name, load_any, record):
    """The fake score equals the teacher at first, so SiD's loss and its gradient through both are zero."""
    teacher = load_any(name)
    torch.manual_seed(0)
    distiller = SID(teacher, GUIDANCE.get(name, 1.0), SIDOptions())
    batch = batch_of(teacher, name)
    with torch.no_grad():
        x = distiller.generate(batch)
    _, gradient, _ = distiller.gradient(x, torch.randn_like(x), torch.tensor([0.4, 1.2]), batch.cond)
    record(name, "SiD step", gradient.abs().max().item())
    assert gradient.abs().max() < 1e-3
    distiller = SID(teacher, 2.0, SIDOptions())
    for phase in ("fake_score", "student"):
        step(distiller, phase, teacher, name)


@pytest.mark.slow
def test_the_regression_of_clips_is_that_of_latents(load_any):
    teacher = load_any("Wan 2.1")
    with pytest.raises(ValueError, match="regression_distance must be latent for a teacher of clips, got 'lpips'"):
        DMD(teacher, 1.0, DMDOptions(regression_weight=0.25))
    DMD(teacher, 1.0, DMDOptions(regression_weight=0.25, regression_distance="latent"))


@pytest.mark.parametrize("name", media.KINDS)
@pytest.mark.first_is_quick
@pytest.mark.sampled
def test_the_gan_reads_the_tokens_of_the_sample(name, load_any):
    """The number of tokens is that of the sample, not of the prompt, and each token depends on its own latent."""
    teacher = load_any(name)
    cond, t = batch_of(teacher, name).cond, torch.tensor([0.5, 1.0])
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    if name == EXPERTS:
        with pytest.raises(ValueError, match="gan_weight must be 0"):
            features(teacher.denoiser, x, t, cond)
        return
    with torch.no_grad():
        found = features(teacher.denoiser, x, t, cond, teacher.feature_layer, teacher.stream)
    expected = teacher.tokens() + (name.startswith("Stable Audio"))  # its global token comes first
    # The middle block of AnimateDiff has half the sides, the lowest one of Kandinsky 3 an eighth.
    expected //= {"AnimateDiff": 4, "Kandinsky 3": 64}.get(name, 1)
    assert found.shape[:2] == (2, expected)


@pytest.mark.slow
@kinds_of("f-distill")
@pytest.mark.sampled
def test_f_distill_weights_the_gradient_of_each_sample_and_each_phase_trains(name, load_any):
    teacher = load_any(name)
    torch.manual_seed(0)
    distiller = FDistill(teacher, 2.0, FDistillOptions(divergence="forward_kl"))
    for phase in ("fake_score", "student"):
        step(distiller, phase, teacher, name)
    batch, t = batch_of(teacher, name, 5), torch.tensor([0.4, 1.2])
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    ratio = distiller.discriminator(distiller.fake_score, x, t, batch.cond).exp()
    weighted, _ = distiller.gradient(x, x, t, batch.cond)
    plain, _ = DMD.gradient(distiller, x, x, t, batch.cond)
    for row in range(2):
        assert torch.allclose(weighted[row], ratio[row] * plain[row], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@every_kind
@pytest.mark.sampled
def test_scm_target_equals_that_of_torch_func_jvp(name, load_any, trained, record):
    teacher, distiller = load_any(name), trained(name)
    batch = batch_of(teacher, name, 5)
    t = torch.tensor([0.5, 1.1])
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    drift = teacher.velocity(x, t, batch.cond, 2.0)
    ours, _ = distiller.target(x, t, drift, batch.cond, 1.0)
    distiller.tangent, tangent = forward_mode, distiller.tangent
    expected, _ = distiller.target(x, t, drift, batch.cond, 1.0)
    distiller.tangent = tangent
    error = difference(ours, expected)
    record(name, "sCM step", error)
    assert error < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", media.KINDS)
@pytest.mark.sampled
def test_each_phase_of_rcm_trains(name, load_any):
    teacher = load_any(name)
    torch.manual_seed(0)
    distiller = RCM(teacher, 2.0, RCMOptions(scm=SCMOptions(adaptation_steps=1, tangent_warmup=1)))
    for phase in distiller.networks():  # after the adaptation, which is sCM's
        step(distiller, phase, teacher, name, number=1)


@pytest.mark.slow
@kinds_of("LCM")
@pytest.mark.sampled
def test_lcm_error_of_the_last_solver_step_is_zero_before_training_and_it_trains(name, load_any, record):
    """One step from the end, the target is the teacher's x0, which is the student's until it trains."""
    teacher, guidance = load_any(name), GUIDANCE.get(name, 1.0)
    torch.manual_seed(0)
    distiller = LCM(teacher, guidance, LCMOptions())
    batch, t = batch_of(teacher, name), distiller.grid[-2:-1].expand(2)
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    drift = teacher.velocity(x, t, batch.cond, guidance)
    target = distiller.solve(x, t, torch.zeros(2), drift, batch.cond)
    with torch.no_grad():
        error = difference(distiller.student.denoise(x, t, batch.cond), target)
    record(name, "LCM step", error)
    assert error < 1e-3
    step(LCM(teacher, 2.0, LCMOptions(target_ema=0.9)), "student", teacher, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "precision"),
    with_precisions(in_turn(media.KINDS, ["dmd", "scm"])),
    ids=str,
)
@pytest.mark.sampled
def test_adapters_train_and_leave_the_teacher_unchanged(name, method, precision, tiny_media):
    """Velocity, tangent with activation checkpointing, and the merged copy, on a base in either precision."""
    family, folder, size = tiny_media(name)
    teacher = find(TEACHERS, family).load(str(folder), CPU, precision, size=size)
    teacher.enable_lora(4)
    checkpoint_activations(teacher.denoiser.network, required=False)
    batch, t = batch_of(teacher, name), torch.tensor([0.5, 1.1])
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    before = teacher.velocity(x, t, batch.cond, 1.0)
    distiller = (
        DMD(teacher, 2.0, DMDOptions()) if method == "dmd" else SCM(teacher, 2.0, SCMOptions(adaptation_steps=1))
    )
    for phase in distiller.networks():
        for number in (1, 2):  # the first step changes one matrix of each pair only
            step(distiller, phase, teacher, name, number, share=0.1)
    assert torch.equal(teacher.velocity(x, t, batch.cond, 1.0), before)
    student = distiller.student
    network = merged_copy(student.network)
    options = {"time_scale": student.time_scale, "max_angle": student.max_angle, "call": student.call}
    ordinary = Denoiser(network, student.path, student.prediction, **options)
    arguments = (x, t), (torch.randn_like(x), torch.ones_like(t))
    value, tangent = jvp(lambda x, t: student.velocity(x, t, batch.cond), *arguments)
    expected, slope = jvp(lambda x, t: ordinary.velocity(x, t, batch.cond), *arguments)
    assert difference(value, expected) < 1e-3 and difference(tangent, slope) < 1e-3
    assert len(student.network.low_rank) > 10
    copied = copy.deepcopy(student)
    assert torch.equal(copied.velocity(x, t, batch.cond), student.velocity(x, t, batch.cond))
