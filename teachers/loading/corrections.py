"""Corrections of pipelines that diffusers 0.42 loads but cannot call with several prompts."""

from typing import Any

from diffusers import AutoencoderKLHunyuanVideo15


def correct_autoencoder(pipe: Any) -> None:
    """Make the autoencoder of HunyuanVideo 1.5 take one sample at a time: its attention mask does not fit a batch."""
    vae = pipe.components.get("vae")
    if isinstance(vae, AutoencoderKLHunyuanVideo15):
        vae.enable_slicing()
