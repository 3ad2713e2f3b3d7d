"""Qwen-Image: a rectified-flow transformer on packed latents, with Qwen2.5-VL as its text encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from teachers.core.denoiser import Condition
from teachers.families.clip_autoencoder import ClipAutoencoder
from teachers.families.output_guidance import TokenNormGuidance
from teachers.families.packing import pack, unpack
from teachers.families.unbatched import padded
from teachers.loading.source import Pipelines

LENGTH = 512  # tokens of a prompt: the default of the pipeline's call
TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
UNSUPPORTED = {"guidance_embeds": "the pipeline's network takes no scale", "use_additional_t_cond": "it needs an image"}


class QwenPipeline(ClipAutoencoder):
    """The common code of Qwen-Image and Qwen-Image 2.1: an autoencoder of clips, and guidance with a negative prompt.

    The pipelines apply guidance at `true_cfg_scale` only with a negative prompt, so exports do not.
    """

    call_names: ClassVar[Mapping[str, str]] = {"guidance_scale": "true_cfg_scale"}

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        call = super().calls(num_steps, times)
        return {self.call_names.get(name, name): value for name, value in call.items()}

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        call = super().usual_call(num_steps, guidance)
        return call | ({"negative_prompt": self.negative_prompt or ""} if guidance > 1 else {})


class QwenImage(TokenNormGuidance, QwenPipeline):
    """`QwenImagePipeline`. Guidance keeps the norm of each token of the network's output.

    Raises:
        ValueError: If the transformer needs inputs that the pipeline does not pass.
    """

    pipelines: ClassVar[Pipelines] = (QwenImagePipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"joint_attention_dim": ("text_encoder",)}
    fewest_steps: ClassVar[int] = 2  # one step divides by zero with shift_terminal

    def __init__(
        self, pipeline: QwenImagePipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        for key, reason in UNSUPPORTED.items():
            if pipeline.transformer.config[key]:
                raise ValueError(f"{key} of the transformer must be False, got True: {reason}")
        super().__init__(pipeline, sigma_data, size)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on tokens (B, H W / 4, 4 C) of one frame, and timesteps in [0, 1]."""
        height, width = sample.shape[2:]
        output: Tensor = network(
            pack(sample),
            timestep=timestep / 1000,
            **cond,
            img_shapes=[[(1, height // 2, width // 2)]] * len(sample),
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def _check_channels(self) -> None:
        self.check_patches()

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Embeddings and a mask of a fixed length; the pipeline passes no mask if a batch has no padding."""
        if self.device.type == "meta":  # the pipeline cuts embeddings at the number of tokens, a value
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        with torch.no_grad():
            text, mask = self.text_pipeline().encode_prompt(
                list(prompts), device=self.device, max_sequence_length=LENGTH
            )
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device) if mask is None else mask
        return {TEXT: padded(text.float(), LENGTH), MASK: padded(mask, LENGTH)}

    def meta_condition(self) -> Condition:
        width = self.stock.transformer.config.joint_attention_dim
        text = torch.empty(1, LENGTH, width, device="meta")
        return {TEXT: text, MASK: torch.empty(1, LENGTH, dtype=torch.long, device="meta")}
