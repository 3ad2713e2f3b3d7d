"""Judges of the pocket audio teacher's sounds: pitch by arithmetic, and the instrument by a small network.

The network was trained on real notes by `benchmarks.pocket.audio.make`. Its 64 penultimate features serve Frechet
distances; metrics that use it have "pocket-audio" in their name.
"""

import torch
from torch import Tensor, nn

from teachers.media import pitch as harmonic_sum
from teachers.networks.judges import block
from teachers.pocket_audio.captions import INSTRUMENTS, LOWEST, NOTES
from teachers.pocket_audio.parts import RATE, SAMPLES

FEATURES = 64  # dimension of the features


def pitch(audio: Tensor) -> Tensor:
    """The note of each sound by the harmonic sum of its spectrum.

    Args:
        audio: Waveforms, (B, 1, samples) at 4 kHz.

    Returns:
        Indices into `NOTES`, (B,). Silence gives 0.
    """
    return (harmonic_sum.pitch(audio, RATE, LOWEST, len(NOTES)) - LOWEST).clamp(min=0)


class InstrumentJudge(nn.Module):
    """Classifies sounds (B, 1, 4096) in [-1, 1] into ten instruments.

    It has a second head for the note, so that the features depend on the pitch too; agreement uses `pitch` instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(1, 16), block(16, 32), block(32, 48), block(48, 48))
        self.project = nn.Linear(48 * 8, FEATURES)
        self.instrument = nn.Linear(FEATURES, len(INSTRUMENTS))
        self.note = nn.Linear(FEATURES, len(NOTES))

    @staticmethod
    def spectrogram(audio: Tensor) -> Tensor:
        """Log-amplitudes of waveforms (B, 1, 4096), (B, 1, 128, 64), about in [-2, 2]."""
        taper = torch.hann_window(256, device=audio.device)
        amplitude = torch.stft(audio[:, 0], 256, 64, window=taper, return_complex=True).abs() * (2 / taper.sum())
        return ((amplitude[:, None, :128, :64] + 3e-3).log() + 4) / 2

    def features(self, audio: Tensor) -> Tensor:
        """Penultimate features.

        Args:
            audio: Waveforms in [-1, 1], (B, 1, 4096).

        Returns:
            Features, (B, 64).

        Raises:
            ValueError: If the waveforms have another shape.
        """
        if audio.shape[1:] != (1, SAMPLES):
            raise ValueError(
                f"the pocket audio judge takes waveforms of shape (1, {SAMPLES}), got {tuple(audio.shape[1:])}; "
                "choose other features (--features)"
            )
        return torch.relu(self.project(self.body(self.spectrogram(audio.float())).mean(dim=3).flatten(1)))

    def forward(self, audio: Tensor) -> Tensor:
        """Logits of the instruments, (B, 10), of waveforms (B, 1, 4096)."""
        logits: Tensor = self.instrument(self.features(audio))
        return logits
