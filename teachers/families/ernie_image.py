"""ERNIE-Image: a rectified-flow transformer of image and text tokens in one sequence, with Mistral 3 as its encoder."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ErnieImagePipeline
from diffusers.models.transformers.transformer_ernie_image import ErnieImageEmbedND3
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.families.patch_autoencoder import PatchAutoencoder
from teachers.families.unbatched import encode_each, padded
from teachers.loading.source import Pipelines

LENGTH = 512  # the most tokens of a prompt; the limit of the pipeline is that of its tokenizer
TEXT, COUNT = "text_bth", "text_lens"  # entries of the condition
NO_ENHANCER = {"pe": None, "pe_tokenizer": None}


def sample_tokens(hidden: Tensor, sample: Tensor, cond: Condition) -> Tensor:
    """The tokens (B, N, C) of the samples (B, C, H, W) among those (N + L, B, C) of a block, which begin with them."""
    return hidden[: sample.shape[2] * sample.shape[3]].transpose(0, 1)


class Positions(ErnieImageEmbedND3):  # type: ignore[misc]
    """Rotary embeddings of positions, also on the meta device, for which the network's own code has no autocast."""

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (B, N, 1, D) of positions (B, N, 3)."""
        if ids.is_meta:
            return ids.new_empty(*ids.shape[:-1], 1, sum(self.axes_dim))
        found: Tensor = super().forward(ids)
        return found


class ErnieImage(PatchAutoencoder):
    """`ErnieImagePipeline` without its rewriting of prompts, for which exports have no model."""

    pipelines: ClassVar[Pipelines] = (ErnieImagePipeline,)
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_in_dim": ("text_encoder",)}
    options: ClassVar[dict[str, Any]] = NO_ENHANCER
    network_patch: ClassVar[int | None] = 1  # its latents are patches already

    def __init__(
        self, pipeline: ErnieImagePipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        pipeline.transformer.pos_embed.__class__ = Positions
        super().__init__(pipeline, sigma_data, size)
        self.denoiser.sample_tokens = sample_tokens

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on as many tokens of text as the longest prompt has."""
        text, count = cond[TEXT], cond[COUNT]
        text = text if count.is_meta else text[:, : int(count.max())]
        output: Tensor = network(sample, timestep, text, count, return_dict=False)[0]
        return output

    def default_side(self) -> int:
        return int(inspect.signature(ErnieImagePipeline.__call__).parameters["height"].default)

    def batch_norm_eps(self) -> float:
        return 1e-5  # in the pipeline, whatever the config of the autoencoder has

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        return encode_each(prompts, self._encode)

    def _encode(self, prompt: str) -> Condition:
        (text,) = self.text_pipeline().encode_prompt([prompt], self.device)
        if len(text) > LENGTH:
            raise ValueError(f"a prompt must have at most {LENGTH} tokens, got {len(text)}: {prompt[:60]!r}")
        return {TEXT: padded(text[None].float(), LENGTH), COUNT: torch.tensor([len(text)], device=text.device)}

    def meta_condition(self) -> Condition:
        text = torch.empty(1, LENGTH, self.stock.transformer.config.text_in_dim, device="meta")
        return {TEXT: text, COUNT: torch.empty(1, dtype=torch.long, device="meta")}

    def size_call(self) -> dict[str, Any]:
        return {**super().size_call(), "use_pe": False}

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        return super().parts(student, network, scheduler) | NO_ENHANCER
