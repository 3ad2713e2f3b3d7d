"""Builders of tiny random pipelines of families with a source image."""

from collections.abc import Callable

from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

from tests.teachers.tiny_pipelines import WIDTH, autoencoder, betas, clip, unet


def instruct_pix2pix(tokenizer, **schedule):
    return StableDiffusionInstructPix2PixPipeline(
        vae=autoencoder(scaling_factor=0.18),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(in_channels=8, cross_attention_dim=WIDTH),
        scheduler=betas(DDIMScheduler, clip_sample=False, set_alpha_to_one=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# As `tiny_pipelines.BUILDERS`.
SOURCE_BUILDERS: dict[str, tuple[str, Callable]] = {
    "InstructPix2Pix": ("instruct_pix2pix", instruct_pix2pix),
}
