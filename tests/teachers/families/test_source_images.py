"""Families with a source image: stock pipeline, guidance, methods, LoRA, memory plan, exports."""

import copy
import functools

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

from distill.checks.conditions import teacher_inputs
from distill.checks.stock import run_stock, use_first_order_sampler
from distill.checks.teacher_checks import check_teacher
from distill.config.registry import TEACHERS, find
from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.exporting.probes import probe_sources
from distill.exporting.verify import differences
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.rcm import RCM, RCMOptions
from distill.methods.scm import SCM, SCMOptions
from distill.training.meta_device import build_on_meta
from teachers.core.trigflow import integrate
from teachers.loading.trial import check_teacher as check_files
from tests.teachers.families.stock import PROMPTS, difference
from tests.teachers.tiny_pipelines import WIDTH, autoencoder, betas, clip, unet
from tests.teachers.tiny_sources import SOURCE_BUILDERS

CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("name", SOURCE_BUILDERS)


@pytest.fixture(scope="module")
def load(tiny_source):
    """Function load(name) -> the teacher; each is loaded once."""

    @functools.cache
    def teacher(name):
        family, folder = tiny_source(name)
        return find(TEACHERS, family).load(str(folder), CPU)

    return teacher


def condition_of(teacher):
    return teacher.source_condition(PROMPTS, probe_sources(teacher))


def step(distiller, phase, teacher):
    """One optimizer step of one phase: most weights change, and all stay finite."""
    latents = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(condition_of(teacher), BatchRandom((0,), 0, 2, 2, CPU), latents)
    parameters = [p for module in distiller.networks()[phase] for p in module.parameters() if p.requires_grad]
    optimizer, before = torch.optim.AdamW(parameters, lr=1e-3), [p.detach().clone() for p in parameters]
    distiller(phase, batch, 1)[0].backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in parameters)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert moved > 0.5 * len(parameters)


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_wrong_source_images_are_refused(name, load):
    teacher = load(name)
    sources = probe_sources(teacher)
    for value in (torch.nan, torch.inf):
        wrong = sources.clone()
        wrong[1, 0, 3, 3] = value
        for encode in (teacher.source_condition, teacher.exact_source_condition):
            with pytest.raises(ValueError, match="source images must be finite, got NaN or infinite values"):
                encode(PROMPTS, wrong)
    channels = 2 + len(teacher.source)
    with pytest.raises(
        ValueError, match=rf"must have the shape \(B, {channels}, 16, 16\), got \(2, {channels}, 16, 8\)"
    ):
        teacher.source_condition(PROMPTS, sources[..., :8])


@pytest.mark.slow
def test_latents_for_the_call_are_exact_and_need_no_text(tiny_source, monkeypatch):
    """Those that replace what the stock pipeline of inpainting draws, of a teacher in bfloat16."""
    family, folder = tiny_source("inpainting")
    teacher = find(TEACHERS, family).load(str(folder), CPU, torch.bfloat16)
    sources = probe_sources(teacher)
    expected = teacher.exact_source_condition(PROMPTS, sources)["source_latents"][:, 1:]
    monkeypatch.setattr(teacher, "text_condition", None)
    latents = teacher.exact_source_call(sources)["masked_image_latents"]
    assert torch.equal(latents, expected) and latents.dtype == torch.float32
    vae = DiffusionPipeline.from_pretrained(folder).vae
    with torch.no_grad():
        mean = vae.encode(sources[:, :3] * (sources[:, 3:] < 0.5)).latent_dist.mean
    assert torch.allclose(latents, 0.18 * mean, rtol=1e-2, atol=1e-3)  # the weights are those of bfloat16


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.sampled
def test_ode_ends_where_the_stock_solver_ends(name, guidance, load, tiny_source):
    teacher, folder = load(name), tiny_source(name)[1]
    pipe = DiffusionPipeline.from_pretrained(folder)
    use_first_order_sampler(pipe)
    run = run_stock(pipe, teacher, 4, guidance)
    cond = condition_of(teacher)
    start = run.samples[0] / teacher.denoiser.path.scale(torch.tensor(run.angles[:1])).item()
    with torch.no_grad():
        end = integrate(lambda x, t: teacher.velocity(x, t.float(), cond, guidance), start, run.angles)
    end = end * teacher.denoiser.path.scale(torch.tensor(run.angles[-1:])).item()
    assert difference(end, run.outputs[-1]) < 1e-5
    own = teacher_inputs(teacher, cond, guidance)[0]["encoder_hidden_states"].flatten(1).sum(1).sort().values
    stock = run.inputs["encoder_hidden_states"].flatten(1).sum(1).sort().values
    assert torch.allclose(own, stock, atol=1e-4)


@every_family
@pytest.mark.slow
def test_source_images_change_the_velocity_and_their_mask_too(name, load):
    teacher, x = load(name), torch.randn(2, 4, 8, 8)
    sources, t = probe_sources(teacher), torch.tensor([0.5, 1.1])
    velocities = []
    for row in range(len(teacher.source) + 1):
        changed = sources.clone()
        if row:
            changed[:, 3 * row - 3 : 2 * row + 1] = changed[:, 3 * row - 3 : 2 * row + 1].flip(-1)
        with torch.no_grad():
            velocities.append(teacher.velocity(x, t, teacher.source_condition(PROMPTS, changed)))
    assert all(difference(velocities[0], other) > 1e-4 for other in velocities[1:])


def test_both_guidance_scales_follow_the_published_formula(load):
    teacher = copy.copy(load("InstructPix2Pix"))
    teacher.set_image_guidance(2.5)
    cond, x, t = condition_of(teacher), torch.randn(2, *teacher.shape), torch.tensor([0.5, 1.1])
    blank, source = teacher.condition([""] * 2), teacher.source_condition([""] * 2, probe_sources(teacher))
    with torch.no_grad():
        full, image, none = (teacher.denoiser.velocity(x, t, each) for each in (cond, source, blank))
        guided = teacher.velocity(x, t, cond, 3.0)
    assert torch.allclose(guided, none + 3.0 * (full - image) + 2.5 * (image - none), atol=1e-5)
    assert teacher.usual_call(4, 3.0) == {
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "image_guidance_scale": 2.5,
    }


@pytest.mark.slow
def test_image_guidance_is_refused_where_a_pipeline_has_none(load):
    with pytest.raises(ValueError, match=r"teacher\.image_guidance must be null: .* Inpainting have no guidance scale"):
        load("inpainting").set_image_guidance(2.0)


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_every_check_passes(name, tiny_source):
    """Stock sampler, conditions, decoder, tangent, export in 1 and 2 steps, save and load."""
    family, folder = tiny_source(name)
    failed = [check for check in check_teacher(find(TEACHERS, family), str(folder), CPU) if not check.passed]
    assert not failed


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_methods_train_and_dmd_begins_without_a_gradient(name, load):
    teacher = load(name)
    plain = {"gan_weight": 0.0, "r1_weight": 0.0, "regression_weight": 0.0}
    guidance = 3.5 if name == "Flux.1 Kontext" else 1.0  # its student receives the default guidance scale
    distiller = DMD(teacher, guidance, DMDOptions(**plain))
    x = torch.randn(2, *teacher.shape)
    gradient, _ = distiller.gradient(x, x, torch.tensor([0.4, 1.2]), condition_of(teacher))
    assert gradient.abs().max() < 1e-4
    for phase in ("fake_score", "student"):
        step(DMD(teacher, 2.0, DMDOptions()), phase, teacher)
    step(SCM(teacher, 2.0, SCMOptions(adaptation_steps=1, tangent_warmup=1)), "student", teacher)
    for phase in RCM.PHASES:
        step(RCM(teacher, 2.0, RCMOptions(scm=SCMOptions(adaptation_steps=1, tangent_warmup=1))), phase, teacher)


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_lora_students_train_and_their_file_gives_their_images(name, tiny_source, tmp_path):
    family, folder = tiny_source(name)
    teacher = find(TEACHERS, family).load(str(folder), CPU)
    teacher.enable_lora(2)
    distiller = SCM(teacher, 2.0, SCMOptions(adaptation_steps=1, tangent_warmup=1))
    step(distiller, "student", teacher)
    student, times = distiller.student, [distiller.student.path.t_max, 0.7]
    assert teacher.save_lora(student, times, tmp_path)
    pipe = type(teacher.stock).from_pretrained(folder, safety_checker=None)
    pipe.scheduler = teacher.scheduler(student, times)[0]
    pipe.load_lora_weights(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    calls = [{"num_steps": n, "call": teacher.lora_call(n, times[:n])} for n in (1, 2)]
    assert max(differences(pipe, teacher, student, times, calls, PROMPTS).values()) < 1e-3


@every_family
@pytest.mark.slow
def test_the_meta_device_plans_and_checks_it(name, tiny_source, load):
    family, folder = tiny_source(name)
    kind = find(TEACHERS, family)
    teacher = build_on_meta(kind, str(folder), torch.float32)
    assert {key: value.shape for key, value in teacher.meta_condition().items()} == {
        key: value.shape for key, value in load(name).condition([""]).items()
    }
    assert check_files(str(folder), kind).source_shape == (2 + len(kind.source), 16, 16)


def test_a_text_pipeline_with_an_inpainting_network_is_refused(tiny_source):
    tokenizer = DiffusionPipeline.from_pretrained(tiny_source("inpainting")[1]).tokenizer
    pipe = StableDiffusionPipeline(
        autoencoder(),
        clip(tokenizer),
        tokenizer,
        unet(in_channels=9, cross_attention_dim=WIDTH),
        betas(DDIMScheduler),
        None,
        None,
        requires_safety_checker=False,
    )
    with pytest.raises(
        ValueError, match=r"in_channels of the unet must be 4 .* got 9; a StableDiffusionPipeline passes no mask"
    ):
        find(TEACHERS, "stable_diffusion").wrap(pipe)


def test_an_inpainting_pipeline_with_a_text_network_is_refused(tiny_source):
    pipe = DiffusionPipeline.from_pretrained(tiny_source("inpainting")[1])
    pipe.unet = unet(cross_attention_dim=WIDTH)
    with pytest.raises(ValueError, match=r"in_channels of the unet must be 9 for the 4 latent channels .* 5 of a"):
        find(TEACHERS, "inpainting").wrap(pipe)
