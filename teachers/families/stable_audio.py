"""Stable Audio Open: a transformer of sounds that predicts v on TrigFlow's own schedule, with a T5 text encoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import CosineDPMSolverMultistepScheduler, StableAudioPipeline
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser
from teachers.core.few_step import check_times
from teachers.families.latent import LatentTeacher
from teachers.loading.source import TEXT_COMPONENTS, Pipelines
from teachers.media import Audio, Medium

MAX_STEPS = 2


class StableAudio(LatentTeacher):
    """`StableAudioPipeline`. The unguided condition has zeros for the prompt, and the same seconds.

    An exported pipeline has the stock scheduler with other ends. Its stochastic solver of first order adds noise for
    the second level as `teachers.core.sampling.sample` does, apart from a share of sigma' / sigma = 2e-3 of the first
    noise, so students have one or two steps.

    Args:
        pipeline: The pipeline; its networks are frozen.
        sigma_data: Standard deviation of the native latents.
        size: `seconds` of a sound; by default those of all latents.

    Raises:
        ValueError: If the pipeline cannot make sounds of that length.
    """

    pipelines: ClassVar[Pipelines] = (StableAudioPipeline,)
    statistics: ClassVar[tuple[str, ...]] = ()  # its autoencoder has none
    medium_class: ClassVar[type[Medium]] = Audio
    size_keys: ClassVar[tuple[str, ...]] = ("seconds",)
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "condition": (*TEXT_COMPONENTS, "projection_model"),
        "encode": ("vae",),
    }
    takes_flow: ClassVar[bool] = False
    takes_variance_preserving: ClassVar[bool] = False
    takes_cosine: ClassVar[bool] = True
    refuses_steps: ClassVar[bool] = False
    constructor_reads: ClassVar[tuple[str, ...]] = ("transformer",)
    fewest_steps: ClassVar[int] = 2  # a single exponential step begins at sigma_min

    def __init__(
        self, pipeline: StableAudioPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        self.stock = pipeline
        longest = pipeline.transformer.config.sample_size * pipeline.vae.hop_length / self.rate
        self.seconds = float((size or {}).get("seconds", longest))
        if not 1 / self.rate <= self.seconds <= longest:
            raise ValueError(f"teacher.size.seconds must be at most {longest:g}, got {self.seconds:g}")
        self.whole = self.seconds == longest
        super().__init__(pipeline, sigma_data)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network with a timestep in [0, 1] and the rotary embedding that the pipeline makes."""
        length = sample.shape[2] + cond["global_hidden_states"].shape[1]
        cosine, sine = get_1d_rotary_pos_embed(
            network.config.attention_head_dim // 2, length, use_real=True, repeat_interleave_real=False
        )
        output: Tensor = network(
            sample,
            timestep / 1000,
            **cond,
            rotary_embedding=(cosine.to(sample.device), sine.to(sample.device)),
            return_dict=False,
        )[0]
        return output

    @property
    def rate(self) -> int:
        """Audio samples per second."""
        return int(self.stock.vae.config.sampling_rate)

    @property
    def medium(self) -> Audio:
        """Sounds of the teacher's length, as long as the pipeline cuts them."""
        channels = int(self.stock.vae.config.audio_channels)
        return Audio(channels=channels, samples=int(self.seconds * self.rate), rate=self.rate)

    def set_size(self) -> None:
        return

    def timesteps(self, scheduler: Any) -> Tensor:
        return 1000 * super().timesteps(scheduler)

    def compression(self) -> int:
        return int(self.stock.vae.hop_length)

    def latent_shape(self) -> tuple[int, ...]:
        config = self.stock.transformer.config
        return int(config.in_channels), int(config.sample_size)

    def latent_channels(self) -> int:
        return int(self.stock.vae.config.decoder_input_channels)

    def tokens(self) -> int:
        return self.shape[1]

    def condition(self, prompts: Sequence[str]) -> Condition:
        pipeline = self.text_pipeline()
        with torch.no_grad():
            text = pipeline.encode_prompt(list(prompts), self.device, False)
            start, end = pipeline.encode_duration(0.0, self.seconds, self.device, False, len(prompts))
        return {
            "encoder_hidden_states": torch.cat([text, start, end], dim=1).float(),
            "global_hidden_states": torch.cat([start, end], dim=2).float(),
        }

    def encode_null_condition(self) -> Condition:
        cond = self.condition([""])
        return {**cond, "encoder_hidden_states": torch.zeros_like(cond["encoder_hidden_states"])}

    def _mean(self, images: Tensor) -> Tensor:
        missing = self.shape[1] * self.factor - images.shape[2]
        return super()._mean(torch.nn.functional.pad(images, (0, missing)))

    def _image(self, native: Tensor) -> Tensor:
        return super()._image(native)[:, :, : self.medium.samples]

    def refit_time_embedding(self, student: Denoiser, time_scale: float) -> None:
        """Do nothing: the features of a timestep in [0, 1] are slow enough for sCM."""

    def check_exportable(self, times: Sequence[float]) -> None:
        if len(times) > MAX_STEPS:
            raise ValueError(
                f"a student of {type(self.stock).__name__} must have at most {MAX_STEPS} steps, got {len(times)}: its "
                "scheduler has no other noise levels"
            )

    def scheduler(self, student: Denoiser, times: Sequence[float]) -> tuple[Any, Tensor]:
        check_times(student.path, times)
        ratios = [student.path.sigma_data * math.tan(t) for t in times]
        ends = {
            "sigma_max": ratios[0],
            "sigma_min": ratios[-1] if len(times) > 1 else self.stock.scheduler.config.sigma_min,
        }
        # "exponential" begins a single step at sigma_min
        scheduler = CosineDPMSolverMultistepScheduler.from_config(
            self.stock.scheduler.config, **ends, solver_order=1, sigma_schedule="karras"
        )
        return scheduler, student.path.timestep(torch.tensor(times, dtype=torch.float64))

    def added_noise(self, scheduler: Any, sample: Tensor) -> Tensor | None:
        level = scheduler.sigmas[scheduler.step_index]
        return None if level == 0 else (sample - scheduler.model_outputs[-1]) / level

    def size_call(self) -> dict[str, Any]:
        return {} if self.whole else {"audio_end_in_s": self.seconds}
