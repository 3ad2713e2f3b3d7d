"""Media: what a decoded sample is (image, video or sound), and how it is read, shown, played and written."""

from teachers.media.audio import Audio
from teachers.media.image import Image
from teachers.media.medium import Medium, Playable, Reading
from teachers.media.record import ANY_IMAGE, MEDIA, from_record, to_record
from teachers.media.video import Video

__all__ = ["ANY_IMAGE", "MEDIA", "Audio", "Image", "Medium", "Playable", "Reading", "Video", "from_record", "to_record"]
