"""Speed of clips and sounds: how many are generated per second, and how much faster than they are played."""

from dataclasses import dataclass

from teachers.media import Medium


@dataclass(frozen=True)
class Speed:
    """The speed of a pipeline.

    Attributes:
        per_second: Samples per second in batches.
        times_real_time: Seconds of media that are generated per second; None for images.
        first_sample: Seconds until the first sample of a single call is complete.
    """

    per_second: float
    times_real_time: float | None
    first_sample: float


def speed(medium: Medium, latency: float, per_second: float) -> Speed:
    """The speed of a pipeline, from what was measured.

    Args:
        medium: The medium of the samples.
        latency: Seconds of a call for one sample, warmed up.
        per_second: Samples per second of calls for a batch.

    Raises:
        ValueError: If a measurement is not positive.
    """
    if not (latency > 0 and per_second > 0):
        raise ValueError(f"latency and samples per second must be positive, got {latency} s and {per_second}")
    return Speed(per_second, times_real_time(medium, latency), latency)


def times_real_time(medium: Medium, latency: float) -> float | None:
    """Seconds of media in one sample over the seconds that a call for it takes; None for images."""
    return None if medium.seconds is None else medium.seconds / latency
