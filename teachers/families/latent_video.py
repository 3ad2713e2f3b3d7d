"""`LatentVideo`: the common code of families with an autoencoder of clips."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from teachers.families.fixed_start import FixedStart
from teachers.families.sample_size import check_sides
from teachers.media import Medium, Video

ARGUMENTS = {"height": "height", "width": "width", "frames": "num_frames", "rate": "frame_rate"}


class LatentVideo(FixedStart):
    """A frozen latent diffusion pipeline of clips. The size of a clip is an argument of the pipeline's call.

    Args:
        pipeline: A pipeline of one of the classes in `pipelines`; its networks are frozen.
        sigma_data: Standard deviation of the native latents.
        size: Height, width and frames of a clip, its rate in frames per second, and other arguments of the pipeline's
            call in `size_keys`. Keys that are missing have the default of the call.

    Attributes:
        usual_rate: Frames per second where the pipeline's call has no such argument.
        size: The values of `size_keys`.

    Raises:
        ValueError: If the pipeline cannot make clips of that size.
    """

    medium_class: ClassVar[type[Medium]] = Video
    size_keys: ClassVar[tuple[str, ...]] = ("height", "width", "frames", "rate")
    usual_rate: ClassVar[float] = 16.0

    def __init__(self, pipeline: Any, sigma_data: float = 1.0, size: Mapping[str, float] | None = None) -> None:
        self.stock = pipeline
        self.size: dict[str, float] = self.default_size() | dict(size or {})
        for key, value in self.size.items():
            if key != "rate" and int(value) != value:
                raise ValueError(f"teacher.size.{key} must be a whole number, got {value}")
            self.size[key] = value if key == "rate" else int(value)
        self._check_size()
        super().__init__(pipeline, sigma_data)

    def default_size(self) -> dict[str, float]:
        """The default of each key in `size_keys`."""
        defaults = inspect.signature(type(self.stock).__call__).parameters
        found = {key: ARGUMENTS.get(key, key) for key in self.size_keys}
        return {"rate": self.usual_rate} | {
            key: defaults[name].default for key, name in found.items() if name in defaults
        }

    def _check_size(self) -> None:
        check_sides(self.size, self.side_unit())
        if (self.size["frames"] - 1) % self.time_compression():
            raise ValueError(
                f"teacher.size.frames must be 1 more than a multiple of {self.time_compression()}, got "
                f"{self.size['frames']}"
            )

    def side_unit(self) -> int:
        """Pixels of which the height and width of a clip are multiples."""
        return math.lcm(8, self.compression() * self.patch()[1])

    @property
    def medium(self) -> Video:
        """Clips of the teacher's size."""
        height, width, frames = (int(self.size[key]) for key in ("height", "width", "frames"))
        return Video(frames=frames, height=height, width=width, rate=float(self.size["rate"]))

    def set_size(self) -> None:
        return

    def patch(self) -> tuple[int, int]:
        """Latent frames and pixels, along one side, of one token."""
        size = self.stock.components[self.network].config.patch_size
        return (1, int(size)) if isinstance(size, int) else (int(size[0]), int(size[-1]))

    def compression(self) -> int:
        return int(self.stock.vae_scale_factor_spatial)

    def time_compression(self) -> int:
        """Frames of a clip for each latent frame after the first."""
        return int(self.stock.vae_scale_factor_temporal)

    def latent_shape(self) -> tuple[int, ...]:
        frames = (int(self.size["frames"]) - 1) // self.time_compression() + 1
        sides = (int(self.size[key]) // self.compression() for key in ("height", "width"))
        return (int(self.stock.components[self.network].config.in_channels), frames, *sides)

    def tokens(self) -> int:
        return math.prod(self.shape[1:]) // math.prod((self.patch()[0], self.patch()[1] ** 2))

    def size_call(self) -> dict[str, Any]:
        parameters = inspect.signature(type(self.stock).__call__).parameters
        named = {ARGUMENTS.get(key, key): value for key, value in self.size.items()}
        return {name: value for name, value in named.items() if name in parameters}
