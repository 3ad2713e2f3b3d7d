"""Features of transformers' models of clips and sounds: VideoMAE and CLAP.

VideoMAE: Tong et al. (arXiv 2203.12602); as features of a Frechet distance: Ge et al., "On the content bias in Frechet
video distance" (arXiv 2404.12391), who use another checkpoint. CLAP: Wu et al. (arXiv 2211.06687); as features of a
Frechet distance: Gui et al. (arXiv 2311.01616). Both are loaded from a folder or from the Hub. They were tested with
random weights of the real classes, not with published checkpoints.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor

from eval.features.transformers_models import embedding, load_pretrained
from teachers.media.resampling import resample

BATCH = 8  # samples at a time


def videomae_features(source: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load a VideoMAE encoder as a feature function.

    Args:
        source: A folder or a Hub id.
        device: The model's device.

    Returns:
        A function from clips (B, 3, F, H, W) in [0, 1] to the mean of the last layer's tokens (B, D). The model's
        number of frames is taken evenly from the clip; frames of shorter clips are repeated.

    Raises:
        ValueError: If the model cannot be loaded or is not a VideoMAE model.
    """
    model, processor = load_pretrained(source, AutoImageProcessor, "videomae=FOLDER")
    _check_type(model, "videomae", source)
    model = model.to(device)

    def features(clips: Tensor) -> Tensor:
        return torch.cat([tokens(part) for part in clips.split(BATCH)])

    def tokens(clips: Tensor) -> Tensor:
        chosen = torch.linspace(0, clips.shape[2] - 1, model.config.num_frames).round().long()
        eight_bit = clips[:, :, chosen].clamp(0, 1).mul(255).round().byte().transpose(1, 2).cpu()
        videos = [list(clip) for clip in eight_bit]
        pixels = processor(videos, return_tensors="pt")["pixel_values"].to(device)
        return model(pixel_values=pixels).last_hidden_state.mean(dim=1)

    return features


def clap_features(source: str, rate: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load the audio side of a CLAP model as a feature function.

    Args:
        source: A folder or a Hub id.
        rate: Samples per second of the sounds.
        device: The model's device.

    Returns:
        A function from sounds (B, channels, samples) in [-1, 1] to normalised embeddings (B, D). Channels are averaged,
        and sounds are resampled to the model's rate.

    Raises:
        ValueError: If the model cannot be loaded or is not a CLAP model.
    """
    model, extractor = load_pretrained(source, AutoFeatureExtractor, "clap=FOLDER")
    _check_type(model, "clap", source)
    model = model.to(device)

    def features(sounds: Tensor) -> Tensor:
        return torch.cat([clap_audio(model, extractor, part, rate, device) for part in sounds.split(BATCH)])

    return features


class ClapScorer:
    """A CLAP model that scores sounds and prompts: 100 max(cos(sound, text), 0), as the CLIP score of images.

    Attributes:
        name: The name of figures made with it.
    """

    def __init__(self, source: str, rate: int, device: torch.device | str = "cpu", allow_pickle: bool = False) -> None:
        """
        Args:
            source: A folder written by save_pretrained (model and processor) or a Hub id.
            rate: Samples per second of the sounds.
            device: The model's device.
            allow_pickle: Whether pickled weights are read where there are no safetensors files.

        Raises:
            ValueError: If the model cannot be loaded or is not a CLAP model.
        """
        model, self.processor = load_pretrained(source, AutoProcessor, "--clap FOLDER", allow_pickle)
        _check_type(model, "clap", source, "--clap")
        self.name = f"CLAP-{source.rstrip('/').rpartition('/')[2]}"
        self.model, self.rate, self.device = model.to(device), rate, torch.device(device)

    @torch.no_grad()
    def __call__(self, sounds: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score sounds (B, channels, samples) in [-1, 1] with their B prompts.

        Returns:
            Scores (B,) in [0, 100], on the CPU.
        """
        audio = clap_audio(self.model, self.processor.feature_extractor, sounds, self.rate, self.device)
        longest = self.model.config.text_config.max_position_embeddings - 2  # RoBERTa's positions begin at 2
        tokens = self.processor.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        text = embedding(
            self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        )
        return 100 * torch.cosine_similarity(audio.float(), text.float()).clamp(min=0).cpu()


def clap_audio(model: Any, extractor: Any, sounds: Tensor, rate: int, device: torch.device) -> Tensor:
    """Normalised embeddings (B, D) of sounds (B, channels, samples).

    The model's extractor takes a random part of sounds that are longer than its window, 10 s. Here the embeddings of
    successive windows are averaged; a rest of less than half a window is not used.
    """
    target = int(extractor.sampling_rate)
    mono = resample(sounds.float().mean(dim=1).cpu(), rate, target)
    window = int(extractor.max_length_s * target)
    parts = [part for part in mono.split(window, dim=1) if part.shape[1] >= min(window // 2, mono.shape[1])]
    total = torch.stack([_clap_window(model, extractor, part, target, device) for part in parts]).mean(dim=0)
    return torch.nn.functional.normalize(total, dim=-1)


def _clap_window(model: Any, extractor: Any, mono: Tensor, rate: int, device: torch.device) -> Tensor:
    inputs = extractor(list(mono.numpy()), sampling_rate=rate, return_tensors="pt")
    if "is_longer" in inputs:  # the extractor sets it for a random sound
        inputs["is_longer"] = torch.zeros_like(torch.as_tensor(inputs["is_longer"]))
    return embedding(model.get_audio_features(**inputs.to(device)))


def _check_type(model: Any, kind: str, source: str, option: str | None = None) -> None:
    found = model.config.model_type
    if found != kind:
        raise ValueError(f"{option or f'{kind}=FOLDER'} must name a {kind} model, {source} is a {found} model")
