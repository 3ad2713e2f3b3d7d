"""Generation with any pipeline: noise per sample, counted evaluations, the solver for few steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from eval.pipelines.generate import arguments
from eval.pipelines.loading import load_pipeline
from eval.pipelines.networks import count_evaluations
from eval.pipelines.signatures import check_call, pipeline_class
from eval.pipelines.solvers import use_modern_solver
from teachers.media import ANY_IMAGE
from tests.teachers.tiny_pipelines import edm

CPU = torch.device("cpu")
PROMPTS = ["a bag", "a coat", "a dress"]


@pytest.fixture(scope="module")
def text(text_pipeline):
    return load_pipeline(text_pipeline, CPU, torch.float32)


@pytest.fixture(scope="module")
def unconditional(unconditional_pipeline):
    return load_pipeline(unconditional_pipeline, CPU, torch.float32)


def generate(pipe, call, prompts, indices, **more):
    return ANY_IMAGE.received(pipe(**arguments(pipe, call, prompts, indices, **more)))


@pytest.mark.slow
def test_guided_evaluations_count_twice(text):
    for guidance, factor in ((2.0, 2), (1.0, 1)):
        with count_evaluations(text) as count:
            generate(text, {"num_inference_steps": 3, "guidance_scale": guidance}, PROMPTS, [0, 1, 2])
        assert count.evaluations == 3 * 3 * factor
    text(["a bag"], num_inference_steps=1)
    assert count.evaluations == 9, "nothing is counted after the block"


@pytest.mark.slow
def test_unconditional_pipelines_generate_and_are_counted(unconditional):
    with count_evaluations(unconditional) as count:
        images = generate(unconditional, {"num_inference_steps": 4}, None, [0, 1])
    assert count.evaluations == 8
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("kind", ["text", "unconditional"])
@pytest.mark.first_is_quick
def test_samples_do_not_depend_on_their_batch(kind, request):
    pipe = request.getfixturevalue(kind)
    prompts = PROMPTS if kind == "text" else None
    call = {"num_inference_steps": 2}
    together = generate(pipe, call, prompts, [0, 1, 2])
    alone = generate(pipe, call, prompts and prompts[2:], [2])
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_seeds_and_streams_give_different_noise(text):
    latents = [
        arguments(text, {}, PROMPTS[:1], [0], seed=seed, stream=stream)["latents"]
        for seed, stream in ((0, "samples"), (0, "samples"), (1, "samples"), (0, "reference"))
    ]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])
    assert not torch.equal(latents[0], latents[3])
    assert latents[0].shape == (1, 4, 8, 8)


def test_latents_have_the_calls_height_and_width(text):
    latents = arguments(text, {"height": 64, "width": 32}, PROMPTS[:1], [0])["latents"]
    assert latents.shape == (1, 4, 16, 8)


def test_negative_prompts_apply_to_every_sample(text):
    ready = arguments(text, {"negative_prompt": "a boot", "num_inference_steps": 1}, PROMPTS, [0, 1, 2])
    assert ready["negative_prompt"] == ["a boot"] * 3
    assert ANY_IMAGE.received(text(**ready)).shape == (3, 3, 32, 32)


@pytest.mark.slow
def test_one_step_of_the_solver_is_the_x0_prediction(text_pipeline):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    alpha = pipe.scheduler.alphas_cumprod[999]
    assert use_modern_solver(pipe) == "DPM-Solver++"
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    call = {"num_inference_steps": 1, "guidance_scale": 1.0}
    ready = arguments(pipe, call, PROMPTS, [0, 1, 2])
    made = pipe(**ready | {"output_type": "latent"}).images
    cond, _ = pipe.encode_prompt(PROMPTS, CPU, 1, False)
    with torch.no_grad():
        noise = pipe.unet(ready["latents"], 999, encoder_hidden_states=cond).sample
    expected = (ready["latents"] - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("old", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.slow
def test_the_solver_keeps_betas_and_prediction_type(text_pipeline, old):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    pipe.scheduler = old(prediction_type="v_prediction")  # betas are the defaults of its class
    betas = pipe.scheduler.betas.clone()
    use_modern_solver(pipe)
    torch.testing.assert_close(pipe.scheduler.betas, betas)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    for steps in (1, 2, 4, 8):
        pipe.scheduler.set_timesteps(steps)
        assert len(pipe.scheduler.timesteps) == steps
        assert pipe.scheduler.timesteps[0] == 999


LIMITS = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5, "clip_sample": False}


@pytest.mark.parametrize(
    ("scheduler", "limits"),
    [
        (DDIMScheduler(clip_sample=True, clip_sample_range=2.0), (True, 0.995, 2.0)),
        (DDIMScheduler(**LIMITS), (True, 0.9, 1.5)),
        (EulerDiscreteScheduler.from_config(DDIMScheduler(clip_sample=True).config), (False, 0.995, 1.0)),
    ],
    ids=["clipped", "thresholded", "clipped by a former class only"],
)
@pytest.mark.slow
def test_the_solver_limits_x0_as_the_old_scheduler_does(text_pipeline, scheduler, limits):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    pipe.scheduler = scheduler
    use_modern_solver(pipe)
    new = pipe.scheduler.config
    assert (new.thresholding, new.dynamic_thresholding_ratio, new.sample_max_value) == limits


@pytest.mark.slow
def test_the_solver_takes_the_older_name_of_sample_prediction(text_pipeline):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    pipe.scheduler = EulerDiscreteScheduler(prediction_type="original_sample")
    use_modern_solver(pipe)
    assert pipe.scheduler.config.prediction_type == "sample"


def test_an_edm_pipeline_has_its_classes_and_samples_with_its_preconditioning():
    """One step of an exponential schedule would begin at sigma_min."""
    pipe = edm(None, EDMEulerScheduler(sigma_data=0.7, sigma_schedule="exponential"), num_class_embeds=10)
    pipe.set_progress_bar_config(disable=True)
    ready = arguments(pipe, {"num_inference_steps": 3}, ["7", "0"], [0, 1])
    assert ready["class_labels"] == [7, 0] and ready["batch_size"] == 2
    assert ANY_IMAGE.received(pipe(**ready)).shape == (2, 3, 16, 16)
    assert use_modern_solver(pipe) == "DPM-Solver++"
    for steps in (1, 2, 4):
        pipe.scheduler.set_timesteps(steps)
        assert pipe.scheduler.sigmas[0] == pytest.approx(80, rel=1e-5) and pipe.scheduler.config.sigma_data == 0.7
    with pytest.raises(ValueError, match="must be a number from 0 to 9"):
        arguments(pipe, {}, ["10"], [0])


@pytest.mark.slow
def test_ddim_pipeline_keeps_its_scheduler_to_which_it_passes_eta(unconditional_pipeline, tmp_path):
    stock = DDPMPipeline.from_pretrained(unconditional_pipeline)
    DDIMPipeline(stock.unet, DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    pipe = load_pipeline(tmp_path / "ddim", CPU, torch.float32)
    assert use_modern_solver(pipe) is None
    assert generate(pipe, {"num_inference_steps": 2}, None, [0, 1]).isfinite().all()


@pytest.mark.slow
def test_zero_terminal_snr_stays_finite(text_pipeline):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    pipe.scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    use_modern_solver(pipe)
    assert generate(pipe, {"num_inference_steps": 1, "guidance_scale": 1.0}, PROMPTS, [0, 1, 2]).isfinite().all()


@pytest.mark.slow
def test_flow_schedulers_are_not_replaced(text_pipeline):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    pipe.scheduler = flow = FlowMatchEulerDiscreteScheduler()
    assert use_modern_solver(pipe) is None
    assert pipe.scheduler is flow


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler])
@pytest.mark.slow
def test_solvers_with_flow_sigmas_are_not_replaced(text_pipeline, kind):
    """Those of Sana and Wan: their betas are unused."""
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    pipe.scheduler = flow = kind(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    assert use_modern_solver(pipe) is None
    assert pipe.scheduler is flow and flow.config.use_flow_sigmas


@pytest.mark.parametrize("kind", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
@pytest.mark.slow
def test_tables_with_a_shifted_signal_to_noise_ratio_are_not_replaced(text_pipeline, kind):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    pipe.scheduler = shifted = kind(snr_shift_scale=3.0, prediction_type="v_prediction")
    assert use_modern_solver(pipe) is None
    assert pipe.scheduler is shifted


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_few_steps_of_a_flow_teacher_have_the_deviation_of_its_data(steps):
    """The published scheduler of Sana on an exact flow network, whose data is the number 2."""
    pipe = SimpleNamespace(
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", final_sigmas_type="zero"
        )
    )
    use_modern_solver(pipe)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step((x - 2) / sigma, t, x, return_dict=False)[0]
    assert (x - 2).abs().max() < 0.05


def test_grey_images_become_rgb():
    images = ANY_IMAGE.received(ImagePipelineOutput(images=np.full((2, 5, 4, 1), 1.5, dtype=np.float32)))
    assert images.shape == (2, 3, 5, 4)
    assert images.max() == 1


def test_calls_are_checked_before_weights_are_loaded(text_pipeline, unconditional_pipeline, tmp_path):
    text, free = pipeline_class(text_pipeline), pipeline_class(unconditional_pipeline)
    assert (text.__name__, free.__name__) == ("StableDiffusionPipeline", "DDPMPipeline")
    with pytest.raises(ValueError, match='no argument "guidance_scale"'):
        check_call(free, {"guidance_scale": 2.0}, prompted=False)
    with pytest.raises(ValueError, match="--prompts none"):
        check_call(free, {}, prompted=True)
    with pytest.raises(ValueError, match="with --prompts"):
        check_call(text, {}, prompted=False)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match="is not the index of a diffusers pipeline"):
        pipeline_class(tmp_path)
    with pytest.raises(ValueError, match="is not the index of a diffusers pipeline"):
        load_pipeline(tmp_path, CPU, torch.float32)
