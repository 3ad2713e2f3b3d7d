"""Stable Diffusion with a fixed negative prompt instead of the empty prompt in classifier-free guidance."""

from teachers.families.stable_diffusion import StableDiffusion


class NegativePrompt(StableDiffusion):
    def encode_null_condition(self):
        return self.condition(["a grey photograph of a bag"])
