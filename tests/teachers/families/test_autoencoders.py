"""A pipeline's autoencoder has the class that the pipeline declares, or is a small replacement of it."""

import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
    DiffusionPipeline,
    StableDiffusionPipeline,
    VQModel,
)

from teachers.loading.registry import load_teacher

OTHERS = {
    "VQModel": lambda: VQModel(latent_channels=4),
    "AsymmetricAutoencoderKL": AsymmetricAutoencoderKL,
    "AutoencoderKLTemporalDecoder": AutoencoderKLTemporalDecoder,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.slow
def test_autoencoders_that_a_pipeline_does_not_declare_are_refused(name, text_pipeline):
    pipeline = StableDiffusionPipeline.from_pretrained(text_pipeline, safety_checker=None)
    pipeline.register_modules(vae=OTHERS[name]())
    message = f"the vae of a StableDiffusionPipeline must be an AutoencoderKL or AutoencoderTiny, got {name}"
    with pytest.raises(ValueError, match=message):
        load_teacher(pipeline)


@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "Flux.1 schnell"])
@pytest.mark.slow
def test_a_tiny_autoencoder_replaces_a_large_one(name, tiny):
    pipeline = DiffusionPipeline.from_pretrained(tiny(name)[1])
    channels, blocks = pipeline.vae.config.latent_channels, len(pipeline.vae.config.block_out_channels)
    widths, counts = (8,) * blocks, (1,) * blocks
    tiny = AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=counts,
        num_decoder_blocks=counts,
    )
    pipeline.register_modules(vae=tiny.eval())
    teacher = load_teacher(pipeline)
    images = torch.rand(2, 3, *teacher.image_size) * 2 - 1
    latents = teacher.encode(images)
    assert latents.shape == (2, *teacher.shape) and teacher.decode(latents).shape == images.shape
