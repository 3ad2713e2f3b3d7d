"""Ready-made latents of a run, which no encoder has to make: of an embedded teacher, or in memory.

`distill.data.stored_latents` reads those in files.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from distill.data.shards import Table
from teachers.core.teacher import Teacher
from teachers.loading.contents import Contents
from teachers.loading.embedded import Embedded
from teachers.support.keys import content, key


class Latents(ABC):
    """Ready-made latents with captions.

    Attributes:
        title: What they are, in messages and in the run's fingerprint.
        captions: A caption for each latent; "" without captions.
        content_key: A key of their contents.
    """

    title: str
    captions: Sequence[str]
    content_key: str

    @abstractmethod
    def table(self, teacher: Teacher, contents: Contents, device: torch.device) -> Table:
        """The latents of unit variance as "x".

        Args:
            teacher: The run's teacher.
            contents: What the teacher computes with.
            device: The device of the batches.

        Raises:
            ValueError: If they do not fit the teacher.
        """


class EmbeddedLatents(Latents):
    """An embedded teacher's latents of real training samples.

    Args:
        source: The embedded teacher.
        limit: Number of latents that are used, from the first; 0: all.

    Raises:
        ValueError: If their file is missing or damaged.
    """

    def __init__(self, source: Embedded, limit: int = 0) -> None:
        self.title = f"{source.title}'s latents"
        self.values, captions = source.examples()
        self.captions = captions[: limit or None]
        self.content_key = content(source.present("latents.safetensors"))

    def table(self, teacher: Teacher, contents: Contents, device: torch.device) -> Table:
        return Table([{"x": self.values}], device)


class LatentsInMemory(Latents):
    """Latents in memory.

    Args:
        values: Unit-variance latents (N, ...).
        captions: A caption for each.
    """

    title = "the latents"

    def __init__(self, values: Tensor, captions: Sequence[str]) -> None:
        self.values, self.captions, self.content_key = values.float(), captions, key(values)

    def table(self, teacher: Teacher, contents: Contents, device: torch.device) -> Table:
        return Table([{"x": self.values}], device)
