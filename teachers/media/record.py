"""A medium as a JSON object, as distill.json and report.json have it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from teachers.media.audio import Audio
from teachers.media.image import Image
from teachers.media.medium import Medium
from teachers.media.video import Video

ANY_IMAGE = Image(0, 0)  # images of any size, where only their kind matters
MEDIA: dict[str, type[Medium]] = {kind.name: kind for kind in (Image, Video, Audio)}
# The largest numbers of a size.
MOST = {
    "frames": 2**16,
    "seconds": 2**16,
    "height": 2**15,
    "width": 2**15,
    "rate": 2**20,
    "channels": 2,
    "samples": 2**30,
}


def to_record(medium: Medium) -> dict[str, Any]:
    """The name of a medium and the numbers of its size."""
    return {"name": medium.name, **dataclasses.asdict(medium)}  # type: ignore[call-overload]


def from_record(stored: Any) -> Medium:
    """The medium of a result of `to_record`, which may come from a stranger; None stands for images of any size.

    Raises:
        ValueError: If it does not describe a medium.
    """
    if stored is None:
        return ANY_IMAGE
    kind = MEDIA.get(str(stored.get("name"))) if isinstance(stored, Mapping) else None
    if kind is None:
        raise ValueError(f'"medium" must be an object with the name {", ".join(MEDIA)}')
    fields = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in fields:
        value, whole = stored.get(name), name != "rate" or kind is Audio
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError(f'"medium" must have the number "{name}"')
        if not 0 < value <= MOST[name]:
            raise ValueError(f'"{name}" of "medium" must be above 0 and at most {MOST[name]}')
    return kind(**{name: stored[name] for name in fields})
