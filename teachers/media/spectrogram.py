"""Pictures of sounds: the amplitude of each frequency over time."""

import torch
from torch import Tensor

HEIGHT, WIDTH = 128, 256  # pixels
WINDOW = 0.06  # seconds
RANGE = 80.0  # dB below a sine at full scale that are shown
# Colours from silence to full scale; lightness rises throughout, so the picture reads without colour vision too.
ANCHORS = (
    (10, 10, 26),
    (46, 26, 92),
    (112, 36, 122),
    (188, 58, 100),
    (238, 112, 60),
    (252, 190, 86),
    (255, 248, 216),
)
COLOURS = 64


def colour_table() -> Tensor:
    """The colours (COLOURS, 3) in [0, 1] from silence to full scale."""
    anchors = torch.tensor(ANCHORS).T[None] / 255
    return torch.nn.functional.interpolate(anchors, COLOURS, mode="linear", align_corners=True)[0].T


def log_bands(bands: int, bins: int, rate: float) -> Tensor:
    """Triangular filters that are equally wide on the mel scale, but at least as wide as one bin.

    Args:
        bands: Number of filters.
        bins: Number of frequencies of the transform, from 0 to rate / 2.
        rate: Samples per second.

    Returns:
        Weights (bands, bins), 1 at each filter's centre.
    """
    nyquist = torch.tensor(rate / 2, dtype=torch.float64)
    mel = torch.linspace(0, float(2595 * torch.log10(1 + nyquist / 700)), bands + 2, dtype=torch.float64)
    centres = (700 * (10 ** (mel / 2595) - 1)) / nyquist * (bins - 1)  # in bins
    low, centre, high = centres[:-2, None], centres[1:-1, None], centres[2:, None]
    bin_number = torch.arange(bins, dtype=torch.float64)
    rising = (bin_number - centre) / (centre - low).clamp(min=1)
    falling = (centre - bin_number) / (high - centre).clamp(min=1)
    return (1 + torch.minimum(rising, falling)).clamp(0, 1).float()


def power(sound: Tensor, rate: int, hop: int) -> Tensor:
    """The power of each frequency over time; a sine at full scale has power 1 at its frequency.

    Args:
        sound: Values (..., samples).
        rate: Samples per second.
        hop: Samples from one column to the next.

    Returns:
        Powers (..., bins, columns).
    """
    length = window_length(rate)
    taper = torch.hann_window(length, device=sound.device)
    flat = sound.flatten(0, -2)
    flat = torch.nn.functional.pad(flat, (length // 2, length // 2 + max(0, length - flat.shape[-1])))
    transform = torch.stft(flat, length, hop, window=taper, center=False, return_complex=True)
    return (transform.abs() * (2 / taper.sum())).square().unflatten(0, sound.shape[:-1])


def window_length(rate: int) -> int:
    """Samples of the transform's window: the power of two next to WINDOW seconds, at least 32."""
    return max(32, 2 ** round(torch.tensor(WINDOW * rate).log2().item()))


def spectrogram(sound: Tensor, rate: int) -> Tensor:
    """A picture of a sound: time to the right, frequency upwards on the mel scale, loud is light.

    The colours are fixed: they show the power relative to a sine at full scale, from -80 to 0 dB, so pictures of
    several sounds can be compared. Powers of channels are averaged.

    Args:
        sound: Values (channels, samples) in [-1, 1].
        rate: Samples per second.

    Returns:
        The picture (3, HEIGHT, WIDTH) in [0, 1].
    """
    hop = max(1, min(sound.shape[-1] // WIDTH, window_length(rate) // 2))
    powers = power(sound.float().nan_to_num().clamp(-1, 1), rate, hop).mean(dim=0)
    rows = log_bands(HEIGHT, len(powers), rate).to(powers) @ powers
    columns = torch.nn.functional.adaptive_avg_pool1d(rows, WIDTH) if rows.shape[1] > WIDTH else rows
    level = 10 * columns.clamp(min=1e-12).log10() / RANGE + 1
    picture = colour_table().to(level.device)[(level.clamp(0, 1) * (COLOURS - 1)).round().long()]  # (HEIGHT, n, 3)
    picture = torch.nn.functional.interpolate(picture.permute(2, 0, 1)[None], (HEIGHT, WIDTH), mode="nearest")[0]
    return picture.flip(1)
