"""`Medium`: the kind and the size of a teacher's decoded samples.

Everything outside a teacher's network that depends on whether a sample is an image, a clip or a sound asks its medium.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """A file as one sample.

    Attributes:
        values: The sample (*shape) in [-1, 1], as `Teacher.encode` takes it.
        notes: What was converted, each as the rest of a sentence that begins with "N files", such as "have two
            channels, which are averaged".
    """

    values: Tensor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Playable:
    """A sample as a file that browsers show or play.

    Attributes:
        mime: The type of the file, such as "image/webp".
        data: Its contents.
        width: The width in pixels; 0 for sounds.
        height: The height in pixels; 0 for sounds.
    """

    mime: str
    data: bytes
    width: int = 0
    height: int = 0


class Medium(ABC):
    """The kind and the size of a decoded sample. Media are frozen dataclasses: equal if kind and size are equal.

    A sample has two ranges. Teachers encode and decode values in [-1, 1]. Metrics and reports use the judged range:
    [0, 1] for images and clips, [-1, 1] for sounds.

    Attributes:
        name: "image", "video" or "audio".
        noun: The word for one sample in messages: "image", "clip" or "sound".
        plural: The word for several samples in messages: "images", "clips" or "sounds".
        output: The field of a diffusers pipeline's output that holds the samples.
        tag: The Hub's pipeline_tag for models that make such samples from text.
        endings: The endings of files that `read` takes, in lower case.
        save_endings: The endings of files that `save` writes, in lower case.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    plural: ClassVar[str]
    output: ClassVar[str]
    tag: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    save_endings: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (3, H, W), (3, F, H, W) or (channels, samples)."""

    @property
    def seconds(self) -> float | None:
        """The duration of one sample in seconds; None for images."""
        return None

    @property
    @abstractmethod
    def size(self) -> str:
        """The size of a sample in words."""

    @abstractmethod
    def received(self, output: Any) -> Tensor:
        """The samples of a diffusers pipeline's output, (B, *shape) in the judged range, float32.

        Args:
            output: The samples, an object with the field `output`, or a tuple that begins with them.

        Raises:
            ValueError: If the output contains no such samples.
        """

    @abstractmethod
    def read(self, source: Path | bytes, name: str | None = None) -> Reading:
        """Read one file as a sample in [-1, 1].

        Args:
            source: A file, or the contents of one.
            name: Its name in messages; None: its path.

        Raises:
            ValueError: If the file cannot be used; the message names it.
        """

    @classmethod
    def lists(cls, file: Path) -> bool:
        """Whether a file with this name is read from a folder, by its ending."""
        return file.suffix.lower() in cls.endings

    @classmethod
    def check(cls, file: Path) -> None:
        """Find damaged files of a folder before training, where that is fast; others are found when they are encoded.

        Raises:
            ValueError: If the file cannot be used; the message names it.
        """
        return

    @abstractmethod
    def judged(self, decoded: Tensor) -> Tensor:
        """Decoded values in [-1, 1], about, in the judged range; NaN remains NaN."""

    @abstractmethod
    def still(self, sample: Tensor) -> Tensor:
        """One sample (*shape) in the judged range as a picture (3, h, w) in [0, 1]."""

    @abstractmethod
    def playable(self, samples: Tensor) -> list[Playable]:
        """Samples (B, *shape) in the judged range as files that browsers show or play, one for each sample."""

    @abstractmethod
    def save(self, samples: Tensor, file: Path, columns: int | None = None) -> list[Path]:
        """Write samples (B, *shape) in the judged range to disk.

        Args:
            samples: The samples.
            file: The file. Its ending, one of `save_endings`, selects the format.
            columns: Images or clips in each row of the file's grid; None: as many as rows.

        Returns:
            The files that were written. Images and clips are one grid in one file; each sound is a file of its own,
            numbered if there are several.

        Raises:
            ValueError: If the ending is not one of `save_endings`.
        """

    def check_shape(self, samples: Tensor) -> None:
        """Check that samples have the shape (B, *shape).

        Raises:
            ValueError: If they have another shape.
        """
        if tuple(samples.shape[1:]) != self.shape:
            shape = ", ".join(map(str, self.shape))
            raise ValueError(f"{self.plural} must have the shape (B, {shape}), got {tuple(samples.shape)}")

    def check_ending(self, file: Path) -> str:
        """The ending of a file that `save` writes, in lower case.

        Raises:
            ValueError: If it is not one of `save_endings`.
        """
        ending = file.suffix.lower()
        if ending not in self.save_endings:
            *others, last = self.save_endings
            allowed = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"a file of {self.plural} must end in {allowed}, got {file}")
        return ending
