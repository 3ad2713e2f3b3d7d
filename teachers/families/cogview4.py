"""CogView4: a rectified-flow transformer whose shift is part of its schedule, with GLM-4 as its text encoder."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import CogView4Pipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from teachers.core.denoiser import Call, Condition, Denoiser, Prediction
from teachers.core.few_step import check_times, is_default_schedule, native_levels
from teachers.core.noise_path import NoisePath
from teachers.core.schedule import schedule
from teachers.core.shifted_flow import ShiftedFlow
from teachers.families.cogview import CogView
from teachers.families.flow_transformer import FlowTransformer
from teachers.families.unbatched import encode_each, padded
from teachers.loading.source import Pipelines

LENGTH = 1024  # tokens of a prompt: the default of the pipeline's call
TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"  # entries of the condition
# Options of the scheduler that change its noise levels, but not the timesteps that the network receives.
CHANGES = ("shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class CogView4(CogView, FlowTransformer):
    """`CogView4Pipeline`.

    Neither network nor text encoder has a mask, and the pipeline pads the prompts of a batch to the longest. Here each
    prompt is encoded alone, and the network is called with as many tokens as the prompts of its samples have.

    Raises:
        ValueError: If the noise levels of the scheduler are not those of the network's timesteps.
    """

    pipelines: ClassVar[Pipelines] = (CogView4Pipeline,)
    pads_prompts: ClassVar[bool] = True
    unit: ClassVar[int] = 16

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network once for each series of prompts of one length."""
        mask, outputs, start = cond[MASK], [], 0
        lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()
        for length, group in groupby(lengths):
            rows = slice(start, start := start + len(list(group)))
            own = {key: value[rows] for key, value in cond.items() if key != MASK}
            own[TEXT] = own[TEXT][:, : int(length)]
            outputs.append(network(sample[rows], timestep=timestep[rows], **own, return_dict=False)[0])
        return torch.cat(outputs)

    def network_call(self) -> Call:
        return self.call

    def noise_path(self, sigma_data: float) -> tuple[NoisePath, Prediction]:
        scheduler = self.stock.scheduler
        path, prediction = schedule(scheduler, sigma_data, variance_preserving=False)
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # the pipeline passes timesteps and their shift
            raise ValueError(
                "the scheduler of a CogView4Pipeline must be a FlowMatchEulerDiscreteScheduler, got "
                f"{type(scheduler).__name__}"
            )
        config = scheduler.config
        for key in CHANGES:
            if config.get(key):
                raise ValueError(
                    f"{key} of the scheduler of a CogView4Pipeline must be off, got {config[key]}: it changes the "
                    "noise levels, but not the timesteps of the network"
                )
        shift = float(config["shift"])
        if config["use_dynamic_shifting"]:  # by the side of a square image with as many tokens
            shift = config["base_shift"] + config["max_shift"] * (self.tokens() / config["base_image_seq_len"]) ** 0.5
            shift = shift if config["time_shift_type"] == "linear" else math.exp(shift)
        return ShiftedFlow(path.num_train_timesteps, sigma_data, shift), prediction

    def condition(self, prompts: Sequence[str]) -> Condition:
        if self.device.type == "meta":  # the pipeline pads prompts by their length
            return {key: value.expand(len(prompts), *value.shape[1:]) for key, value in self.meta_condition().items()}
        return encode_each(prompts, self._encode)

    def _encode(self, prompt: str) -> Condition:
        text = self.encode_prompts([prompt])[0].float()
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        return {TEXT: padded(text, LENGTH), MASK: padded(mask, LENGTH), **self.size_entries(1, text.device)}

    def meta_condition(self) -> Condition:
        text = torch.empty(1, LENGTH, self.stock.transformer.config.text_embed_dim, device="meta")
        mask = torch.empty(1, LENGTH, dtype=torch.long, device="meta")
        return {TEXT: text, MASK: mask, **self.size_entries(1, "meta")}

    def scheduler(self, student: Denoiser, times: Sequence[float]) -> tuple[Any, Tensor]:
        """The scheduler of an exported pipeline, and the timesteps that the network receives; see `flow_scheduler`.

        The pipeline passes the timesteps from the last to 1, and their share of the last as noise levels.
        """
        path, count = student.path, len(times)
        check_times(path, times)
        last, levels, shift = path.num_train_timesteps, native_levels(path, times), 1.0
        timesteps, requested = self.call_timesteps(student, times), levels
        if is_default_schedule(student, times):
            timesteps = np.linspace(last, 1.0, count).astype(np.int64).tolist()
            requested = [step / last for step in timesteps]
            if count == 2:  # a shift multiplies the odds s / (1 - s), which are those of the level 1 / last
                shift = levels[1] / (1 - levels[1]) * (last - 1)
        scheduler = FlowMatchEulerDiscreteScheduler(last, shift=shift, stochastic_sampling=True)
        scheduler.set_timesteps(sigmas=requested, timesteps=timesteps)
        assert np.allclose(scheduler.sigmas[:-1].numpy(), levels, rtol=0, atol=1e-5)
        return scheduler, scheduler.timesteps

    def call_timesteps(self, student: Denoiser, times: Sequence[float]) -> list[int]:
        """The whole timesteps nearest to decreasing angles, which the call passes with noise levels of its own."""
        exact = student.path.timestep(torch.tensor(times, dtype=torch.float64))
        timesteps: list[int] = exact.round().long().tolist()
        return timesteps

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        call = super().calls(num_steps, times)
        return call | ({"timesteps": self.call_timesteps(self.denoiser, times)} if "sigmas" in call else {})
