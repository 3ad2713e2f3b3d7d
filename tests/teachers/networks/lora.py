"""Families, perturbed weights and inputs for the tests of networks with LoRA adapters."""

import torch

from teachers.core.denoiser import Denoiser

CLASSES = ["unconditional UNet", "DiT", "EDM, ImageNet-64"]
LORA = ["Stable Diffusion 1.5", "Stable Diffusion XL", "Stable Diffusion 3.5", "Flux.1 dev", "Sana"]
FAMILIES = [*LORA, "PixArt-Sigma 512", *CLASSES]


def perturb(denoiser: Denoiser, by: float = 0.05) -> Denoiser:
    """Change every trained weight of `denoiser` in place; returns it."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(by * parameter.std().nan_to_num(1).clamp(0.1) * torch.randn(parameter.shape, generator=rng))
    return denoiser


def inputs_of(teacher, count=2):
    """Noisy latents, angles and a condition."""
    rng = torch.Generator().manual_seed(2)
    prompts = ["1", "7"] if teacher.__class__.__name__ in ("DiT", "EdmUNet") else ["a coat", "a boot"]
    cond = teacher.condition(prompts[:count])
    low, high = teacher.denoiser.path.t_min + 0.1, teacher.denoiser.path.t_max - 0.1
    return torch.randn(count, *teacher.shape, generator=rng), torch.linspace(low, high, count), cond
