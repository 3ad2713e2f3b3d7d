"""Latent UNets whose sample_size is [height, width]."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from teachers.families.stable_diffusion import StableDiffusion


@pytest.mark.parametrize("size", [[8, 12], (12, 8), 8])
@pytest.mark.first_is_quick
def test_image_size_is_that_of_the_stock_pipeline(text_pipeline, size):
    pipeline = StableDiffusionPipeline.from_pretrained(text_pipeline)
    pipeline.unet.register_to_config(sample_size=size)
    pipeline = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)  # reads the size
    pipeline.set_progress_bar_config(disable=True)
    width, height = pipeline("a photo of a bag", num_inference_steps=1).images[0].size
    teacher = StableDiffusion.wrap(pipeline)
    assert teacher.image_size == (height, width)
    latents = teacher.encode(torch.zeros(1, 3, height, width))
    assert latents.shape == (1, *teacher.shape) and teacher.decode(latents).shape == (1, 3, height, width)
