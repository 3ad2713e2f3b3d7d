"""sCM with guidance: several scales as an input of the student, and invalid combinations."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from distill.data.batch import Batch
from distill.data.batch_random import BatchRandom
from distill.methods.scm import SCM, SCMOptions
from teachers.core.sampling import sample
from teachers.families.stable_diffusion import StableDiffusion
from teachers.loading.saving import save_pipeline

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "guidance", "message"),
    [
        ({"drift": "data"}, 2.0, "method.drift=data"),
        ({"guidances": (3.0, 5.0)}, 2.0, "must be within method.guidances"),
    ],
)
@pytest.mark.slow
def test_options_that_do_not_fit_the_guidance_are_rejected(text_pipeline, options, guidance, message):
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    with pytest.raises(ValueError, match=message):
        SCM(teacher, guidance, SCMOptions(**options))


@pytest.mark.slow
def test_sampled_guidance_scales_reach_teacher_and_student(text_pipeline):
    """Each sample is distilled at its own scale, and the scale is an input of the student."""
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    scm = SCM(teacher, 2.0, SCMOptions(guidances=(1.5, 2.0, 4.0), adaptation_steps=2))
    batch = Batch(
        teacher.condition(["a coat"] * 16), BatchRandom(("g",), 0, 16, 16, CPU), torch.randn(16, *teacher.shape)
    )
    scales, cond = scm.sample_guidance(batch)
    assert set(scales.tolist()) == {1.5, 2.0, 4.0}
    expected = teacher.stock.get_guidance_scale_embedding(scales - 1, cond["timestep_cond"].shape[1])
    assert torch.allclose(cond["timestep_cond"], expected, atol=1e-5)
    x, t = torch.randn(16, *teacher.shape), torch.full((16,), 0.9)
    together = teacher.velocity(x, t, batch.cond, scales)
    for scale in (1.5, 2.0, 4.0):
        rows = (scales == scale).nonzero()[:, 0]
        alone = teacher.velocity(x[rows], t[rows], {key: value[rows] for key, value in batch.cond.items()}, scale)
        assert torch.allclose(together[rows], alone, atol=1e-4)
    for step in (0, 5):
        loss, _ = scm("student", batch, step)
        loss.backward()
    assert scm.student.network.time_embedding.cond_proj.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_student_with_embedded_guidance_in_stock_diffusers(text_pipeline, tmp_path):
    """The exported pipeline gives the same samples as this project's sampler for every scale."""
    torch.manual_seed(0)
    teacher = StableDiffusion.load(str(text_pipeline), CPU)
    scm = SCM(teacher, 2.0, SCMOptions(guidances=(1.5, 4.0)))
    with torch.no_grad():
        scm.student.network.time_embedding.cond_proj.weight.normal_(std=0.3)
    times = scm.sampling_schedules()[0][:1]
    save_pipeline(teacher.pipeline(scm.student, times), tmp_path / "student")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *teacher.shape)
    images = {}
    for scale in (1.5, 4.0):
        prompts = ["a coat", "a bag"]
        images[scale] = stock(
            prompts, num_inference_steps=1, guidance_scale=scale, latents=noise, output_type="latent"
        ).images
        cond = {
            **teacher.condition(prompts),
            **teacher.guidance_condition(scm.student, torch.tensor([scale, scale])),
        }
        with torch.no_grad():
            ours = sample(scm.student, noise, times, cond, lambda: noise)
        assert torch.allclose(images[scale], ours, atol=1e-3 * ours.abs().max().item())
    assert not torch.allclose(images[1.5], images[4.0], atol=1e-2)
