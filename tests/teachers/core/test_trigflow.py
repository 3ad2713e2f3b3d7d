"""TrigFlow and noise schedules against closed forms and the DDIM solver of diffusers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from teachers.core.denoiser import Denoiser
from teachers.core.trigflow import Flow, VariancePreserving, add_noise, integrate, rotate, to_velocity, to_x0
from teachers.families.analytic import Analytic, checkerboard, eight_gaussians
from teachers.pocket.parts import make_unet, sd15_scheduler

SD15 = sd15_scheduler().alphas_cumprod


def test_x0_and_rotation_invert_the_forward_process():
    torch.manual_seed(0)
    x0, z, t = (
        torch.randn(5, 3, dtype=torch.float64),
        torch.randn(5, 3, dtype=torch.float64),
        torch.rand(5).double() * 1.5,
    )
    x, v = add_noise(x0, z, t), to_velocity(x0, z, t)
    assert torch.allclose(to_x0(x, v, t), x0, atol=1e-12)
    assert torch.allclose(rotate(x, v, t, torch.full_like(t, math.pi / 2)), z, atol=1e-12)
    s = torch.rand(5).double()
    assert torch.allclose(rotate(x, v, t, s), add_noise(x0, z, s), atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 1.7])
@pytest.mark.slow
def test_every_prediction_type_gives_the_same_trajectory(sigma_data):
    """The endpoints of one mixture as epsilon, v, x0 and flow on two schedules agree to 1e-9 in float64."""
    z = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for prediction, path in [
        ("epsilon", VariancePreserving(SD15, sigma_data)),
        ("v_prediction", VariancePreserving(SD15, sigma_data)),
        ("sample", VariancePreserving(SD15, sigma_data)),
        ("flow_prediction", Flow(sigma_data=sigma_data)),
    ]:
        teacher = Analytic(checkerboard(), path, prediction)
        times = torch.linspace(1.45, 0.1, 30).tolist()
        ends.append(integrate(lambda x, t, teacher=teacher: teacher.velocity(x, t, {}), z, times, order=2))
    for end in ends[1:]:
        assert (end - ends[0]).abs().max() < 1e-9


ZERO_SNR = torch.cat([SD15[:-1], torch.zeros(1)])


@pytest.mark.parametrize("sigma_data", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("table", [SD15, ZERO_SNR], ids=["SD 1.5", "zero terminal SNR"])
@pytest.mark.first_is_quick
def test_closed_form_coefficients_equal_those_of_the_table(table, sigma_data):
    """Coefficients, scale, angle and the derivative in t are equal with and without the table."""
    path = VariancePreserving(table, sigma_data)
    t = torch.linspace(path.t_min, path.t_max, 300, dtype=torch.float64).clamp(path.t_min, path.t_max)
    for one, two in zip(path.native(t), path.coefficients(path.timestep(t)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)
    alpha, sigma = path.native(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-12)
    torch.testing.assert_close(path.scale(t), torch.sqrt((alpha * sigma_data) ** 2 + sigma**2), rtol=1e-12, atol=0)
    timesteps = torch.linspace(0, 999, 300, dtype=torch.float64)
    alpha, sigma = path.coefficients(timesteps)
    torch.testing.assert_close(path.angle(timesteps), torch.atan2(sigma, alpha * sigma_data), rtol=1e-9, atol=0)
    inner = t[1:-1]
    slopes = [
        torch.func.jvp(f, (inner,), (torch.ones_like(inner),))[1]
        for f in (lambda t: path.native(t)[1], lambda t: path.coefficients(path.timestep(t))[1])
    ]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-7)
    ends = torch.tensor([path.t_min, path.t_max], dtype=torch.float64)
    beyond = ends + torch.tensor([-0.001, 0.001])
    assert all(torch.equal(*pair) for pair in zip(path.native(beyond), path.native(ends), strict=True))


@pytest.mark.parametrize("path", [VariancePreserving(SD15), VariancePreserving(SD15, 0.5), Flow(sigma_data=1.3)])
def test_timestep_inverts_angle_and_has_the_right_derivative(path):
    angles = torch.linspace(path.t_min + 0.01, path.t_max - 0.01, 200, dtype=torch.float64)
    assert torch.allclose(path.angle(path.timestep(angles)), angles, atol=1e-9)
    inner = angles[5:-5].clone().requires_grad_()
    (slope,) = torch.autograd.grad(path.timestep(inner).sum(), inner)
    h = 1e-7
    numeric = (path.timestep(inner.detach() + h) - path.timestep(inner.detach() - h)) / (2 * h)
    away_from_knots = (slope - numeric).abs() < 1e-3 * slope.abs()  # a knot within the difference mixes two slopes
    assert away_from_knots.float().mean() > 0.95


def test_stable_diffusion_schedule_has_the_published_range():
    path = VariancePreserving(SD15)
    assert path.t_min == pytest.approx(0.0292, abs=1e-4)
    assert path.t_max == pytest.approx(1.5025, abs=1e-4)
    whole = torch.arange(0, 1000, 37)
    alpha, sigma = path.coefficients(whole)
    assert torch.allclose(alpha**2, SD15[whole].double(), atol=1e-7)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(len(whole)).double())


def test_zero_terminal_snr_reaches_pure_noise():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    path = VariancePreserving(scheduler.alphas_cumprod)
    assert path.t_max == pytest.approx(math.pi / 2, abs=1e-6)


def test_increasing_alphas_cumprod_raise_an_error():
    with pytest.raises(ValueError, match="decreasing"):
        VariancePreserving(torch.tensor([0.5, 0.6, 0.1]))


@pytest.mark.slow
def test_second_order_solver_converges_faster():
    teacher = Analytic(eight_gaussians())
    z = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def run(steps, order):
        return integrate(
            lambda x, t: teacher.velocity(x, t, {}), z, torch.linspace(1.5, 0.3, steps + 1).tolist(), order
        )

    exact = run(2000, 2)
    error = {(n, order): (run(n, order) - exact).square().mean().sqrt() for n in (40, 80) for order in (1, 2)}
    assert 1.6 < error[40, 1] / error[80, 1] < 2.6
    assert error[40, 2] / error[80, 2] > 3.2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.exhaustive
def test_integration_in_canonical_time_equals_ddim(prediction):
    """The ODE of a UNet against DDIM of diffusers: equal at the same timesteps, and both converge."""
    torch.manual_seed(0)
    unet = make_unet().eval()
    scheduler = DDIMScheduler.from_config(sd15_scheduler().config, prediction_type=prediction)
    denoiser = Denoiser(unet, VariancePreserving(scheduler.alphas_cumprod), prediction)
    noise, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 64)
    cond = {"encoder_hidden_states": text}

    @torch.no_grad()
    def ddim(steps):
        scheduler.set_timesteps(steps)
        x = noise
        for timestep in scheduler.timesteps:
            x = scheduler.step(unet(x, timestep, encoder_hidden_states=text).sample, timestep, x).prev_sample
        return x

    @torch.no_grad()
    def ours(steps):
        # DDIM's last step ends at the table's first entry, not at clean data (set_alpha_to_one=False).
        times = [*denoiser.path.solver_times(steps)[:-1], denoiser.path.t_min]
        return integrate(lambda x, t: denoiser.velocity(x, t.float(), cond), noise, times)

    assert (ours(20) - ddim(20)).abs().max() < 2e-3 * ddim(20).abs().max()
    fine = ddim(200)
    assert (ours(50) - fine).abs().mean() < (ours(10) - fine).abs().mean()
