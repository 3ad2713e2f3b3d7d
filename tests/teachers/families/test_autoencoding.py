"""Entries of an autoencoder's config by which pipelines scale latents: those they read, and those they ignore."""

import pytest
import torch
from diffusers import DiffusionPipeline

from distill.config.registry import TEACHERS, find
from tests.teachers.families.stock import NAMES, PIXELS, PROMPTS, change_ignored_entries, unpacked

IMAGES = [name for name in NAMES if name not in ("DiT", *PIXELS)]  # with latents as an output


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.sampled
@pytest.mark.slow
def test_ignored_entries_have_no_effect_on_images(name, tiny):
    family, folder = tiny(name)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    teacher = find(TEACHERS, family).wrap(pipe)
    change_ignored_entries(teacher, pipe.vae)
    images, latents = (
        pipe(PROMPTS, **teacher.usual_call(2, 1.0), output_type=kind, generator=torch.Generator().manual_seed(0)).images
        for kind in ("pt", "latent")
    )
    with torch.no_grad():
        ours = teacher.decode(unpacked(latents, teacher.shape) / teacher.denoiser.path.sigma_data)
    assert (images - (ours / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["Stable Diffusion 3.5", "Stable Diffusion XL"])
@pytest.mark.parametrize("value", [None, "much", float("nan"), [0.1, 0.2]])
@pytest.mark.slow
def test_entries_that_the_pipeline_reads_are_checked(name, value, tiny):
    family, folder = tiny(name)
    pipe = DiffusionPipeline.from_pretrained(folder)
    entry = "shift_factor" if name == "Stable Diffusion 3.5" else "scaling_factor"
    pipe.vae.register_to_config(**{entry: value})
    with pytest.raises(ValueError, match=rf"{entry} of the vae of a {type(pipe).__name__} must be a number, got"):
        find(TEACHERS, family).wrap(pipe)
