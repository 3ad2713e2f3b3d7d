"""Builders of tiny random pipelines of families with a source image."""

from collections.abc import Callable

from diffusers import (
    DDIMScheduler,
    FluxKontextPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
)

from tests.teachers.tiny_pipelines import WIDTH, autoencoder, betas, clip, flux, unet


def source_unet(tokenizer, kind, channels, **schedule):
    return kind(
        vae=autoencoder(scaling_factor=0.18),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(in_channels=channels, cross_attention_dim=WIDTH),
        scheduler=betas(DDIMScheduler, clip_sample=False, set_alpha_to_one=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# As `tiny_pipelines.BUILDERS`.
SOURCE_BUILDERS: dict[str, tuple[str, Callable]] = {
    "InstructPix2Pix": (
        "instruct_pix2pix",
        lambda tokenizer: source_unet(tokenizer, StableDiffusionInstructPix2PixPipeline, 8),
    ),
    "Flux.1 Kontext": (
        "flux_kontext",
        lambda tokenizer: FluxKontextPipeline(**flux(tokenizer, guidance_embeds=True).components),
    ),
    "inpainting": ("inpainting", lambda tokenizer: source_unet(tokenizer, StableDiffusionInpaintPipeline, 9)),
}
