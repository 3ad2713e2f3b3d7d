"""VGGish, the network of the first Frechet audio distance: a VGG network on log-mel spectrograms.

Sources: Hershey et al., "CNN architectures for large-scale audio classification" (arXiv 1609.09430), and the published
parameters of its release; FAD: Kilgour et al. (arXiv 1812.08466). The embeddings are those before the last activation
and before principal components.

The parameters have the names of the widely used PyTorch port ("features.0.weight" to "embeddings.4.bias"). The weights
are not part of this package. The architecture was checked for its shapes and its number of parameters only, with random
weights: values of FAD-vggish were not compared with those of another implementation.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.features.weight_files import load_weights
from teachers.media.resampling import resample

RATE = 16000
WINDOW, HOP, TRANSFORM = 400, 160, 512  # samples: 25 ms every 10 ms
BANDS, LOWEST, HIGHEST = 64, 125.0, 7500.0  # of the mel filters, in Hz
OFFSET = 0.01  # added to amplitudes before the logarithm
COLUMNS = 96  # of one example: 0.96 s
CHANNELS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")
BATCH = 64  # examples at a time


class VGGish(nn.Module):
    """Embeddings (B, 128) of log-mel spectrograms (B, 1, 96, 64)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for channels in CHANNELS:
            if isinstance(channels, int):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
                inputs = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, spectrograms: Tensor) -> Tensor:
        maps = self.features(spectrograms)
        embeddings: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order of axes
        return embeddings


def mel_filters() -> Tensor:
    """Triangular filters (64, 257) that are linear in mel = 1127 ln(1 + f / 700); the first bin is not used."""
    frequencies = torch.linspace(0, RATE / 2, TRANSFORM // 2 + 1, dtype=torch.float64)
    mel = 1127 * torch.log(1 + frequencies / 700)
    low, high = (1127 * math.log(1 + edge / 700) for edge in (LOWEST, HIGHEST))
    edges = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    weights[:, 0] = 0
    return weights.float()


def examples(sounds: Tensor) -> Tensor:
    """Log-mel spectrograms of successive windows of 0.96 s.

    Args:
        sounds: Mono sounds (B, samples) at 16 kHz; those shorter than a window are padded with silence.

    Returns:
        The examples (B, N, 1, 96, 64). What is left after the last whole window is not used.
    """
    needed = WINDOW + HOP * (COLUMNS - 1)
    padded = F.pad(sounds, (0, max(0, needed - sounds.shape[-1])))
    taper = torch.hann_window(WINDOW, device=sounds.device)
    frames = padded.unfold(-1, WINDOW, HOP) * taper  # (B, columns, 400)
    amplitude = torch.fft.rfft(frames, TRANSFORM).abs()
    log_mel = (amplitude @ mel_filters().to(amplitude).T + OFFSET).log()
    count = log_mel.shape[1] // COLUMNS
    return log_mel[:, : count * COLUMNS].unflatten(1, (count, COLUMNS))[:, :, None]


def vggish_features(weights: Path, rate: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load VGGish as a feature function.

    Args:
        weights: A file with the state of the network.
        rate: Samples per second of the sounds.
        device: The network's device.

    Returns:
        A function from sounds (B, channels, samples) to embeddings (B, 128), averaged over the windows of each sound.

    Raises:
        ValueError: If the file has other weights.
    """
    with torch.device("meta"):
        network = VGGish()
    network = load_weights(network, weights, "VGGish").to(device)

    def features(sounds: Tensor) -> Tensor:
        mono = resample(sounds.mean(dim=1).cpu(), rate, RATE)
        windows = examples(mono.to(device))
        embeddings = torch.cat([network(part) for part in windows.flatten(0, 1).split(BATCH)])
        return embeddings.unflatten(0, windows.shape[:2]).mean(dim=1)

    return features
