"""Implicit distribution alignment: the fake score's weights move towards the student's outside the optimizers."""

import pytest
import torch

from distill.config.sections import TrainRecipe
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.rcm import RCM, RCMOptions
from distill.methods.scm import SCMOptions
from distill.methods.sid import SID, SIDOptions
from distill.training.engine import Engine
from distill.training.state import TrainState
from teachers.families.analytic import Analytic, eight_gaussians
from teachers.families.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")


def changed(network, seed):
    """Change the weights of a network and return them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return [p.detach().clone() for p in network.parameters()]


def methods(alignment):
    teacher = Analytic(eight_gaussians())
    scm = SCMOptions(adaptation_steps=0)
    yield DMD(teacher, 1.0, DMDOptions(fake_score_alignment=alignment))
    yield SID(teacher, 1.0, SIDOptions(fake_score_alignment=alignment))
    yield RCM(teacher, 1.0, RCMOptions(scm=scm, dmd=DMDOptions(fake_score_alignment=alignment)))


@pytest.fixture
def follow(tmp_path):
    """Function follow(method): what the training loop does after a step."""
    engine = Engine(TrainRecipe(tracker="none"), tmp_path)
    return lambda method: TrainState(method, {}, [], {}, {}, None, decays=()).update_emas(engine)


@pytest.mark.parametrize("alignment", [0.0, 0.03, 1.0])
@pytest.mark.first_is_quick
def test_weights_move_by_the_fraction_after_a_step(alignment, follow):
    torch.manual_seed(0)
    for method in methods(alignment):
        fake, student = changed(method.fake_score, 1), changed(method.student, 2)
        follow(method)
        for now, before, target in zip(method.fake_score.parameters(), fake, student, strict=True):
            assert torch.allclose(now, (1 - alignment) * before + alignment * target, atol=1e-6)
            assert now.requires_grad and now.grad is None
        assert all(torch.equal(a, b) for a, b in zip(method.student.parameters(), student, strict=True))


@pytest.mark.slow
def test_adapters_start_from_equal_weights_and_reach_the_students(text_pipeline, follow):
    """Each adapter has random matrices of its own; interpolation between unrelated ones would mean nothing."""
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    teacher.enable_lora(4)
    method = DMD(teacher, 2.0, DMDOptions(fake_score_alignment=1.0))
    pairs = list(zip(method.fake_score.parameters(), method.student.parameters(), strict=True))
    assert all(torch.equal(fake, student) and fake is not student for fake, student in pairs)
    changed(method.student, 2)
    follow(method)
    x, t, cond = torch.randn(2, *teacher.shape), torch.tensor([0.4, 1.1]), teacher.condition(["a coat", "a bag"])
    with torch.no_grad():
        expected = method.student.velocity(x, t, cond)
        assert torch.equal(method.fake_score.velocity(x, t, cond), expected)
        assert not torch.allclose(teacher.velocity(x, t, cond), expected, atol=1e-3)


def test_networks_with_other_time_inputs_cannot_be_aligned():
    with pytest.raises(ValueError, match=r"dmd\.fake_score_alignment must be 0 with scm\.adaptation_steps"):
        RCMOptions(dmd=DMDOptions(fake_score_alignment=0.1))
