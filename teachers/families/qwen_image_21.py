"""Qwen-Image 2.1: a rectified-flow transformer of one sequence, causal up to the image, with Qwen3-VL."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import QwenImage21Pipeline
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21TransformerBlock
from torch import Tensor, nn

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.qwen_image import MASK, TEXT, QwenPipeline
from teachers.families.unbatched import encode_each, padded
from teachers.loading.source import TEXT_COMPONENTS, Pipelines
from teachers.support.private_api import checkpointing_function

LENGTH = 512  # the most tokens of a prompt; the pipeline has no limit
IMAGE_TOKENS = "image_tokens"  # the module whose output is a block's tokens of the image


class ReadableBlock(QwenImage21TransformerBlock):  # type: ignore[misc]
    """A block that passes its tokens of the image, which follow those of the text, through a module for hooks."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens (B, text and image, C)."""
        output: Tensor = super().forward(hidden_states, *args, **kwargs)
        segments = kwargs.get("segments", args[7] if len(args) > 7 else None)
        if segments is not None:
            getattr(self, IMAGE_TOKENS)(output[:, segments[-1][1] :])
        return output


def meta_forward(network: Any, tokens: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
    """The network's output on the meta device, where its own code cannot read the layout of the sequence."""
    length = text.shape[1] + tokens.shape[1]
    hidden = torch.cat([network.txt_in(text), network.img_in(tokens)], dim=1)
    causal = network.config.causal_condition
    timestep = torch.cat([timestep, timestep.new_zeros(1)]) if causal else timestep
    embedding = network.time_text_embed(timestep, hidden)
    image = torch.empty(length, dtype=torch.bool, device="meta") if causal else None
    rotary = torch.empty(length, sum(network.config.axes_dims_rope) // 2, dtype=torch.complex64, device="meta")
    inputs = network.modulation(embedding), rotary, None, image, None, None, None, [(0, text.shape[1], True)], None
    checkpoint = checkpointing_function(network) if torch.is_grad_enabled() else None
    for block in network.transformer_blocks:
        hidden = checkpoint(block, hidden, *inputs) if checkpoint else block(hidden, *inputs)
    output: Tensor = network.proj_out(network.norm_out(hidden, embedding, image))
    return output


class QwenImage21(QwenPipeline):
    """`QwenImage21Pipeline` without an image as its condition.

    The positions of the image depend on the number of text tokens, and the pipeline pads the prompts of a batch to the
    longest. Here each prompt is encoded alone, and the network is called once for each sample with as many tokens as
    its prompt has. The autoencoder has an alpha channel: images are encoded as opaque, and it is dropped.
    """

    pipelines: ClassVar[Pipelines] = (QwenImage21Pipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"context_in_dim": ("text_encoder",)}
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "condition": (*TEXT_COMPONENTS, "processor"),
        "encode": ("vae",),
    }
    patch: ClassVar[int] = 1
    pads_prompts: ClassVar[bool] = True

    def __init__(
        self, pipeline: QwenImage21Pipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        blocks = pipeline.transformer.transformer_blocks
        middle = len(blocks) // 2
        blocks[middle].__class__ = ReadableBlock
        setattr(blocks[middle], IMAGE_TOKENS, nn.Identity())
        super().__init__(pipeline, sigma_data, size)
        self.feature_layer = f"transformer_blocks.{middle}.{IMAGE_TOKENS}"  # type: ignore[misc]

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on tokens (1, H W, C) for each sample, with a timestep in [0, 1]."""
        height, width = sample.shape[2:]
        mask, outputs, tokens = cond[MASK], [], sample.flatten(2).mT
        lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()
        for row, length in enumerate(lengths):
            own = slice(row, row + 1)
            text, time = cond[TEXT][own, : int(length)], timestep[own] / 1000
            if sample.is_meta:
                found = meta_forward(network, tokens[own], text, time)
            else:
                image = torch.arange(int(length) + height * width // 4, device=sample.device) >= int(length)
                found = network(
                    hidden_states=tokens[own],
                    encoder_hidden_states=text,
                    timestep=time,
                    img_shapes=[[(1, height, width)]],
                    img_mask=image[None],
                    return_dict=False,
                )[0]
            outputs.append(found[:, -height * width :])
        return torch.cat(outputs).mT.unflatten(2, (height, width))

    def side_unit(self) -> int:
        return 2 * self.compression()

    def default_side(self) -> int:
        return int(inspect.signature(QwenImage21Pipeline.__call__).parameters["output_resolution"].default)

    def unpack(self, native: Tensor) -> Tensor:
        return native.mT.unflatten(2, self.shape[1:]) if native.ndim == 3 else super().unpack(native)

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":  # the pipeline cuts embeddings at the number of tokens, a value
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        return encode_each(prompts, self._encode)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Condition:
        text, _, _ = self.text_pipeline().encode_prompt([prompt], device=self.device)
        if text.shape[1] > LENGTH:
            raise ValueError(f"a prompt must have at most {LENGTH} tokens, got {text.shape[1]}: {prompt[:60]!r}")
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        return {TEXT: padded(text.float(), LENGTH), MASK: padded(mask, LENGTH)}

    def meta_condition(self) -> Condition:
        width = self.stock.transformer.config.context_in_dim
        text = torch.empty(1, LENGTH, width, device="meta")
        return {TEXT: text, MASK: torch.empty(1, LENGTH, dtype=torch.long, device="meta")}

    def exact_points(
        self, student: Denoiser, times: Sequence[float], timesteps: Tensor
    ) -> tuple[Sequence[float], Tensor]:
        """Those of the steps, and zero, at which a network with `causal_condition` computes its text."""
        points, steps = super().exact_points(student, times, timesteps)
        if not self.stock.transformer.config.causal_condition:
            return points, steps
        return [*points, 0.0], torch.cat([steps, steps.new_zeros(1)])

    def usual_call(self, num_steps: int, guidance: float) -> dict[str, Any]:
        call = super().usual_call(num_steps, guidance)
        if self.stock.config.sample_sigmas is not None:  # the pipeline would ignore the number of steps
            call["sigmas"] = torch.linspace(1, 1 / num_steps, num_steps).tolist()
        return call

    def _mean(self, images: Tensor) -> Tensor:
        return super()._mean(torch.cat([images, torch.ones_like(images[:, :1])], dim=1))

    def _image(self, native: Tensor) -> Tensor:
        return super()._image(native)[:, :3]
