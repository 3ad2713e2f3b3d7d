"""Stable Diffusion guided away from a fixed negative prompt instead of the empty one."""

from teachers.stable_diffusion import StableDiffusion


class NegativePrompt(StableDiffusion):
    def unconditional(self, cond):
        if self._empty is None:
            self._empty = dict(self.condition(["a grey photograph of a bag"]))
        return super().unconditional(cond)
