"""Z-Image Omni without condition images: the network of Z-Image with its prompts before its samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImageOmniPipeline
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.flow_transformer import UNIT
from teachers.families.z_image import MASK, ZImage, prompt_rows
from teachers.loading.source import AUTOENCODERS, Pipelines


def sample_tokens(hidden: Tensor, sample: Tensor, cond: Condition) -> Tensor:
    """The tokens (B, N, C) of the samples (B, C, H, W) among those of a block, after those of each row's prompt."""
    text = (cond[MASK].sum(1) + SEQ_MULTI_OF - 1) // SEQ_MULTI_OF * SEQ_MULTI_OF
    places = text[:, None] + torch.arange(sample.shape[2] * sample.shape[3] // 4, device=text.device)
    return hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))


class ZImageOmni(ZImage):
    """`ZImageOmniPipeline` without condition images. Its exports still take them, although students never saw any."""

    pipelines: ClassVar[Pipelines] = (ZImageOmniPipeline,)
    takes_images: ClassVar[bool] = True
    sample_tokens: ClassVar[Callable[..., Tensor]] = staticmethod(sample_tokens)
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "condition": ("text_encoder", "tokenizer"),  # prompts do not depend on the encoder of condition images
        "encode": AUTOENCODERS,
    }

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on lists of the images and the texts of each sample, of which there is one each."""
        output: list[Tensor] = network(
            x=[[row] for row in sample[:, :, None].unbind()],
            t=(UNIT - timestep) / UNIT,
            cap_feats=[[row] for row in prompt_rows(cond)],
            siglip_feats=[None] * len(sample),
            image_noise_mask=[[1]] * len(sample),
            return_dict=False,
        )[0]
        return -torch.stack(output)[:, :, 0]

    def encode_rows(self, prompts: Sequence[str]) -> list[Tensor]:
        texts: Any = super().encode_rows(prompts)  # of each prompt, the list of texts between its images
        return [text for (text,) in texts]
