"""Teachers of every family against their stock pipelines: condition, schedule, guidance, latents, precision."""

import pytest
import torch

from distill.config.registry import TEACHERS, find
from teachers.core.trigflow import integrate
from tests.teachers.families.stock import NAMES, PIXELS, difference, prompts_of, stock_run

CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("name", NAMES)


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_ode_ends_where_the_stock_solver_ends(name, load, tiny, record, monkeypatch):
    """Condition, schedule and guidance equal those of the stock pipeline."""
    teacher, (_, folder) = load(name), tiny(name)
    if name == "Sana":  # its published solver truncates the timesteps
        exact = teacher.denoiser.timestep_input
        monkeypatch.setattr(teacher.denoiser, "timestep_input", lambda t: (exact(t) + 1e-3).floor())
    cond = teacher.condition(prompts_of(name))
    for column, guidance in (("wrap", 1.0), ("guidance", 3.0)):
        if column == "guidance" and not teacher.guided:
            continue
        run = stock_run(teacher, folder, name, guidance)
        start = run.first / teacher.denoiser.path.input_scale(torch.tensor([run.angles[0]])).item()
        with torch.no_grad():
            end = integrate(
                lambda x, t, guidance=guidance: teacher.velocity(x, t.float(), cond, guidance), start, run.angles
            )
        error = difference(teacher.denoiser.path.scale(torch.zeros(1)).item() * end, run.last)
        record(name, column, error)
        assert error < 1e-4
    worst = 0.0
    for key, ours in cond.items():
        stock = run.inputs[key]
        if len(stock) == 2:  # Flux embeds the guidance scale: no second half
            worst = max(worst, (ours - stock).abs().max().item())
            continue
        first, second = stock.float().chunk(2)
        without, with_prompt = (second, first) if name == "DiT" else (first, second)
        worst = max(worst, (ours - with_prompt).abs().max().item())
        worst = max(worst, (teacher.null_condition(cond)[key] - without).abs().max().item())
    record(name, "condition", worst)
    assert worst < 1e-5


@pytest.mark.exhaustive
def test_condition_has_every_argument_of_the_stock_network_call(load, tiny):
    """The stock pipeline passes the sample, the timestep and the condition, and nothing else."""
    common = {"hidden_states", "timestep", "return_dict", "img_ids", "txt_ids", "added_cond_kwargs", "image_rotary_emb"}
    for name in (name for name in NAMES if name not in PIXELS):
        teacher, (_, folder) = load(name), tiny(name)
        inputs = stock_run(teacher, folder, name, 3.0).inputs
        rest = {key for key, value in inputs.items() if value is not None and key not in common}
        scale = {"guidance"} if name == "Flux.1 dev" else set()
        assert rest - {"joint_attention_kwargs"} == set(teacher.condition(prompts_of(name))) | scale, name


@pytest.mark.slow
def test_decode_of_encode_equals_the_autoencoder(load):
    """For every scale, shift, mean and standard deviation of latents."""
    for name in (name for name in NAMES if name not in PIXELS):
        teacher = load(name)
        vae = teacher.stock.vae
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        with torch.no_grad():
            code = vae.encode(images)
            expected = vae.decode(code.latent if name == "Sana" else code.latent_dist.mean).sample
            assert torch.allclose(teacher.decode(teacher.encode(images)), expected, atol=1e-5), name


@pytest.mark.exhaustive
def test_bfloat16_teachers_return_nearly_equal_velocities_in_float32(tiny):
    for name in NAMES:
        family, folder = tiny(name)
        half, full = (find(TEACHERS, family).load(str(folder), CPU, dtype) for dtype in (torch.bfloat16, torch.float32))
        x, t, cond = torch.randn(2, *full.shape), torch.tensor([0.5, 1.0]), full.condition(prompts_of(name))
        with torch.no_grad():
            actual, expected = (teacher.velocity(x, t, cond, 2.0) for teacher in (half, full))
        assert actual.dtype == torch.float32
        assert (actual - expected).abs().mean() < 0.1 * expected.abs().mean(), name
