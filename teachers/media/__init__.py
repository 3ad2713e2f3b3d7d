"""Media: what a decoded sample is (image, video or sound), and how it is read, shown, played and written."""

from teachers.media.audio import Audio
from teachers.media.image import Image
from teachers.media.medium import Medium, Playable, Reading
from teachers.media.video import Video

__all__ = ["Audio", "Image", "Medium", "Playable", "Reading", "Video"]
