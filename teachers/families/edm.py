"""EDM in pixel space: `ConsistencyModelPipeline` with a preconditioned `UNet2DModel`, with or without classes."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel

from teachers.core.denoiser import Condition
from teachers.families.edm_exports import EdmExports
from teachers.families.unconditional import Unconditional
from teachers.loading.location import config_source
from teachers.loading.source import Pipelines


class EdmUNet(EdmExports, Unconditional):
    """`ConsistencyModelPipeline` with one of EDM's schedulers (Karras et al. 2022, arXiv 2206.00364).

    It is the stock pipeline of a `UNet2DModel` that scales the network's input as the scheduler says and takes class
    labels. With classes, a prompt is the number of a class. There is no class for unguided samples, so there is no
    classifier-free guidance.

    Args:
        unet: The network; it is frozen.
        scheduler: An `EDMEulerScheduler` or `EDMDPMSolverMultistepScheduler`.
        sigma_data: Standard deviation of the pixels in [-1, 1], that of the scheduler.

    Raises:
        ValueError: If the scheduler is not one of EDM's, or the pipeline cannot sample the network.
    """

    pipelines: ClassVar[Pipelines] = (ConsistencyModelPipeline,)
    example_prompt: ClassVar[str] = "0"
    refuses_steps: ClassVar[bool] = False

    def __init__(self, unet: UNet2DModel, scheduler: Any, sigma_data: float = 0.5) -> None:
        super().__init__(unet, scheduler, sigma_data)
        channels = self.shape[0]
        if channels != 3 or unet.config.out_channels != 3 or not isinstance(unet.config.sample_size, int):
            raise ValueError(
                "the UNet2DModel of a ConsistencyModelPipeline must have square images of 3 channels, got in_channels "
                f"{channels}, out_channels {unet.config.out_channels}, sample_size {unet.config.sample_size}"
            )

    @staticmethod
    def check_classes(unet: UNet2DModel) -> None:
        if unet.config.class_embed_type:
            raise ValueError(
                "class_embed_type of the UNet2DModel must be null, with the number of classes as num_class_embeds, got "
                f"{unet.config.class_embed_type!r}"
            )

    @classmethod
    def takes_prompts(cls, path: str | None) -> bool:
        with suppress(ValueError, OSError):
            if path is not None:
                config = UNet2DModel.load_config(str(Path(config_source(cls.locate(path)))), subfolder="unet")
                return bool(config.get("num_class_embeds"))
        return True

    @property
    def prompted(self) -> bool:
        return bool(self.unet.config.num_class_embeds)

    @classmethod
    def check_guidance(cls, guidance: float) -> None:
        if guidance != 1:
            raise ValueError(
                f"teacher.guidance must be 1 for a teacher of the family edm, got {guidance:g}: a "
                "ConsistencyModelPipeline has no classifier-free guidance"
            )

    def condition(self, prompts: Sequence[str]) -> Condition:
        if not self.prompted:
            return {}
        return {"class_labels": torch.tensor([self.label(prompt) for prompt in prompts], device=self.unet.device)}

    def label(self, prompt: str) -> int:
        """The class number of a prompt.

        Raises:
            ValueError: If there is no such class.
        """
        classes, text = self.unet.config.num_class_embeds, prompt.strip()
        if text.isdecimal() and int(text) < classes:
            return int(text)
        raise ValueError(f"a prompt for this UNet2DModel must be a number from 0 to {classes - 1}, got {prompt!r}")

    def exported_class(self) -> type[Any]:
        return ConsistencyModelPipeline
