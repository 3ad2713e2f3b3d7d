"""LCM against closed forms: data N(0, s^2 I), whose flow map and discrete optimum are known."""

import math

import pytest
import torch
from torch import nn

from distill.config.recipe import load
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.lcm import LCM, LCMOptions
from distill.training.engine import Engine
from distill.training.state import TrainState
from distill.training.step import train_step
from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import Flow, add_noise, rotate
from teachers.families.analytic import Analytic, Mixture
from teachers.families.stable_diffusion import StableDiffusion
from tests.settings import FAST, RECIPES

STD, CPU = 0.6, torch.device("cpu")


def method(network: nn.Module | None = None, path=None, **options) -> LCM:
    torch.manual_seed(0)
    lcm = LCM(Analytic(Mixture(torch.zeros(1, 2), STD), path), 1.0, LCMOptions(**options))
    lcm.grid = torch.tensor(lcm.student.path.solver_times(lcm.options.solver_steps), dtype=torch.float64)
    if network is not None:
        lcm.student = Linear(network, lcm.student.path)
    return lcm


class Linear(Denoiser):
    """A consistency function f(x, t) = gain(t) x, in float64."""

    def __init__(self, gain, path):
        super().__init__(nn.Identity(), path, "flow_prediction")
        self.gain = gain

    def denoise(self, x_t, t, cond):
        return self.gain(t)[:, None] * x_t


def flow_map(t):
    """The exact consistency function's gain: s / sqrt(s^2 cos^2 t + sin^2 t)."""
    return STD / torch.sqrt(STD**2 * t.cos() ** 2 + t.sin() ** 2)


def optimum(grid):
    """The zero of the loss: gains a_n with a(s) = 1 at s = 0 and a(t) = a(s) m, m the teacher's DDIM step on x."""
    slope = grid.sin() * grid.cos() * (1 - STD**2) / (STD**2 * grid.cos() ** 2 + grid.sin() ** 2)  # v = slope x
    step = grid[:-1] - grid[1:]
    factor = step.cos() - step.sin() * slope[:-1]
    return torch.cat([factor.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=grid.dtype)])


class Table(nn.Module):
    """A gain for each angle of the solver's grid."""

    def __init__(self, grid, values):
        super().__init__()
        self.grid, self.values = grid, nn.Parameter(values)

    def forward(self, t):
        return self.values[(t[:, None] - self.grid).abs().argmin(1)]


def points(lcm, count=64):
    index = torch.arange(count) % (len(lcm.grid) - 1)
    t, s = lcm.grid[index], lcm.grid[index + 1]
    generator = torch.Generator().manual_seed(0)
    x0, z = (torch.randn(count, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    return add_noise(STD * x0, z, t), t, s


def error(lcm, x_t, t, s):
    drift = lcm.teacher.velocity(x_t, t, {})
    return lcm.student.denoise(x_t, t, {}) - lcm.solve(x_t, t, s, drift, {})


def test_the_discrete_optimum_has_zero_loss_and_approaches_the_flow_map():
    gaps = []
    for steps in (10, 20, 40):
        lcm = method(solver_steps=steps)
        best = optimum(lcm.grid)
        lcm.student = Linear(Table(lcm.grid, best), lcm.student.path)
        assert error(lcm, *points(lcm)).abs().max() < 1e-12
        gaps.append((best - flow_map(lcm.grid)).abs().max().item())
    assert gaps[2] < 0.03 and gaps[0] / gaps[1] == pytest.approx(2, rel=0.3)  # DDIM is of first order
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_training_finds_the_flow_map_from_the_boundary_condition(loss):
    lcm = method(solver_steps=8, loss=loss, huber_c=0.1)
    table = Table(lcm.grid, torch.zeros(9, dtype=torch.float64))
    lcm.student = Linear(table, lcm.student.path)
    optimizer = torch.optim.Adam(table.parameters(), 0.05)
    x_t, t, s = points(lcm, 64)
    for _ in range(300):
        optimizer.zero_grad()
        lcm.distance(error(lcm, x_t, t, s)).mean().backward()
        optimizer.step()
    assert (table.values - optimum(lcm.grid))[:-1].abs().max() < 0.01


@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_gradient_equals_the_derivation_by_hand(loss):
    """The target has no gradient: dL/da = d'(error) x, summed over the samples of each angle."""
    lcm = method(solver_steps=4, loss=loss, huber_c=0.3)
    table = Table(lcm.grid, torch.linspace(0.2, 1.0, 5, dtype=torch.float64))
    lcm.student = Linear(table, lcm.student.path)
    x_t, t, s = points(lcm, 16)
    lcm.distance(error(lcm, x_t, t, s)).mean().backward()
    values = table.values.detach()
    index = torch.arange(16) % 4
    x_s = rotate(x_t, lcm.teacher.velocity(x_t, t, {}), t, s)
    following = torch.where(index == 3, 1.0, values[index + 1])
    gap = values[index][:, None] * x_t - following[:, None] * x_s
    slope = 2 * gap if loss == "l2" else gap / torch.sqrt(gap.square() + 0.3**2)
    expected = torch.zeros(5, dtype=torch.float64).index_add_(0, index, (slope * x_t).sum(1) / x_t.numel())
    assert torch.allclose(table.values.grad, expected, atol=1e-12)


def test_the_solver_steps_are_those_of_the_teacher_and_end_at_clean_data():
    lcm = method(solver_steps=50)
    batch = Batch({}, BatchRandom(("t",), 0, 400, 400, CPU))
    t, s = lcm.interval(batch)
    assert len(set(t.tolist())) == 50 and t.max() == lcm.student.path.t_max and s.min() == 0  # stratified
    levels = lcm.student.path.timestep(t) - lcm.student.path.timestep(s)
    assert torch.allclose(levels, torch.full_like(levels, 1000 / 50), atol=1e-6)  # k = 20 of 1,000


@pytest.mark.slow
def test_the_average_gives_the_target_and_has_no_gradient(text_pipeline):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    lcm = LCM(teacher, 2.0, LCMOptions(target_ema=0.9))
    batch = Batch(teacher.condition(["a coat"] * 4), BatchRandom(("e",), 0, 4, 4, CPU), torch.randn(4, *teacher.shape))
    x_t, t, s = torch.randn(4, *teacher.shape), lcm.grid[:4], lcm.grid[1:5]
    drift = teacher.velocity(x_t, t, batch.cond, 2.0)
    before = lcm.solve(x_t, t, s, drift, batch.cond)
    with torch.no_grad():
        for parameter in lcm.student.parameters():
            parameter.add_(0.1)
    assert torch.equal(lcm.solve(x_t, t, s, drift, batch.cond), before)
    lcm("student", batch, 0)[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in lcm.target.parameters())
    assert "target" not in lcm.networks() and lcm.averages() == [(lcm.target, 0.9)]


@pytest.mark.slow
def test_each_training_step_moves_the_average(text_pipeline, tmp_path):
    overrides = [*FAST, f"teacher.path={text_pipeline}", f"output={tmp_path}", "method.target_ema=0.75"]
    recipe = load(RECIPES / "lcm.yaml", overrides)
    engine = Engine(recipe.train, tmp_path)
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    state = TrainState.build(recipe, teacher, engine)
    cond = teacher.condition(["a coat"] * 4)
    batches = [Batch(cond, BatchRandom((i,), 0, 4, 4, CPU), torch.randn(4, *teacher.shape)) for i in range(2)]
    for batch in batches:
        expected = [p.detach().clone() for p in state.distiller.target.parameters()]
        train_step(state, iter([batch]), engine, recipe)
        pairs = zip(expected, state.distiller.student.parameters(), strict=True)
        expected = [0.75 * average + 0.25 * student for average, student in pairs]
        found = list(state.distiller.target.parameters())
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(found, state.distiller.student.parameters(), strict=True))


@pytest.mark.slow
def test_guidance_scales_reach_the_solver_and_the_student(text_pipeline):
    """A guided DDIM step is (1 + w) Psi(c) - w Psi(empty) with w = guidance - 1 (section 4.2)."""
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    lcm = LCM(teacher, 2.0, LCMOptions(guidances=(1.5, 2.0, 4.0)))
    batch = Batch(teacher.condition(["a coat"] * 8), BatchRandom(("g",), 0, 8, 8, CPU), torch.randn(8, *teacher.shape))
    scales, cond = lcm.sample_guidance(batch)
    assert set(scales.tolist()) == {1.5, 2.0, 4.0} and "timestep_cond" in cond
    x_t, t, s = torch.randn(8, *teacher.shape), lcm.grid[:8], lcm.grid[1:9]
    guided = rotate(x_t, teacher.velocity(x_t, t, batch.cond, scales), t, s) - x_t
    psi, empty = (
        rotate(x_t, teacher.velocity(x_t, t, c, 1.0), t, s) - x_t
        for c in (batch.cond, teacher.null_condition(batch.cond))
    )
    w = (scales - 1)[:, None, None, None]
    assert torch.allclose(guided, (1 + w) * psi - w * empty, atol=1e-4)
    lcm("student", batch, 0)[0].backward()
    assert lcm.student.network.time_embedding.cond_proj.weight.grad.abs().max() > 0


def test_schedules_of_one_two_and_four_steps():
    two, four, one = method(), method(timesteps=(999, 749, 499, 249)), method(timesteps=(700,))
    assert all(len(times) == 2 for times in two.sampling_schedules()) and two.step_counts([*two.times, 0.4]) == (1, 2)
    assert four.sampling_schedules() == [four.times] and four.step_counts(four.times) == (1, 4)
    assert one.step_counts(one.times) == (1,) and two.student.is_consistency
    assert math.isclose(one.times[0], Flow().angle(torch.tensor([700.0])).item(), rel_tol=1e-6)


@pytest.mark.slow
def test_timesteps_that_cannot_be_exported_are_rejected_before_training(text_pipeline):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    with pytest.raises(ValueError, match=r"must have method\.timesteps after the first at most .*, got \[999, 749\]"):
        LCM(teacher, 2.0, LCMOptions(timesteps=(999, 749), adaptation_steps=10))
    LCM(teacher, 2.0, LCMOptions(timesteps=(999, 249), adaptation_steps=10))
    teacher.denoiser.prediction = "sample"
    with pytest.raises(ValueError, match=r"at angles of at least method\.boundary_angle 0\.4, got \[999, 10\]"):
        LCM(teacher, 2.0, LCMOptions(timesteps=(999, 10)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver_steps": 0}, "solver_steps must be at least 1, got 0"),
        ({"target_ema": 1.0}, "target_ema must be .*below 1"),
        ({"huber_c": 0.0}, "huber_c must be positive"),
        ({"second_times": ()}, "second_times must have at least one angle"),
    ],
)
def test_options_check_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        LCMOptions(**options)
