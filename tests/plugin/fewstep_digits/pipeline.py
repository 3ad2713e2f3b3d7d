"""The pipeline of the digits: its `__call__` has other argument names than diffusers' pipelines."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fewstep_digits.network import DigitsTransformer


class DigitsPipeline(DiffusionPipeline):
    """Draws digits with classifier-free guidance."""

    def __init__(self, vit: DigitsTransformer, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(vit=vit, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        digits: Sequence[int],
        steps: int = 50,
        scale: float = 1.0,
        sigmas: Sequence[float] | None = None,
        rng: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
    ) -> ImagePipelineOutput:
        """Images (B, 8, 8, 1) in [0, 1] as an array, one for each of `digits`."""
        config, null = self.vit.config, self.vit.config.num_classes
        shape = (len(digits), config.in_channels, config.sample_size, config.sample_size)
        x = randn_tensor(shape, rng, self.device, self.vit.dtype) if noise is None else noise
        digit = torch.tensor(digits, device=self.device)
        self.scheduler.set_timesteps(None if sigmas else steps, sigmas=sigmas, device=self.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            flow = self.vit(x, t.expand(len(x)), digit)
            if scale != 1.0:
                without = self.vit(x, t.expand(len(x)), torch.full_like(digit, null))
                flow = without + scale * (flow - without)
            x = self.scheduler.step(flow, t, x, generator=rng, return_dict=False)[0]
        return ImagePipelineOutput(images=(x / 2 + 0.5).clamp(0, 1).float().permute(0, 2, 3, 1).cpu().numpy())

    def get_label_ids(self, labels: list[str]) -> list[int]:
        """The digits of names such as "seven"."""
        from fewstep_digits import CLASSES

        return [CLASSES.index(label) for label in labels]
