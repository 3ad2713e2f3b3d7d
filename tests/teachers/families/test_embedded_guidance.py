"""Teachers whose network receives the guidance scale as an input: latent consistency models and Flux.1 dev."""

import inspect

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.core.sampling import sample, teacher_endpoint
from teachers.core.teacher import Teacher
from teachers.families.flux import Flux
from teachers.families.stable_diffusion import StableDiffusion
from teachers.families.stable_diffusion_xl import StableDiffusionXL
from tests.teachers import tiny_pipelines
from tests.teachers.families.stock import PROMPTS, difference
from tests.teachers.families.training import step

EMBEDDED = ["Stable Diffusion 1.5", "Stable Diffusion XL"]
WIDTHS = [16, 40]  # of the embedding; the time embedding has 16 features


def embedded(tokenizer, name: str, width: int = 16) -> Teacher:
    """A teacher with a random input for the guidance scale."""
    torch.manual_seed(0)
    stock = tiny_pipelines.BUILDERS[name][1](tokenizer)
    network = UNet2DConditionModel(**dict(stock.unet.config) | {"time_cond_proj_dim": width})
    network.load_state_dict(stock.unet.state_dict(), strict=False)
    torch.nn.init.normal_(network.time_embedding.cond_proj.weight, std=0.5)
    stock.register_modules(unet=network)
    stock.scheduler = tiny_pipelines.betas(DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    stock.set_progress_bar_config(disable=True)
    return {"Stable Diffusion 1.5": StableDiffusion, "Stable Diffusion XL": StableDiffusionXL}[name].wrap(stock)


def decoded(teacher, x0):
    with torch.no_grad():
        return (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.slow
def test_the_teacher_samples_what_the_stock_pipeline_samples_at_its_scale(tokenizer, name, guidance):
    """In one evaluation a step: the stock pipeline applies no classifier-free guidance to such a network."""
    teacher = embedded(tokenizer, name)
    noise = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    teacher.stock.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    size = {} if name == EMBEDDED[0] else {"height": teacher.image_size[0], "width": teacher.image_size[1]}
    teacher.stock.scheduler.register_to_config(timestep_spacing="trailing")
    call = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "pt", "latents": noise, **size}
    images = teacher.stock(PROMPTS, **call).images
    with torch.no_grad():
        x0 = teacher_endpoint(teacher, noise, teacher.condition(PROMPTS), 4, guidance)
    assert rows == [2] * 8
    assert difference(images, decoded(teacher, x0)) < 2e-2  # the stock scheduler ends at its first noise level


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("guidance", [1.0, 4.0, torch.tensor([2.0, 7.5])])
def test_velocity_is_that_of_the_stock_network_at_the_scale(tokenizer, name, guidance):
    teacher = embedded(tokenizer, name)
    cond, t = teacher.condition(PROMPTS), torch.tensor([0.6, 1.2])
    x = torch.randn(2, *teacher.shape)
    scale = guidance if isinstance(guidance, torch.Tensor) else torch.full((2,), guidance)
    embedding = teacher.stock.get_guidance_scale_embedding(scale - 1, embedding_dim=16)
    with torch.no_grad():
        expected = teacher.denoiser.velocity(x, t, {**cond, "timestep_cond": embedding})
        assert torch.allclose(teacher.velocity(x, t, cond, guidance), expected, atol=1e-5)
        assert not torch.allclose(teacher.velocity(x, t, cond, 3.0), expected, atol=1e-2)


@pytest.mark.parametrize("width", [7, 16, 40])
@pytest.mark.first_is_quick
def test_the_embedding_is_the_stock_pipelines(tokenizer, width):
    teacher = embedded(tokenizer, EMBEDDED[0], width)
    ours = teacher.guidance_condition(teacher.denoiser, torch.tensor([1.0, 4.5]))["timestep_cond"]
    stock = StableDiffusionPipeline.get_guidance_scale_embedding
    assert inspect.getsource(stock) and ours.shape == (2, width)
    assert torch.allclose(ours, stock(None, torch.tensor([0.0, 3.5]), embedding_dim=width), atol=1e-4)
    assert torch.allclose(
        ours, StableDiffusionXLPipeline.get_guidance_scale_embedding(None, torch.tensor([0.0, 3.5]), width), atol=1e-4
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.first_is_quick
def test_students_and_fake_scores_start_at_the_teachers_scale(tokenizer, width):
    teacher = embedded(tokenizer, EMBEDDED[0], width)
    distiller = DMD(teacher, 4.0, DMDOptions())
    cond, t, x = teacher.condition(PROMPTS), torch.tensor([0.6, 1.2]), torch.randn(2, *teacher.shape)
    with torch.no_grad():
        expected = teacher.velocity(x, t, cond, 4.0)
        for network in (distiller.student, distiller.fake_score):
            assert torch.allclose(network.velocity(x, t, cond), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("steps", [2, 1])
@pytest.mark.sampled
def test_exports_equal_the_student_at_any_guidance_scale_of_the_call(tokenizer, name, width, steps):
    teacher = embedded(tokenizer, name, width)
    distiller = SCM(teacher, 4.0, SCMOptions(adaptation_steps=1, tangent_warmup=1))
    step(distiller, "student", teacher, name)
    student = distiller.student
    times = [student.path.t_max, 0.7][:steps]
    pipe = teacher.pipeline(student, times)
    pipe.set_progress_bar_config(disable=True)
    expected = None
    for scale in (1.0, 9.0):
        rng = torch.Generator().manual_seed(3)
        call = teacher.calls(steps, times) | {"guidance_scale": scale, "output_type": "pt", "generator": rng}
        images = pipe(PROMPTS, **call).images
        if expected is None:
            rng = torch.Generator().manual_seed(3)
            noise, more = torch.randn(2, *teacher.shape, generator=rng), torch.randn(2, *teacher.shape, generator=rng)
            with torch.no_grad():
                x0 = sample(student, noise, times, teacher.condition(PROMPTS), lambda more=more: more)
            expected = decoded(teacher, x0)
        assert difference(images, expected) < 1e-3
    assert teacher.denoiser.network.config.time_cond_proj_dim == width  # the teacher keeps its input


@pytest.mark.slow
def test_a_student_of_several_scales_keeps_the_teachers_input(tokenizer):
    teacher = embedded(tokenizer, EMBEDDED[0], 4)
    distiller = SCM(teacher, 4.0, SCMOptions(adaptation_steps=0, guidances=(3.0, 4.0, 5.0)))
    times = [distiller.student.path.t_max]
    pipe = teacher.pipeline(distiller.student, times)
    pipe.set_progress_bar_config(disable=True)
    cond = teacher.condition(PROMPTS)
    for scale in (3.0, 5.0):
        rng = torch.Generator().manual_seed(3)
        call = teacher.calls(1, times) | {"guidance_scale": scale, "output_type": "pt", "generator": rng}
        images = pipe(PROMPTS, **call).images
        noise = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(3))
        scaled = {**cond, **teacher.guidance_condition(distiller.student, torch.full((2,), scale))}
        with torch.no_grad():
            x0 = sample(distiller.student, noise, times, scaled, torch.randn_like)
        assert difference(images, decoded(teacher, x0)) < 1e-3


@pytest.mark.slow
def test_a_lora_file_is_exact_at_the_guidance_scale_of_its_call(tokenizer, tmp_path):
    teacher = embedded(tokenizer, EMBEDDED[0])
    teacher.enable_lora(4)
    distiller = SCM(teacher, 4.0, SCMOptions(adaptation_steps=1, tangent_warmup=1))
    student, times = distiller.student, [distiller.student.path.t_max, 0.7]
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    assert teacher.save_lora(student, times, tmp_path)
    pipe = embedded(tokenizer, EMBEDDED[0]).stock
    pipe.scheduler = teacher.scheduler(student, times)[0]
    pipe.load_lora_weights(tmp_path)
    rng = torch.Generator().manual_seed(3)
    call = teacher.lora_call(2, times)
    assert call["guidance_scale"] == 4.0
    images = pipe(PROMPTS, output_type="pt", generator=rng, **call).images
    rng = torch.Generator().manual_seed(3)
    noise, more = torch.randn(2, *teacher.shape, generator=rng), torch.randn(2, *teacher.shape, generator=rng)
    with torch.no_grad():
        x0 = sample(student, noise, times, teacher.condition(PROMPTS), lambda: more)
    assert difference(images, decoded(teacher, x0)) < 1e-3


def test_an_offloaded_flux_is_moved_for_its_evaluation(tokenizer):
    """Flux has its own `velocity`, which must load an offloaded network like the others."""
    teacher = Flux.wrap(tiny_pipelines.flux(tokenizer, guidance_embeds=True))
    cond, t, x = teacher.condition(PROMPTS), torch.tensor([0.6, 1.2]), torch.randn(2, *teacher.shape)
    with torch.no_grad():
        expected = teacher.velocity(x, t, cond, 2.0)
        teacher.offload(torch.device("cpu"))
        entered = []
        moved = teacher.offloaded.on_device
        teacher.offloaded.on_device = lambda: entered.append(1) or moved()
        assert torch.equal(teacher.velocity(x, t, cond, 2.0), expected)
    assert entered
