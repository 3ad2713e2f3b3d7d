"""ACE-Step 1.5: a rectified-flow transformer of music with a Qwen3 text encoder and adaptive projected guidance."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from torch import Tensor

from teachers.core.denoiser import Condition, Denoiser, Prediction
from teachers.core.few_step import flow_scheduler, is_default_schedule, native_levels
from teachers.core.noise_path import NoisePath
from teachers.core.trigflow import Flow
from teachers.families.latent import LatentTeacher
from teachers.families.output_guidance import OutputGuidance
from teachers.families.unbatched import encode_each, padded
from teachers.loading.source import TEXT_COMPONENTS, Pipelines
from teachers.media import Audio, Medium

TIME = ("time_embed", "time_embed_r")  # of the network
SHIFT = 3.0  # the default of the pipeline's call
MAX_TEXT = 256  # tokens of a prompt, as in the pipeline's call
MORE_TOKENS = 32  # of the language, and of the silence that is the sound to imitate
TIMBRE_SECONDS = 30  # of silence, which the pipeline passes as the sound to imitate
PEAK = 10 ** (-1 / 20)  # to which the pipeline scales sounds
MASK = "encoder_attention_mask"  # an entry of the condition
# With this scheduler the noise levels are those that the pipeline passes to it.
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
}
# The pipeline's adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416), without its momentum over steps.
GUIDANCE: dict[str, Any] = {"eta": 0.0, "norm_threshold": 2.5, "use_original_formulation": True, "norm_dim": (1,)}


class AceStep(OutputGuidance, LatentTeacher):
    """`AceStepPipeline` for music from a prompt, without lyrics.

    The network has no mask for its text, and the pipeline pads the prompts of a batch to the longest. Here each prompt
    is encoded alone, and the network is called once for each sample with as many tokens as its prompt has.

    The guidance of `velocity` is that of the pipeline's first step; the pipeline adds momentum in later ones. A network
    with `is_turbo` has its guidance in the weights, and takes no other. Exported networks have `is_turbo`.

    Args:
        pipeline: The pipeline; its networks are frozen.
        sigma_data: Standard deviation of the native latents.
        size: `seconds` of a sound; by default those of the pipeline's call.

    Raises:
        ValueError: If the scheduler changes the noise levels that the pipeline passes to it.
    """

    pipelines: ClassVar[Pipelines] = (AceStepPipeline,)
    statistics: ClassVar[tuple[str, ...]] = ()  # its autoencoder has none
    medium_class: ClassVar[type[Medium]] = Audio
    size_keys: ClassVar[tuple[str, ...]] = ("seconds",)
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "condition": (*TEXT_COMPONENTS, "condition_encoder"),
        "encode": ("vae",),
    }
    passes_sigmas: ClassVar[bool] = True
    pads_prompts: ClassVar[bool] = True
    guidance_has_momentum: ClassVar[bool] = True
    refuses_steps: ClassVar[bool] = False

    def __init__(
        self, pipeline: AceStepPipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        config: Any = getattr(pipeline.scheduler, "config", {})
        for key, value in SCHEDULER.items():
            if key == "shift" and config.get("stochastic_sampling"):  # an exported student, whose shift sets its steps
                continue
            if config.get(key) != value:
                raise ValueError(f"{key} of the scheduler of an AceStepPipeline must be {value}, got {config.get(key)}")
        for name in TIME:  # the network computes the features of a timestep in the precision of the timestep
            getattr(pipeline.transformer, name).float()
        self.stock = pipeline
        self.seconds = float((size or {}).get("seconds", 60.0))
        super().__init__(pipeline, sigma_data)

    @staticmethod
    def call(network: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Call the network on (1, L, C) for each sample, with a timestep in [0, 1]."""
        used = dict(cond)
        mask, outputs = used.pop(MASK), []
        timestep = (timestep / 1000).to(sample.dtype if sample.is_meta else torch.float32)
        lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()
        for row, length in enumerate(lengths):
            own = slice(row, row + 1)
            outputs.append(
                network(
                    hidden_states=sample[own].mT,
                    timestep=timestep[own],
                    timestep_r=timestep[own],
                    encoder_hidden_states=used["encoder_hidden_states"][own, : int(length)],
                    context_latents=used["context_latents"][own],
                    return_dict=False,
                )[0]
            )
        return torch.cat(outputs).mT

    def noise_path(self, sigma_data: float) -> tuple[NoisePath, Prediction]:
        return Flow(1000, sigma_data, SHIFT), "flow_prediction"

    def timesteps(self, scheduler: Any) -> Tensor:
        return 1000 * super().timesteps(scheduler)

    @property
    def medium(self) -> Audio:
        """Sounds of whole latents, at least as long as the teacher's seconds."""
        config = self.stock.vae.config
        samples = self.shape[1] * self.factor
        return Audio(channels=int(config.audio_channels), samples=samples, rate=int(config.sampling_rate))

    def set_size(self) -> None:
        return

    def compression(self) -> int:
        return int(self.stock.vae.hop_length)

    def latent_shape(self) -> tuple[int, ...]:
        length = math.ceil(self.seconds * self.stock.latents_per_second)  # as the pipeline rounds
        return int(self.stock.transformer.config.audio_acoustic_hidden_dim), length

    def latent_channels(self) -> int:
        return int(self.stock.vae.config.decoder_input_channels)

    def _check_channels(self) -> None:
        config, channels = self.stock.transformer.config, self.latent_channels()
        if (config.audio_acoustic_hidden_dim, config.in_channels) != (channels, 3 * channels):
            raise ValueError(
                f"audio_acoustic_hidden_dim and in_channels of the transformer must be {channels} and {3 * channels} "
                f"for the {channels} latent channels of the vae, got {config.audio_acoustic_hidden_dim} and "
                f"{config.in_channels}"
            )

    def tokens(self) -> int:
        return math.ceil(self.shape[1] / self.stock.transformer.config.patch_size)

    def unpack(self, native: Tensor) -> Tensor:
        return native.mT

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, guidance: float | Tensor = 1.0) -> Tensor:
        """The velocity with the pipeline's guidance; networks with `is_turbo` ignore the scale."""
        return super().velocity(x_t, t, cond, 1.0 if self.stock.is_turbo else guidance)

    def combine_outputs(self, with_prompt: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        """The pipeline's adaptive projected guidance."""
        return normalized_guidance(with_prompt.mT, without.mT, scale - 1.0, **GUIDANCE).mT  # type: ignore[arg-type]

    def condition(self, prompts: Sequence[str]) -> Condition:
        return encode_each(prompts, self._encode)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Condition:
        pipeline = self.text_pipeline()
        encoder = pipeline.condition_encoder
        encoded = pipeline.encode_prompt(
            [prompt], [""], self.device, audio_duration=self.seconds, max_text_length=MAX_TEXT
        )
        frames = math.ceil(TIMBRE_SECONDS * self.stock.latents_per_second)
        silence, first = encoder.silence_latent[:, :frames], torch.zeros(1, dtype=torch.long, device=self.device)
        text, _ = encoder(*encoded, silence.to(encoded[0].dtype), first)
        length = text.shape[1] - encoded[0].shape[1] + MAX_TEXT
        context, _ = pipeline.prepare_src_latents(self.device, torch.float32, latent_length=self.shape[1])
        return {
            "encoder_hidden_states": padded(text.float(), length),
            MASK: padded(torch.ones_like(text[..., 0], dtype=torch.long), length),
            "context_latents": torch.cat([context.float(), torch.ones_like(context).float()], dim=2),
        }

    def meta_condition(self) -> Condition:
        empty = partial(torch.empty, device="meta")
        width = self.stock.condition_encoder.config.hidden_size
        channels, length = self.shape
        tokens = MAX_TEXT + MORE_TOKENS
        return {
            "encoder_hidden_states": empty(1, tokens, width),
            MASK: empty(1, tokens, dtype=torch.long),
            "context_latents": empty(1, length, 2 * channels),
        }

    def null_condition(self, cond: Condition) -> Condition:
        null = self.null_row()["encoder_hidden_states"][:, :1]
        return {**cond, "encoder_hidden_states": null.expand_as(cond["encoder_hidden_states"])}

    def encode_null_condition(self) -> Condition:
        cond = self.condition([""])
        null = self.text_pipeline().condition_encoder.null_condition_emb.detach().float()
        return {**cond, "encoder_hidden_states": null.expand_as(cond["encoder_hidden_states"]).contiguous()}

    def _image(self, native: Tensor) -> Tensor:
        sounds = super()._image(native)
        return sounds * (PEAK / sounds.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-6))

    def scheduler(self, student: Denoiser, times: Sequence[float]) -> tuple[Any, Tensor]:
        levels = native_levels(student.path, times)
        shift = flow_scheduler(student, times, self.passes_sigmas)[0].config.shift
        if is_default_schedule(student, times):
            # as the pipeline requests them: of two, the odds s / (1 - s) of the second are SHIFT already
            levels, shift = [1.0, SHIFT / (1 + SHIFT)][: len(times)], shift / SHIFT ** (len(times) - 1)
        scheduler = FlowMatchEulerDiscreteScheduler(1, shift=shift, stochastic_sampling=True)
        scheduler.set_timesteps(sigmas=levels)
        return scheduler, 1000 * scheduler.timesteps

    def parts(self, student: Denoiser, network: Any, scheduler: Any) -> dict[str, Any]:
        network.register_to_config(is_turbo=True)
        return super().parts(student, network, scheduler)

    def size_call(self) -> dict[str, Any]:
        return {"lyrics": "", "audio_duration": self.seconds}

    def calls(self, num_steps: int, times: Sequence[float] = ()) -> dict[str, Any]:
        call = super().calls(num_steps, times)
        if "sigmas" in call:
            call["timesteps"] = call.pop("sigmas")
        return call
