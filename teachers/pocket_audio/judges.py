"""Judges of the pocket audio teacher's sounds: pitch by arithmetic, and the instrument by a small network.

The network was trained on real notes by `benchmarks.pocket.audio.make`. Its 64 penultimate features serve Frechet
distances; metrics that use it have "pocket-audio" in their name.
"""

import torch
from torch import Tensor, nn

from teachers.pocket_audio.captions import INSTRUMENTS, LOWEST, NOTES
from teachers.pocket_audio.parts import RATE, SAMPLES

FEATURES = 64  # dimension of the features
HARMONICS = 8
DECAY = 0.7  # weight of a harmonic relative to the one below it
BETWEEN = ((1 / 2, 0.5), (1 / 3, 0.4), (2 / 3, 0.4))  # positions between two harmonics, and weights that count against
COMPRESSION = 0.4  # exponent of the amplitudes, so that one strong harmonic does not decide
TUNINGS = range(-50, 51, 5)  # cents by which a note may be out of tune
TRANSFORM = 2**15  # samples of the zero-padded transform: bins of 0.12 Hz


def pitch(audio: Tensor) -> Tensor:
    """The note of each sound by the harmonic sum of its spectrum.

    The score of a fundamental frequency f is the sum over k of 0.7^(k - 1) times A(k f) less a share of A between the
    harmonics, where A is the compressed amplitude spectrum of the whole sound. Amplitudes between the harmonics count
    against f, because a note an octave or a twelfth lower has harmonics there. The score of a note is the highest of 21
    tunings.

    Args:
        audio: Waveforms, (B, 1, samples) at 4 kHz.

    Returns:
        Indices into `NOTES`, (B,). Silence gives 0.
    """
    mono = audio.mean(1).float()
    taper = torch.hann_window(mono.shape[-1], device=mono.device)
    amplitude = torch.fft.rfft(mono * taper, TRANSFORM).abs() ** COMPRESSION
    keys = LOWEST + torch.arange(len(NOTES), dtype=torch.float64)[:, None] + torch.tensor(TUNINGS) / 100
    fundamental = 440 * 2 ** ((keys - 69) / 12)
    score = amplitude.new_zeros(len(audio), *fundamental.shape)
    for k in range(1, HARMONICS + 1):
        for below, weight in ((0.0, 1.0), *((below, -weight) for below, weight in BETWEEN)):
            frequency = fundamental * (k - below)
            bins = (frequency * TRANSFORM / RATE).round().long().clamp(max=TRANSFORM // 2).to(audio.device)
            audible = (frequency < 0.48 * RATE).to(amplitude)
            score += weight * DECAY ** (k - 1) * amplitude[:, bins] * audible
    return score.amax(dim=2).argmax(dim=1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class InstrumentJudge(nn.Module):
    """Classifies sounds (B, 1, 4096) in [-1, 1] into ten instruments.

    It has a second head for the note, so that the features depend on the pitch too; agreement uses `pitch` instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(1, 16), _block(16, 32), _block(32, 48), _block(48, 48))
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
                "choose another feature extractor for this pipeline"
            )
        return torch.relu(self.project(self.body(self.spectrogram(audio.float())).mean(dim=3).flatten(1)))

    def forward(self, audio: Tensor) -> Tensor:
        """Logits of the instruments, (B, 10), of waveforms (B, 1, 4096)."""
        logits: Tensor = self.instrument(self.features(audio))
        return logits
