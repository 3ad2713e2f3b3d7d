"""The teacher family of the digits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep_digits.classifier import label, load
from fewstep_digits.pipeline import DigitsPipeline
from teachers.core.contract import FeatureModel
from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import flow_scheduler, is_default_schedule, native_levels
from teachers.core.schedule import schedule
from teachers.core.teacher import Teacher
from teachers.core.time_embedding import bake_timesteps


def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """Call the network, which names its arguments in its own way."""
    return network(sample, timestep=timestep, digit=cond["digit"])


class Digits(Teacher):
    """`DigitsPipeline`. A prompt is a digit, such as "7" or "seven"; the latents are pixels."""

    pipelines = (DigitsPipeline,)
    network = "vit"
    call_names: ClassVar[Mapping[str, str]] = {
        "class_labels": "digits",
        "num_inference_steps": "steps",
        "guidance_scale": "scale",
        "generator": "rng",
        "latents": "noise",
    }
    sigma_data = 0.8
    feature_layer = "encoder.layers.1"
    feature_models: ClassVar[Mapping[str, Callable[[torch.device], FeatureModel]]] = {"digits": load}
    default_features = "digits"
    ignores_guidance = False
    refuses_steps = False

    def __init__(self, pipeline: DigitsPipeline, sigma_data: float = sigma_data) -> None:
        self.stock, vit = pipeline, pipeline.vit
        size = vit.config.sample_size
        self.shape, self.image_size = (vit.config.in_channels, size, size), (size, size)
        path, prediction = schedule(pipeline.scheduler, sigma_data, tokens=size**2)
        self.denoiser = Denoiser(vit.requires_grad_(False).eval(), path, prediction, call=call).eval()

    def encode(self, images: Tensor) -> Tensor:
        images = images.to(self.stock.device).mean(1, keepdim=True)
        return images / self.denoiser.path.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        return (latents * self.denoiser.path.sigma_data).expand(-1, 3, -1, -1)

    def condition(self, prompts: Sequence[str]) -> Condition:
        null = self.stock.vit.config.num_classes
        numbers = [label(prompt) if prompt.strip() else null for prompt in prompts]
        return {"digit": torch.tensor(numbers, device=self.stock.device)}

    def pipeline(self, student: Denoiser, times: Sequence[float]) -> DigitsPipeline:
        scheduler, timesteps = flow_scheduler(student, times)
        return DigitsPipeline(bake_timesteps(student, times, timesteps), scheduler)

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        call: dict[str, Any] = {"steps": num_steps, "scale": 1.0}
        if times and not is_default_schedule(self.denoiser, times):
            call["sigmas"] = native_levels(self.denoiser.path, times)
        return call

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        """The network's time features are slow: sCM trains on native timesteps."""
