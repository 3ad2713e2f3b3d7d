"""AudioLDM 2: a UNet on log-mel latents with T5 and a language model's continuation of the prompt, and a vocoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AudioLDM2Pipeline
from torch import Tensor, nn
from transformers import T5EncoderModel

from teachers.core.denoiser import Condition
from teachers.families.latent import LatentTeacher
from teachers.families.unbatched import encode_each, padded
from teachers.loading.source import TEXT_COMPONENTS, Pipelines
from teachers.media import Audio, Medium
from teachers.media.mel import log_mel
from teachers.support.private_api import disable_gradient_checkpointing

NULL = "null_hidden_states"  # an entry of the condition
FRAME = 0.064  # seconds of a frame of the spectrogram: 1024 samples at the published rate
UNUSED: dict[str, None] = {"class_embed_type": None, "num_class_embeds": None}


class AudioLDM2(LatentTeacher):
    """`AudioLDM2Pipeline` with a T5 encoder.

    The pipeline pads the prompts of a batch to the longest, and the empty prompt to the same length; the positions of
    its language model depend on it. `condition` is that of a prompt alone. It contains the language model's
    continuation of the empty prompt at that length as `null_hidden_states`, which `null_condition` uses.

    Args:
        pipeline: The pipeline; its networks are frozen.
        sigma_data: Standard deviation of the native latents.
        size: `seconds` of a sound; by default those of the UNet's `sample_size`.

    Raises:
        ValueError: If the pipeline is for text to speech, with a VITS encoder, or its UNet has another condition.
    """

    pipelines: ClassVar[Pipelines] = (AudioLDM2Pipeline,)
    network: ClassVar[str] = "unet"
    medium_class: ClassVar[type[Medium]] = Audio
    size_keys: ClassVar[tuple[str, ...]] = ("seconds",)
    encoder_components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "condition": (*TEXT_COMPONENTS, "projection_model", "language_model"),
        "encode": ("vae", "vocoder"),
    }
    takes_flow: ClassVar[bool] = False
    pads_prompts: ClassVar[bool] = True
    ignores_guidance: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False

    def __init__(
        self, pipeline: AudioLDM2Pipeline, sigma_data: float = 1.0, size: Mapping[str, float] | None = None
    ) -> None:
        config = pipeline.unet.config
        for key in UNUSED:
            if config.get(key) is not None:
                raise ValueError(f"{key} of the unet must be None for an AudioLDM2Pipeline, got {config[key]!r}")
        if not isinstance(config.sample_size, int):
            raise ValueError(f"sample_size of the unet must be a number, got {config.sample_size!r}")
        disable_gradient_checkpointing(pipeline.unet)  # diffusers 0.42 passes its masks in wrong positions then
        self.stock = pipeline
        self._check_text_encoder(pipeline.text_encoder_2)
        usual = config.sample_size * self.compression() * self.frame_seconds
        self.seconds = float((size or {}).get("seconds", usual))
        if self.seconds < self.frame_seconds * self.compression():
            least = self.frame_seconds * self.compression()
            raise ValueError(f"teacher.size.seconds must be at least {least:g}, got {self.seconds:g}")
        self.whole = self.seconds == usual
        super().__init__(pipeline, sigma_data)

    @staticmethod
    def call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        used = {key: value for key, value in cond.items() if key != NULL}
        output: Tensor = network(sample, timestep, **used, return_dict=False)[0]
        return output

    @staticmethod
    def _check_text_encoder(encoder: Any) -> None:
        if encoder is not None and not isinstance(encoder, T5EncoderModel):
            raise ValueError(
                f"text_encoder_2 of an AudioLDM2Pipeline must be a T5EncoderModel, got {type(encoder).__name__}: "
                "text-to-speech pipelines are not supported"
            )

    @property
    def hop(self) -> int:
        """Audio samples of one frame of the spectrogram."""
        return math.prod(self.stock.vocoder.config.upsample_rates)

    @property
    def frame_seconds(self) -> float:
        """Seconds of one frame of the spectrogram."""
        return self.hop / int(self.stock.vocoder.config.sampling_rate)

    @property
    def medium(self) -> Audio:
        """Mono sounds of the teacher's length, as long as the pipeline cuts them."""
        rate, whole = int(self.stock.vocoder.config.sampling_rate), self.shape[1] * self.compression() * self.hop
        return Audio(channels=1, samples=min(int(self.seconds * rate), whole), rate=rate)

    def set_size(self) -> None:
        return

    def compression(self) -> int:
        return int(self.stock.vae_scale_factor)

    def latent_shape(self) -> tuple[int, ...]:
        frames = int(self.seconds / self.frame_seconds)  # as the pipeline rounds
        bands = int(self.stock.vocoder.config.model_in_dim)
        factor = self.compression()
        return int(self.stock.unet.config.in_channels), math.ceil(frames / factor), bands // factor

    def _load_text_pipeline(self) -> Any:
        pipeline = super()._load_text_pipeline()
        self._check_text_encoder(pipeline.text_encoder_2)
        return pipeline

    def condition(self, prompts: Sequence[str]) -> Condition:
        return encode_each(prompts, self._encode)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Condition:
        pipeline = self.text_pipeline()
        negative = None if self.negative_prompt is None else [self.negative_prompt]
        text, mask, generated = pipeline.encode_prompt(  # without and with the prompt
            [prompt], self.device, 1, True, negative_prompt=negative
        )
        length = int(pipeline.tokenizer_2.model_max_length)
        return {
            "encoder_hidden_states": generated[1:].float(),
            "encoder_hidden_states_1": padded(text[1:].float(), length),
            "encoder_attention_mask_1": padded(mask[1:], length),
            NULL: generated[:1].float(),
        }

    def meta_condition(self) -> Condition:
        pipeline = self.text_pipeline()
        length, width = int(pipeline.tokenizer_2.model_max_length), pipeline.text_encoder_2.config.d_model
        language = pipeline.language_model.config
        generated = torch.empty(1, language.max_new_tokens, language.hidden_size, device="meta")
        return {
            "encoder_hidden_states": generated,
            "encoder_hidden_states_1": torch.empty(1, length, width, device="meta"),
            "encoder_attention_mask_1": torch.ones(1, length, dtype=torch.long, device="meta"),
            NULL: generated,
        }

    def null_condition(self, cond: Condition) -> Condition:
        return {**super().null_condition(cond), "encoder_hidden_states": cond[NULL], NULL: cond[NULL]}

    def _mean(self, images: Tensor) -> Tensor:
        config, factor = self.stock.vocoder.config, self.compression()
        samples = self.shape[1] * factor * self.hop
        sounds = torch.nn.functional.pad(images[:, 0].to(self.device), (0, max(0, samples - images.shape[2])))
        size = round(FRAME * config.sampling_rate)
        mel = log_mel(sounds[:, :samples], config.sampling_rate, self.hop, config.model_in_dim, size)
        return super()._mean(mel[:, None])

    def _image(self, native: Tensor) -> Tensor:
        sounds: Tensor = self.stock.mel_spectrogram_to_waveform(super()._image(native).to(self.stock.vocoder.dtype))
        return sounds[:, None, : self.medium.samples].to(native.device)

    def size_call(self) -> dict[str, Any]:
        return {} if self.whole else {"audio_length_in_s": self.seconds}
