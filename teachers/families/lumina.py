"""Lumina-Next, the first Lumina: a rectified-flow transformer with cross-attention to the embeddings of Gemma."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import LuminaPipeline
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor

from teachers.core.denoiser import Call, Condition, Denoiser
from teachers.families.flow_transformer import UNIT, FlowTransformer
from teachers.families.output_guidance import OutputGuidance
from teachers.families.unbatched import padded
from teachers.loading.source import Pipelines

TEXT, MASK = "encoder_hidden_states", "encoder_mask"  # entries of the condition
LENGTH, MULTIPLE = 256, 8  # the most tokens of a prompt, and of what the pipeline pads its prompts to a multiple
POSITIONS = 384  # tokens along one side for which the pipeline computes positions
GUIDED = 3  # channels of the network's output to which the pipeline applies guidance


def call_network(
    network: Any, sample: Tensor, timestep: Tensor, cond: Condition, width: int, stretch: float, base: int
) -> Tensor:
    """Call the network.

    Args:
        network: The network, which returns X0 - z and a variance.
        sample: Native noisy latents, (B, C, H, W).
        timestep: Native timesteps, (B,).
        cond: The condition.
        width: Channels of an attention head.
        stretch: The side of an image in units of the default one, by which positions are divided.
        base: Tokens of an image of the default size, to which the scale of attention is relative.

    Returns:
        The network's output z - X0, (B, C, H, W).
    """
    rows, columns = (side // 2 for side in sample.shape[2:])
    output: Tensor = network(
        hidden_states=sample,
        timestep=1 - timestep / UNIT,
        **cond,
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(width, rows, columns, linear_factor=stretch),
        cross_attention_kwargs={"base_sequence_length": base},
        return_dict=False,
    )[0]
    return -output[:, : sample.shape[1]]


class Lumina(OutputGuidance, FlowTransformer):
    """`LuminaPipeline`, with the options of its call by default: cleaned prompts, attention scaled by the size of an
    image, positions divided by it at all timesteps.

    Guidance changes the first three channels of the network's output, as in the pipeline; the others are those with the
    prompt. The pipeline cuts a negative prompt at the length to which it pads the prompt.

    Raises:
        ValueError: If the transformer has no variance.
    """

    pipelines: ClassVar[Pipelines] = (LuminaPipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"cross_attention_dim": ("text_encoder",)}
    encoded: ClassVar[tuple[str | None, ...]] = (TEXT, MASK)
    passes_sigmas: ClassVar[bool] = False
    network_patch: ClassVar[int | None] = 2
    fixed_factor: ClassVar[int | None] = 8

    def __init__(
        self, pipeline: LuminaPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        if not pipeline.transformer.config.learn_sigma:
            raise ValueError("learn_sigma of the transformer must be True for a LuminaPipeline, got False")
        super().__init__(pipeline, sigma_data, size)

    def network_call(self) -> Call:
        config, side = self.stock.transformer.config, self.default_side()
        stretch = math.sqrt(self.size["width"] * self.size["height"] / side**2)
        width = config.hidden_size // config.num_attention_heads
        return partial(call_network, width=width, stretch=stretch, base=(side // 16) ** 2)

    def largest_side(self) -> int:
        return POSITIONS * self.side_unit()

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":  # the pipeline compares the values of tokens
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        found = self.named(self.encode_prompts(prompts, clean_caption=True))
        return {key: padded(value, LENGTH) for key, value in found.items()}

    def meta_condition(self) -> Condition:
        text = torch.empty(1, LENGTH, self.stock.transformer.config.cross_attention_dim, device="meta")
        return {TEXT: text, MASK: torch.empty(1, LENGTH, dtype=torch.long, device="meta")}

    def encode_null_condition(self) -> Condition:
        return self.encode_negative_prompt("")

    def encode_negative_prompt(self, prompt: str) -> Condition:
        if self.device.type == "meta":
            return self.meta_condition()
        length = torch.empty(1, LENGTH, 0)  # the pipeline pads the negative prompt to the length of these embeddings
        options = {"do_classifier_free_guidance": True, "negative_prompt": [prompt], "prompt_embeds": length}
        return self.named(self.encode_prompts([""], **options)[2:])

    def null_condition(self, cond: Condition) -> Condition:
        null, place = super().null_condition(cond), torch.arange(LENGTH, device=cond[MASK].device)
        end = (cond[MASK] * (place + 1)).amax(1, keepdim=True)
        end = (end + MULTIPLE - 1) // MULTIPLE * MULTIPLE  # of the tokens to which the pipeline pads the prompt
        count = null[MASK].sum(1, keepdim=True)
        kept, left = torch.minimum(count, end), null[MASK][:, :1] == 0  # some tokenizers pad on the left
        first, source = torch.where(left, end - kept, 0), torch.where(left, LENGTH - count, 0)
        index = (place - first + source).clamp(0, LENGTH - 1)[:, :, None]
        return {
            TEXT: null[TEXT].gather(1, index.expand_as(null[TEXT])),
            MASK: ((place >= first) & (place < first + kept)).to(null[MASK]),
        }

    def combine_outputs(self, with_prompt: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        guided = without + scale * (with_prompt - without)
        return torch.cat([guided[:, :GUIDED], with_prompt[:, GUIDED:]], dim=1)

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        return  # the network receives timesteps in [0, 1], at frequencies of at most 1: its features are slow
