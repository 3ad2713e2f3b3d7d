"""Teachers of clips and sounds against their stock pipelines: condition, schedule, guidance, latents, precision."""

import pytest
import torch

from distill.config.registry import TEACHERS, find
from teachers.core.cosine_path import Cosine
from teachers.core.trigflow import expand, rotate
from tests.settings import first_is_quick
from tests.teachers.families.media import NAMES, conditions, load_stock, run
from tests.teachers.families.stock import PROMPTS, difference

CPU = torch.device("cpu")
QUICK = ("Wan 2.1", "LTX", "CogVideoX 2B", "Stable Audio, short")  # one of each kind of solver
every_family = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.parametrize("guidance", first_is_quick([3.0, 1.0]))
def test_every_step_of_the_stock_solver_is_that_of_the_teacher(name, guidance, load_media, tiny_media, record):
    """Condition, schedule and guidance equal those of the stock pipeline."""
    teacher, folder = load_media(name), tiny_media(name)[1]
    steps = run(load_stock(teacher, folder), teacher, teacher.usual_call(4, guidance))
    cond, path, worst = teacher.condition(PROMPTS), teacher.denoiser.path, 0.0
    for i, (native, after) in enumerate(zip(steps.samples, steps.outputs, strict=True)):
        t, s = (torch.full((2,), angle, dtype=torch.float64) for angle in steps.angles[i : i + 2])
        x = native / expand(path.scale(t).float(), native)
        with torch.no_grad():
            v = teacher.velocity(x, t, cond, guidance)
        ours = rotate(x, v, t, s) * expand(path.scale(s).float(), native)
        if isinstance(path, Cosine):  # its solver is stochastic: the prediction of clean data is compared
            worst = max(worst, difference(rotate(x, v, t, 0 * t), steps.x0[i]))
        else:
            worst = max(worst, difference(ours, after))
    record(name, "wrap" if guidance == 1 else "guidance", worst)
    assert worst < 1e-4


@every_family
def test_condition_is_that_of_the_stock_pipeline(name, load_media, tiny_media, record):
    teacher, folder = load_media(name), tiny_media(name)[1]
    inputs = run(load_stock(teacher, folder), teacher, teacher.usual_call(2, 3.0))
    cond = teacher.condition(PROMPTS)
    with_prompt, without = conditions(inputs, teacher, cond)
    null, worst = teacher.null_condition(cond), 0.0
    for key, ours in cond.items():
        worst = max(worst, (ours.float() - with_prompt[key].float()).abs().max().item())
        if not teacher.embeds_guidance:
            worst = max(worst, (null[key].float() - without[key].float()).abs().max().item())
    record(name, "condition", worst)
    assert worst < 1e-5
    scale = {"guidance"} if teacher.embeds_guidance else set()
    made = scale | {"num_frames", "height", "width", "rope_interpolation_scale", "rotary_embedding", "image_rotary_emb"}
    common = {"args", "hidden_states", "timestep", "return_dict"} | made
    assert {key for key, value in inputs.inputs[0].items() if value is not None} - common == set(cond)


@every_family
def test_decode_of_encode_equals_the_autoencoder(name, load_media):
    teacher = load_media(name)
    vae, medium = teacher.stock.vae, teacher.medium
    media = torch.rand(2, *medium.shape) * 2 - 1
    with torch.no_grad():
        latents = teacher.encode(media)
        assert latents.shape == (2, *teacher.shape)
        if medium.name == "audio":  # padded to all latents, and cut again
            media = torch.nn.functional.pad(media, (0, teacher.shape[1] * teacher.factor - medium.shape[1]))
        if teacher.network == "unet":  # an autoencoder of images
            media = media.transpose(1, 2).flatten(0, 1)
        mean = vae.encode(media).latent_dist.mean
        time = (torch.zeros(2),) if name == "LTX 0.9.1" else ()
        expected = vae.decode(mean, *time).sample[..., : medium.shape[-1]]
        if teacher.network == "unet":
            expected = expected.unflatten(0, (2, -1)).transpose(1, 2)
        assert difference(teacher.decode(latents), expected) < 1e-4


@every_family
def test_decoded_samples_equal_those_of_the_stock_pipeline(name, load_media, tiny_media):
    teacher, folder = load_media(name), tiny_media(name)[1]
    pipe = load_stock(teacher, folder)
    call = {"prompt": PROMPTS} | teacher.usual_call(2, 1.0)  # LTX's shift_terminal needs two steps
    latents = run(pipe, teacher, teacher.usual_call(2, 1.0)).outputs[-1]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    output = pipe(**call, output_type="pt", generator=generator)
    samples = teacher.medium.received(output)
    with torch.no_grad():
        expected = teacher.medium.judged(teacher.decode(latents))
    assert samples.shape == expected.shape == (2, *teacher.medium.shape)
    assert (samples - expected).abs().max() < 1e-4


@pytest.mark.slow
@every_family
def test_bfloat16_teachers_return_nearly_equal_velocities_in_float32(name, tiny_media):
    family, folder, size = tiny_media(name)
    half, full = (
        find(TEACHERS, family).load(str(folder), CPU, dtype, size=size) for dtype in (torch.bfloat16, torch.float32)
    )
    x, t, cond = torch.randn(2, *full.shape), torch.tensor([0.5, 1.0]), full.condition(PROMPTS)
    with torch.no_grad():
        actual, expected = (teacher.velocity(x, t, cond, 2.0) for teacher in (half, full))
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().mean() < 0.1 * expected.abs().mean()
