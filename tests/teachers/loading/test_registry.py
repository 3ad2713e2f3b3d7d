"""Stable Diffusion and unconditional teachers against stock pipelines: condition, guidance, latents, exports."""

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionPipeline

from teachers.core.sampling import sample
from teachers.core.time_embedding import refit_time_embedding
from teachers.families.stable_diffusion import StableDiffusion
from teachers.families.unconditional import Unconditional
from teachers.loading.saving import save_pipeline
from tests.teachers.standalone import run_standalone

CPU = torch.device("cpu")
PROMPTS = ["a photo of a coat", "an ankle boot"]


@pytest.fixture(scope="module")
def teacher(text_pipeline):
    return StableDiffusion.load(str(text_pipeline), CPU)


@pytest.fixture(scope="module")
def v_pipeline(text_pipeline, tmp_path_factory):
    """The same weights as a v-prediction model with zero terminal SNR, as in some variants of Stable Diffusion 2."""
    folder = tmp_path_factory.mktemp("v")
    pipe = StableDiffusionPipeline.from_pretrained(text_pipeline, safety_checker=None)
    config = dict(pipe.scheduler.config) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    pipe.scheduler = type(pipe.scheduler).from_config(config)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.mark.slow
def test_condition_and_guidance_equal_those_of_the_pipeline(teacher, text_pipeline):
    """Compares with the inputs of the stock pipeline's UNet and of its scheduler."""
    pipe = StableDiffusionPipeline.from_pretrained(text_pipeline, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    inputs, guided = [], []
    pipe.unet.register_forward_hook(lambda m, args, kwargs, out: inputs.append((args, kwargs)), with_kwargs=True)
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda output, *args, **kwargs: (guided.append(output), step(output, *args, **kwargs))[1]
    latents = torch.randn(2, 4, 8, 8)
    pipe(PROMPTS, num_inference_steps=3, guidance_scale=3.0, latents=latents)
    (args, kwargs), epsilon = inputs[0], guided[0]
    cond = teacher.condition(PROMPTS)
    without, with_prompt = kwargs["encoder_hidden_states"].chunk(2)
    assert torch.allclose(cond["encoder_hidden_states"], with_prompt, atol=1e-6)
    assert torch.allclose(teacher.null_condition(cond)["encoder_hidden_states"], without, atol=1e-6)
    t = teacher.denoiser.path.angle(args[1].double().expand(2))
    velocity = teacher.velocity(latents, t.float(), cond, guidance=3.0)
    sin, cos = torch.sin(t).float().view(-1, 1, 1, 1), torch.cos(t).float().view(-1, 1, 1, 1)
    assert torch.allclose(sin * latents + cos * velocity, epsilon, atol=1e-4)


@pytest.mark.slow
def test_latents_are_encoded_and_decoded_as_in_the_pipeline(teacher):
    latents = torch.randn(2, 4, 8, 8)
    vae = teacher.stock.vae
    assert torch.allclose(teacher.decode(latents), vae.decode(latents / vae.config.scaling_factor).sample, atol=1e-5)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.allclose(teacher.encode(images), vae.encode(images).latent_dist.mean, atol=1e-5)


def test_untrained_student_equals_the_teacher(teacher):
    student = teacher.student()
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([0.4, 1.2]), teacher.condition(PROMPTS)
    assert torch.equal(student.velocity(x, t, cond), teacher.velocity(x, t, cond))
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in teacher.denoiser.parameters())


SAMPLE = """
import torch
from pathlib import Path
from diffusers import DiffusionPipeline
inputs, images = torch.load("in.pt", weights_only=True), {}
for folder in sorted(Path("pipelines").iterdir()):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for steps in (1, 2):
        rng = torch.Generator().manual_seed(7)
        images[f"{folder.name}/{steps}"] = pipe(
            inputs["prompts"], num_inference_steps=steps, latents=inputs["noise"], generator=rng, output_type="pt"
        ).images
torch.save(images, "out.pt")
"""
KINDS = ["epsilon", "v_prediction", "rescaled time", "rescaled time and max_angle"]


@pytest.fixture(scope="module")
def exports(text_pipeline, v_pipeline, tmp_path_factory):
    """Folder of exports of every kind, their teachers and students, the noise, and what stock diffusers samples."""
    work, pairs, noise = tmp_path_factory.mktemp("exports"), {}, torch.randn(2, 4, 8, 8)
    for kind in KINDS:
        teacher = StableDiffusion.load(str(v_pipeline if kind == "v_prediction" else text_pipeline), CPU)
        student = teacher.student()
        with torch.no_grad():
            for p in student.parameters():
                p.add_(0.02 * torch.randn_like(p))
        if kind.startswith("rescaled time"):
            refit_time_embedding(student, 8.0)
        if kind.endswith("max_angle"):
            student.max_angle = 1.2
        save_pipeline(teacher.pipeline(student, [teacher.denoiser.path.t_max, 0.83]), work / "pipelines" / kind)
        pairs[kind] = teacher, student
    torch.save({"prompts": PROMPTS, "noise": noise}, work / "in.pt")
    run_standalone(SAMPLE, folder=work)
    return work / "pipelines", pairs, noise, torch.load(work / "out.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_export_runs_in_a_process_without_this_project(kind, exports):
    """Stock diffusers gives the student's images to 1e-3 in one and two steps, and raises an error for 50 steps."""
    folder, pairs, noise, images = exports
    teacher, student = pairs[kind]
    cond, times = teacher.condition(PROMPTS), [teacher.denoiser.path.t_max, 0.83]
    for steps in (1, 2):
        rng = torch.Generator().manual_seed(7)
        with torch.no_grad():
            x0 = sample(student, noise, times[:steps], cond, lambda rng=rng: torch.randn(noise.shape, generator=rng))
            expected = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1)
        assert (images[f"{kind}/{steps}"] - expected).abs().max() < 1e-3
    with pytest.raises(ValueError, match="num_inference_steps"):
        DiffusionPipeline.from_pretrained(folder / kind)(PROMPTS)


@pytest.mark.slow
def test_unconditional_teacher_encodes_decodes_and_exports(unconditional_pipeline, tmp_path):
    """DDPMPipeline with sigma_data 0.5: the exported pipeline gives the student's images."""
    teacher = Unconditional.load(str(unconditional_pipeline), CPU, sigma_data=0.5)
    student = teacher.student()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.allclose(teacher.decode(teacher.encode(images)), images, atol=1e-6)
    refit_time_embedding(student, 8.0)
    student.max_angle = 1.2
    times = [teacher.denoiser.path.t_max, 0.7]
    save_pipeline(teacher.pipeline(student, times), tmp_path / "pipeline")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, LCMScheduler)
    for steps in (1, 2):
        images = pipe(
            batch_size=2, num_inference_steps=steps, generator=torch.Generator().manual_seed(3), output_type="np"
        ).images
        rng = torch.Generator().manual_seed(3)
        noise = torch.randn(2, 3, 16, 16, generator=rng)
        with torch.no_grad():
            x0 = sample(student, noise, times[:steps], {}, lambda rng=rng: torch.randn(2, 3, 16, 16, generator=rng))
        expected = (teacher.decode(x0) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        assert (torch.from_numpy(images) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c", "word"])
def test_missing_pipeline_raises_an_error(path):
    with pytest.raises(ValueError, match="there is no pipeline folder"):
        StableDiffusion.locate(path)


def test_folder_without_index_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"without model_index\.json"):
        StableDiffusion.locate(str(tmp_path))
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"; did you mean \S+pipeline\?$"):
        StableDiffusion.locate(str(tmp_path))


@pytest.mark.parametrize(("path", "message"), [("owner/x.safetensors", "there is no file"), (" ", "got an empty one")])
def test_names_that_no_hub_has_are_not_looked_for_there(path, message):
    with pytest.raises(ValueError, match=message):
        StableDiffusion.locate(path)


def test_invalid_times_raise_an_error(teacher):
    with pytest.raises(ValueError, match="must be decreasing"):
        teacher.pipeline(teacher.student(), [0.5, 0.9])
    with pytest.raises(ValueError, match="must be in"):
        teacher.pipeline(teacher.student(), [1.57])
