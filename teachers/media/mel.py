"""Log-mel spectrograms as vocoders of the HiFi-GAN family read them."""

from functools import cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

FLOOR = 1e-5  # of a magnitude


@cache
def _filters(size: int, bands: int, rate: int) -> Tensor:
    bank = mel_filter_bank(size // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank).float()


def log_mel(sounds: Tensor, rate: int, hop: int, bands: int, size: int) -> Tensor:
    """The logarithm of magnitudes in mel bands, as in Tacotron 2 (Shen et al. 2017, arXiv 1712.05884).

    Args:
        sounds: Sounds (B, samples) in [-1, 1].
        rate: Samples per second.
        hop: Samples from one frame to the next.
        bands: Mel bands, from 0 to rate / 2.
        size: Samples of one frame, under a Hann window.

    Returns:
        (B, samples // hop, bands).
    """
    window = torch.hann_window(size, device=sounds.device)
    spectrum = torch.stft(sounds.float(), size, hop, window=window, pad_mode="reflect", return_complex=True).abs()
    mel = spectrum.mT[:, : sounds.shape[1] // hop] @ _filters(size, bands, rate).to(sounds.device)
    return mel.clamp_min(FLOOR).log()
