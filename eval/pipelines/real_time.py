"""Speed of clips and sounds: how much faster they are generated than they are played."""

from teachers.media import Medium


def times_real_time(medium: Medium, latency: float) -> float | None:
    """Seconds of media in one sample over the seconds that a call for it takes; None for images.

    Args:
        medium: The medium of the samples.
        latency: Seconds of a call for one sample, warmed up.

    Raises:
        ValueError: If the latency is not positive.
    """
    if not latency > 0:
        raise ValueError(f"the latency must be positive, got {latency} s")
    return None if medium.seconds is None else medium.seconds / latency
