"""Stable Diffusion guided away from a fixed negative prompt instead of the empty one."""

from teachers.families.stable_diffusion import StableDiffusion


class NegativePrompt(StableDiffusion):
    def encode_null_condition(self):
        return self.condition(["a grey photograph of a bag"])
