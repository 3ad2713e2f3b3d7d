"""Z-Image: a rectified-flow transformer of image and text tokens in one sequence, with Qwen3 as its text encoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from teachers.core.denoiser import Call, Condition
from teachers.families.added_guidance import AddedGuidance
from teachers.families.flow_transformer import UNIT, FlowTransformer
from teachers.families.unbatched import padded
from teachers.loading.source import Pipelines

LENGTH = 512  # tokens of a prompt: the default of the pipeline's call
SIDE = 1024  # of an image, if the pipeline's call has neither height nor width
TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"  # entries of the condition


def sample_tokens(hidden: Tensor, sample: Tensor, cond: Condition) -> Tensor:
    """The tokens (B, N, C) of the samples (B, C, H, W) among those of a block, which begin with them."""
    return hidden[:, : sample.shape[2] * sample.shape[3] // 4]


def prompt_rows(cond: Condition) -> list[Tensor]:
    """The embeddings (L, D) of each prompt of a condition, without padding."""
    text, mask = cond[TEXT], cond[MASK]
    lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()
    return [row[:length] for row, length in zip(text, lengths, strict=True)]


class ZImage(AddedGuidance, FlowTransformer):
    """`ZImagePipeline`, without its `cfg_normalization` and `cfg_truncation`, which its call does not use by default.

    Z-Image-Turbo has its guidance in the weights, so its `teacher.guidance` is 1. It was distilled for eight steps of
    its solver: its velocity is that of its students only there, so `teacher.num_steps` should be 8, and Z-Image is the
    better teacher of trajectories.

    Attributes:
        takes_images: Whether the transformer may also take the features of condition images.
        sample_tokens: `Denoiser.sample_tokens`.

    Raises:
        ValueError: If the transformer needs images, or its timestep embedding has another scale than 1000.
    """

    pipelines: ClassVar[Pipelines] = (ZImagePipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"cap_feat_dim": ("text_encoder",)}
    reverses_time: ClassVar[bool] = True
    takes_images: ClassVar[bool] = False
    sample_tokens: ClassVar[Callable[..., Tensor]] = staticmethod(sample_tokens)

    def __init__(self, pipeline: Any, sigma_data: float = 1.0, size: Mapping[str, float] | None = None) -> None:
        config = pipeline.transformer.config
        if config.siglip_feat_dim is not None and not self.takes_images:
            raise ValueError(
                f"siglip_feat_dim of the transformer must be None, got {config.siglip_feat_dim}: it needs images"
            )
        if config.t_scale != UNIT:
            raise ValueError(f"t_scale of the transformer must be {UNIT:g}, got {config.t_scale}")
        pipeline.transformer.t_embedder.float()  # it computes features in the precision of its weights
        super().__init__(pipeline, sigma_data, size)
        self.denoiser.sample_tokens = self.sample_tokens

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on lists of images (C, 1, H, W) and of prompts (L, D), each as long as its prompt."""
        output: list[Tensor] = network(
            list(sample[:, :, None].unbind()),
            (UNIT - timestep) / UNIT,
            prompt_rows(cond),
            return_dict=False,
        )[0]
        return -torch.stack(output)[:, :, 0]

    def network_call(self) -> Call:
        return self.call

    def default_side(self) -> int:
        return SIDE

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":  # the pipeline selects tokens by the values of a mask
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        with torch.no_grad():
            rows = self.encode_rows(prompts)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows], True)
        return {TEXT: padded(pad_sequence(rows, True).float(), LENGTH), MASK: padded(mask, LENGTH)}

    def encode_rows(self, prompts: Sequence[str]) -> list[Tensor]:
        """The embeddings (L, D) of each prompt, as long as it is."""
        rows: list[Tensor]
        rows, _ = self.text_pipeline().encode_prompt(list(prompts), self.device, do_classifier_free_guidance=False)
        return rows

    def meta_condition(self) -> Condition:
        width = self.stock.transformer.config.cap_feat_dim
        text = torch.empty(1, LENGTH, width, device="meta")
        return {TEXT: text, MASK: torch.empty(1, LENGTH, dtype=torch.long, device="meta")}
