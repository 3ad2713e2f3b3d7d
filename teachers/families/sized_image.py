"""`SizedImage`: networks of images whose size is an argument of the pipeline's call."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from teachers.families.fixed_start import FixedStart
from teachers.families.packing import unpack
from teachers.families.sample_size import check_sides


class SizedImage(FixedStart):
    """A frozen pipeline of images whose files do not state their size. Most transformers take tokens of 2 x 2 patches.

    Args:
        pipeline: A pipeline of one of the classes in `pipelines`; its networks are frozen.
        sigma_data: Standard deviation of the native latents.
        size: Height and width of an image in pixels. Keys that are missing have the pipeline's default.

    Attributes:
        patch: Latent pixels of one token, along one side.
        network_patch: The `patch_size` of the network that the pipeline assumes; None: any.
        fixed_factor: Pixels of a latent pixel, along one side, that the pipeline assumes; None: its autoencoder's.
        size: Height and width of an image in pixels.

    Raises:
        ValueError: If the pipeline cannot make images of that size, its autoencoder or network has another
            compression or other patches than it assumes.
    """

    size_keys: ClassVar[tuple[str, ...]] = ("height", "width")
    passes_sigmas: ClassVar[bool] = True
    takes_variance_preserving: ClassVar[bool] = False
    refuses_steps: ClassVar[bool] = False
    patch: ClassVar[int] = 2
    network_patch: ClassVar[int | None] = None
    fixed_factor: ClassVar[int | None] = None

    def __init__(self, pipeline: Any, sigma_data: float = 1.0, size: Mapping[str, float] | None = None) -> None:
        self.stock, name = pipeline, type(pipeline).__name__
        if self.network_patch is not None and (patch := self.network_config().patch_size) != self.network_patch:
            raise ValueError(f"patch_size of the {self.network} of {name} must be {self.network_patch}, got {patch}")
        found = dict.fromkeys(self.size_keys, self.default_side()) | dict(size or {})
        for key, value in found.items():
            if int(value) != value:
                raise ValueError(f"teacher.size.{key} must be a whole number, got {value}")
        self.size = {key: int(value) for key, value in found.items()}
        if self.fixed_factor not in (None, self.compression()):
            raise ValueError(
                f"the {self.autoencoder} of a {name} must have {self.fixed_factor} pixels for each latent pixel, got "
                f"{self.compression()}"
            )
        check_sides(self.size, self.side_unit())
        most = self.largest_side()
        for key, value in self.size.items():
            if most is not None and value > most:
                raise ValueError(
                    f"teacher.size.{key} must be at most {most}, for which there are positions of tokens, got {value}"
                )
        super().__init__(pipeline, sigma_data)

    def default_side(self) -> int:
        """Height and width of an image in pixels, if the pipeline's call has neither."""
        return int(self.stock.default_sample_size * self.stock.vae_scale_factor)

    def side_unit(self) -> int:
        """Pixels of which the height and width of an image are multiples."""
        return self.compression() * self.patch

    def largest_side(self) -> int | None:
        """The largest height and width of an image in pixels; None if positions of tokens do not limit them."""
        return None

    def latent_shape(self) -> tuple[int, ...]:
        height, width = (self.size[key] // self.compression() for key in ("height", "width"))
        return int(self.network_config().in_channels) // self.patch**2, height, width

    def _check_channels(self) -> None:
        super()._check_channels()
        config = self.network_config()
        if (config.get("out_channels") or config.in_channels) != config.in_channels:
            raise ValueError(
                f"out_channels of the {self.network} must be {config.in_channels}, without a learned variance, got "
                f"{config.out_channels}"
            )

    def tokens(self) -> int:
        return int(self.shape[1] * self.shape[2] // self.patch**2)

    def unpack(self, native: Tensor) -> Tensor:
        return unpack(native, *self.shape[1:])

    def size_call(self) -> dict[str, Any]:
        return {} if set(self.size.values()) == {self.default_side()} else dict(self.size)
