"""Kandinsky 3: a UNet with a T5 text encoder, in the latents of a VQ autoencoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import Kandinsky3Pipeline
from diffusers.models.unets.unet_kandinsky3 import Kandinsky3AttentionPooling
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.added_guidance import AddedGuidance
from teachers.families.sized_image import SizedImage
from teachers.loading.source import Pipelines

TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"  # entries of the condition
ABSENT = -1  # in the mask: tokens after the length at which the pipeline cuts the embeddings of a prompt
BIAS = -10000.0  # which the network adds to scores of tokens whose mask is 0; twice as much where it is -1
SIDE = 1024  # of an image, the default of the pipeline's call
UNIT = 64  # pixels to a multiple of which the pipeline rounds the sides of an image up
CHANNELS = 4  # of latents in the pipeline, whatever its networks take
LEAST = 2.0  # teacher.guidance must be above it: the pipeline's scale is one less, and it applies none up to 1


class PromptPooling(Kandinsky3AttentionPooling):  # type: ignore[misc]
    """The network's pooling of a prompt, whose mean leaves out absent tokens. With none it is the network's own."""

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """The embedding of time (B, D) plus that of tokens (B, L, C), whose biases (B, 1, L) are those of the mask."""
        kept = (context_mask > 1.5 * BIAS).transpose(1, 2).to(context)
        mean = (context * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
        pooled: Tensor = self.attention(mean, context, context_mask.to(context))
        return x + pooled.squeeze(1)


class Kandinsky3(AddedGuidance, SizedImage):
    """`Kandinsky3Pipeline`. Its guidance scale is one less than `teacher.guidance`.

    The pipeline cuts the embeddings of a batch one token after its longest prompt, and the network's output depends on
    that length. Here each prompt has its own length, whatever the batch. Guidance leaves out the prompt with zeros of
    that length, all of which are masked; a negative prompt is cut at it.

    Raises:
        ValueError: If the latents or the compression of the networks are not those that the pipeline assumes.
    """

    pipelines: ClassVar[Pipelines] = (Kandinsky3Pipeline,)
    network: ClassVar[str] = "unet"
    feature_layer: ClassVar[str | None] = "up_blocks.0"
    output_type: ClassVar[str] = "np"  # with "pt" the pipeline returns images in [-1, 1]
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"encoder_hid_dim": ("text_encoder",)}
    autoencoder: ClassVar[str] = "movq"
    decode_options: ClassVar[Mapping[str, Any]] = {"force_not_quantize": True}
    statistics: ClassVar[tuple[str, ...]] = ()
    passes_sigmas: ClassVar[bool] = False
    takes_flow: ClassVar[bool] = False
    takes_variance_preserving: ClassVar[bool] = True
    refuses_steps: ClassVar[bool] = True
    pads_prompts: ClassVar[bool] = True
    patch: ClassVar[int] = 1
    fixed_factor: ClassVar[int | None] = 8

    def __init__(
        self, pipeline: Kandinsky3Pipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(pipeline, sigma_data, size)
        if self.shape[0] != CHANNELS:
            raise ValueError(
                f"in_channels of the unet of a Kandinsky3Pipeline must be {CHANNELS}, got {self.shape[0]}: the "
                "pipeline samples no others"
            )
        pipeline.unet.add_time_condition.__class__ = PromptPooling

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on the tokens of the longest prompt."""
        mask = cond[MASK]
        length = mask.shape[1] if mask.is_meta else int((mask != ABSENT).sum(1).max())
        cut = {TEXT: cond[TEXT][:, :length], MASK: mask[:, :length]}
        output: Tensor = network(sample, timestep, **cut, return_dict=False)[0]
        return output

    @classmethod
    def check_guidance(cls, guidance: float) -> None:
        if guidance != 1 and guidance <= LEAST:
            raise ValueError(
                f"teacher.guidance must be 1 or above {LEAST:g} for a teacher of the family kandinsky3, got "
                f"{guidance:g}: its pipeline's scale is one less, and it applies no guidance at scales up to 1"
            )

    def default_side(self) -> int:
        return SIDE

    def side_unit(self) -> int:
        return UNIT

    def latent_channels(self) -> int:
        return int(self.stock_autoencoder.config.vq_embed_dim or super().latent_channels())

    def condition(self, prompts: Sequence[str]) -> Condition:
        text, mask = self._encode(prompts)
        place = torch.arange(mask.shape[1], device=mask.device)
        return {TEXT: text, MASK: torch.where(place <= mask.sum(1, keepdim=True), mask, ABSENT)}

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L, C), zero where their mask (B, L) is, neither of which is cut."""
        text, _, mask, _ = self.text_pipeline().encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=self.device
        )
        return text.float(), mask

    def encode_null_condition(self) -> Condition:
        return {key: torch.zeros_like(value) for key, value in self.encode_negative_prompt("").items()}

    def encode_negative_prompt(self, prompt: str) -> Condition:
        text, mask = self._encode([prompt])
        return {TEXT: text, MASK: mask}

    def null_condition(self, cond: Condition) -> Condition:
        null = super().null_condition(cond)
        return {**null, MASK: torch.where(cond[MASK] == ABSENT, ABSENT, null[MASK])}
