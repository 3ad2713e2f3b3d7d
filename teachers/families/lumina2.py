"""Lumina-Image 2.0: a rectified-flow transformer of text and image tokens in one sequence, with a Gemma 2 encoder."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from diffusers import Lumina2Pipeline
from torch import Tensor
from torch.overrides import TorchFunctionMode

from teachers.core.denoiser import Call, Condition, Denoiser, Prediction
from teachers.core.noise_path import NoisePath
from teachers.core.schedule import schedule
from teachers.families.flow_transformer import FlowTransformer, call_network
from teachers.families.output_guidance import OutputGuidance
from teachers.loading.source import Pipelines

TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"  # entries of the condition


class WholePrompts(TorchFunctionMode):
    """A context in which the lengths of prompts on the meta device, which have no values, are the largest ones."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.lengths = [mask.shape[1]] * len(mask)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return list(self.lengths) if function is Tensor.tolist else function(*args, **(kwargs or {}))


def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """Call the network, which reads the lengths of prompts from their mask."""
    with WholePrompts(cond[MASK]) if cond[MASK].is_meta else nullcontext():
        return call_network(network, sample, timestep, cond, reverses_time=True, packs=False)


def sample_tokens(hidden: Tensor, sample: Tensor, cond: Condition) -> Tensor:
    """The tokens (B, N, C) of the samples (B, C, H, W) among those of a block, which follow those of each prompt."""
    count = sample.shape[2] * sample.shape[3] // 4
    first = cond[MASK].to(hidden.device).sum(1)
    index = first[:, None] + torch.arange(count, device=hidden.device)
    return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))


class Lumina2(OutputGuidance, FlowTransformer):
    """`Lumina2Pipeline`. Prompts follow the pipeline's default instruction; the empty and negative prompts do not.

    Guidance keeps the norm of each row of pixels of the network's output, as the pipeline's `cfg_normalization` does by
    default. Its `cfg_trunc_ratio`, which its call does not use by default, is not supported.
    """

    pipelines: ClassVar[Pipelines] = (Lumina2Pipeline,)
    statistics: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    text_widths: ClassVar[Mapping[str, tuple[str, ...]]] = {"cap_feat_dim": ("text_encoder",)}
    encoded: ClassVar[tuple[str | None, ...]] = (TEXT, MASK)
    reverses_time: ClassVar[bool] = True
    fixed_factor: ClassVar[int | None] = 8

    def __init__(
        self, pipeline: Lumina2Pipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(pipeline, sigma_data, size)
        self.denoiser.sample_tokens = sample_tokens

    def network_call(self) -> Call:
        return call

    def noise_path(self, sigma_data: float) -> tuple[NoisePath, Prediction]:
        channels = int(self.shape[0])  # the pipeline takes their number for that of the tokens
        return schedule(self.stock.scheduler, sigma_data, channels, variance_preserving=False)

    def encode_null_condition(self) -> Condition:
        return self.encode_negative_prompt("")

    def encode_negative_prompt(self, prompt: str) -> Condition:
        values = self.encode_prompts([""], do_classifier_free_guidance=True, negative_prompt=[prompt])
        return self.named(values[2:])

    def combine_outputs(self, with_prompt: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        guided = without + scale * (with_prompt - without)
        norms = [torch.norm(output, dim=-1, keepdim=True) for output in (with_prompt, guided)]
        return guided * (norms[0] / norms[1])

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        return  # the network receives timesteps in [0, 1], at frequencies of at most 1: its features are slow
