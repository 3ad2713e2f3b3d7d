"""`FlowTransformer`: rectified-flow transformers that follow diffusers' conventions; a family states which ones."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from teachers.core.denoiser import Call, Condition
from teachers.families.latent import LatentTeacher
from teachers.families.packing import pack, positions, unpack
from teachers.families.sized_image import SizedImage

UNIT = 1000.0  # by which pipelines divide the timesteps of their schedulers


def call_network(
    network: Any,
    sample: Tensor,
    timestep: Tensor,
    cond: Condition,
    reverses_time: bool,
    packs: bool,
    numbers_text: bool = False,
) -> Tensor:
    """Call a transformer whose timestep is in [0, 1].

    Args:
        network: The network.
        sample: Native noisy latents, (B, C, H, W).
        timestep: Native timesteps, (B,).
        cond: The condition.
        reverses_time: See `FlowTransformer`.
        packs: See `FlowTransformer`.
        numbers_text: See `FlowTransformer`.

    Returns:
        The network's output z - X0, (B, C, H, W).
    """
    height, width = sample.shape[2:]
    inputs, more = sample, {}
    if packs:
        inputs = pack(sample)
        more["img_ids"] = positions(height // 2, width // 2).to(sample)
        numbers = numbers_text * torch.arange(cond["encoder_hidden_states"].shape[1])
        more["txt_ids"] = torch.stack([0 * numbers, numbers, numbers], dim=1).to(sample)
    time = timestep / UNIT
    output: Tensor = network(
        hidden_states=inputs, timestep=1 - time if reverses_time else time, **cond, **more, return_dict=False
    )[0]
    output = unpack(output, height, width) if packs else output
    return -output if reverses_time else output


def check_unit(teacher: LatentTeacher) -> None:
    """Raise ValueError if the scheduler's timesteps divided by `UNIT` are not in [0, 1]."""
    if teacher.denoiser.path.num_train_timesteps != UNIT:
        raise ValueError(
            f"num_train_timesteps of the scheduler of a {type(teacher.stock).__name__} must be {UNIT:g}, got "
            f"{teacher.denoiser.path.num_train_timesteps}"
        )


class FlowTransformer(SizedImage):
    """A family of this kind sets `pipelines`, `text_widths`, `encoded`, and the conventions that differ.

    Attributes:
        encoded: The network's argument for each value that the pipeline's `encode_prompt` returns; None: it is not
            passed.
        reverses_time: Whether the network receives 1 - timestep / 1000 and returns X0 - z, not z - X0.
        packs: Whether the network takes tokens of 2 x 2 patches with their positions, not latents.
        numbers_text: Whether the n-th token of a prompt has the position (0, n, n), not (0, 0, 0), where `packs`.

    Raises:
        ValueError: If the scheduler has another number of timesteps than 1000.
    """

    encoded: ClassVar[tuple[str | None, ...]] = ("encoder_hidden_states",)
    reverses_time: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    numbers_text: ClassVar[bool] = False

    def __init__(self, pipeline: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(pipeline, *args, **kwargs)
        check_unit(self)

    def network_call(self) -> Call:
        return partial(call_network, reverses_time=self.reverses_time, packs=self.packs, numbers_text=self.numbers_text)

    def latent_shape(self) -> tuple[int, ...]:
        channels = int(self.stock.transformer.config.in_channels) // (self.patch**2 if self.packs else 1)
        return channels, *super().latent_shape()[1:]

    def condition(self, prompts: Sequence[str]) -> Condition:
        return self.named(self.encode_prompts(prompts))

    def encode_prompts(self, prompts: Sequence[str], **options: Any) -> Sequence[Tensor]:
        """What the pipeline's `encode_prompt` returns, called with further arguments."""
        options = {"do_classifier_free_guidance": False, "device": self.device} | options
        with torch.no_grad():
            values: Sequence[Tensor] = self.text_pipeline().encode_prompt(list(prompts), **options)
        return values

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """The condition in the values that `encode_prompt` returns, of which it has those that `encoded` names."""
        found = {name: value for name, value in zip(self.encoded, values, strict=False) if name is not None}
        return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
