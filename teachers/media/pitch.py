"""The pitch of notes by the harmonic sum of their spectrum, without a network.

The score of a fundamental frequency f is the sum over harmonics k of d^(k - 1) A(k f), less a share of the amplitudes
between the harmonics, where A is the compressed amplitude spectrum of the whole sound: a note an octave or a twelfth
lower has harmonics there. Harmonic sums: Hermes, "Measurement of pitch by subharmonic summation" (1988).
"""

import torch
from torch import Tensor

HARMONICS = 8
DECAY = 0.7  # d
BETWEEN = ((1 / 2, 0.5), (1 / 3, 0.4), (2 / 3, 0.4))  # positions below a harmonic, in harmonics, and their shares
COMPRESSION = 0.4  # exponent of the amplitudes, so that one strong harmonic does not decide
TUNINGS = range(-50, 51, 5)  # cents by which a note may be out of tune
RESOLUTION = 0.125  # Hz between two bins of the zero-padded transform, at most
NYQUIST_SHARE = 0.96  # harmonics above this share of half the sample rate are ignored
A4 = 69  # MIDI key of 440 Hz


def pitch(sounds: Tensor, rate: int, lowest: int, count: int) -> Tensor:
    """The note of each sound.

    Args:
        sounds: Waveforms (B, channels, samples) in [-1, 1]; channels are averaged.
        rate: Samples per second.
        lowest: MIDI key of the lowest note that is considered; 60 is C4.
        count: Number of notes from there upwards.

    Returns:
        MIDI keys (B,); -1 for silence.
    """
    mono = sounds.mean(dim=1).float()
    amplitude, size = _spectrum(mono, rate)
    keys = lowest + torch.arange(count, dtype=torch.float64)[:, None] + torch.tensor(TUNINGS) / 100
    fundamental = 440 * 2 ** ((keys - A4) / 12)
    score = amplitude.new_zeros(len(mono), *fundamental.shape)
    for harmonic in range(1, HARMONICS + 1):
        for below, share in ((0.0, 1.0), *((below, -share) for below, share in BETWEEN)):
            frequency = fundamental * (harmonic - below)
            bins = (frequency * size / rate).round().long().clamp(max=size // 2).to(amplitude.device)
            audible = (frequency < NYQUIST_SHARE * rate / 2).to(amplitude)
            score += share * DECAY ** (harmonic - 1) * amplitude[:, bins] * audible
    notes = lowest + score.amax(dim=2).argmax(dim=1)
    return torch.where(mono.abs().amax(dim=1) > 0, notes, -1)


def _spectrum(mono: Tensor, rate: int) -> tuple[Tensor, int]:
    """Compressed amplitudes (B, bins), and the number of samples of the transform."""
    size = 2 ** (max(mono.shape[-1], int(rate / RESOLUTION)) - 1).bit_length()
    taper = torch.hann_window(mono.shape[-1], device=mono.device)
    amplitude: Tensor = torch.fft.rfft(mono * taper, size).abs() ** COMPRESSION
    return amplitude, size
