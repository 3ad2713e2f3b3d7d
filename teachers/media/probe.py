"""The medium of a file: the size and the rate of a clip or a sound, for folders without a description."""

import itertools
import statistics
from pathlib import Path

from teachers.media.audio import Audio
from teachers.media.file_problems import Refused, problem
from teachers.media.sound_files import sound_size
from teachers.media.video import Video
from teachers.media.video_decoding import open_clip
from teachers.media.video_files import MAX_FRAMES
from teachers.support.text import printable

MERGED = 1.5  # times the usual duration of a frame, from which a frame stands for several


def clip_of(file: Path) -> Video:
    """All frames of a clip, at their mean rate.

    Animated WebP and GIF files merge equal frames into one that is shown longer; such frames are counted several times.
    A clip that does not change at all has one frame.

    Raises:
        ValueError: If the file is damaged or no clip; the message names it.
    """
    try:
        durations: list[float] = []
        with open_clip(file) as shown:
            for frame in itertools.islice(shown, MAX_FRAMES):
                if not durations:
                    height, width = frame.pixels().shape[1:]
                durations.append(frame.duration)
        usual = statistics.median_low(durations or [0.0])
        if usual <= 0:
            raise Refused("has no frames with a duration")
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(f"{printable(file)} {problem(error, file, 'a clip')}") from error
    total = sum(durations)
    frames = round(total / statistics.fmean(duration for duration in durations if duration <= MERGED * usual))
    return Video(frames, height, width, round(frames / total, 3))


def sound_of(file: Path) -> Audio:
    """A whole sound, at its own rate.

    Raises:
        ValueError: If the file is damaged or no sound; the message names it.
    """
    return Audio(*sound_size(file, str(file)))
