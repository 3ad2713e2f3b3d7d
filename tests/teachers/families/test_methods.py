"""DMD, f-distill, SiD, sCM and LCM on the real architecture of every family."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.f_distill import FDistill, FDistillOptions
from distill.methods.lcm import LCM, LCMOptions
from distill.methods.sid import SID, SIDOptions
from tests.settings import in_turn
from tests.teachers.families.stock import NAMES, difference
from tests.teachers.families.training import batch_of, step

every_family = pytest.mark.parametrize("name", NAMES)
# DMD and sCM train every family; of the methods that are made of the same parts, each trains some.
OTHERS = in_turn(NAMES, ["SiD", "f-distill", "LCM"])


def families_of(method):
    return pytest.mark.parametrize("name", [name for name, other in OTHERS if other == method])


def forward_mode(function, primals, tangents):
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
        return torch.func.jvp(function, primals, tangents)


@pytest.mark.slow
@every_family
def test_dmd_gradient_is_zero_before_training_and_each_phase_trains(name, load, record):
    """The fake score equals the teacher at first, so DMD's gradient is zero."""
    teacher = load(name)
    guidance = 3.5 if name == "Flux.1 dev" else 1.0  # a student of Flux receives the default guidance scale
    torch.manual_seed(0)
    distiller = DMD(teacher, guidance, DMDOptions())
    batch = batch_of(teacher, name)
    with torch.no_grad():
        x = distiller.generate(batch)
    gradient, _ = distiller.gradient(x, x + 0.5 * torch.randn_like(x), torch.tensor([0.4, 1.2]), batch.cond)
    record(name, "DMD step", gradient.abs().max().item())
    assert gradient.abs().max() < 1e-4
    distiller = DMD(teacher, 2.0, DMDOptions())
    for phase in ("fake_score", "student"):
        step(distiller, phase, teacher, name)


@pytest.mark.slow
@families_of("SiD")
def test_sid_gradient_is_zero_before_training_and_each_phase_trains(name, load, record):
    """The fake score equals the teacher at first, so SiD's loss and its gradient through both are zero."""
    teacher = load(name)
    guidance = 3.5 if name == "Flux.1 dev" else 1.0  # a student of Flux receives the default guidance scale
    torch.manual_seed(0)
    distiller = SID(teacher, guidance, SIDOptions())
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
@families_of("f-distill")
def test_f_distill_weights_the_gradient_of_each_sample_and_each_phase_trains(name, load):
    teacher = load(name)
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
@every_family
def test_scm_target_equals_that_of_torch_func_jvp(name, load, trained, record):
    teacher, distiller = load(name), trained(name)
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
@families_of("LCM")
def test_lcm_error_of_the_last_solver_step_is_zero_before_training_and_it_trains(name, load, record):
    """One step from the end, the target is the teacher's x0, which is the student's until it trains."""
    teacher = load(name)
    guidance = 3.5 if name == "Flux.1 dev" else 1.0  # a student of Flux receives the default guidance scale
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
