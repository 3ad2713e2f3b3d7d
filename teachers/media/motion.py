"""The motion of an object by image moments, without a network.

The object is what differs from the background. Its centroid, orientation and size follow from the moments of the
brightness (Hu, "Visual pattern recognition by moment invariants", 1962), and its motion from their trends over time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from teachers.media.pictures import LUMA

MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "turning left",
    "turning right",
    "growing",
    "shrinking",
)
# Changes over a clip that count as equally large: a tenth of a side, 20 degrees, a fifth of the size.
SHIFT_UNIT, TURN_UNIT, GROWTH_UNIT = 0.2, 0.35, 0.2
NOISE = 0.06  # differences from the background that are ignored
ROUND = 0.005  # anisotropy below which an object has no orientation


@dataclass(frozen=True)
class Motion:
    """How an object moves from the first to the last frame of each clip, by linear regression over the frames.

    Attributes:
        right: Shift to the right (B,), in half widths.
        down: Shift downwards (B,), in half heights.
        clockwise: Turn (B,), in radians.
        growth: Logarithm of the ratio of sizes (B,).
    """

    right: Tensor
    down: Tensor
    clockwise: Tensor
    growth: Tensor

    def label(self) -> Tensor:
        """Indices into MOTIONS (B,): the largest of the four in its unit, and its sign; -1 where nothing moves."""
        shift = SHIFT_UNIT
        sizes = torch.stack(
            [self.right / shift, self.down / shift, self.clockwise / TURN_UNIT, self.growth / GROWTH_UNIT], dim=1
        )
        largest = sizes.abs().argmax(dim=1)
        signed = sizes.gather(1, largest[:, None])[:, 0]
        second = (signed > 0).long()
        second = torch.where(largest == 3, 1 - second, second)  # growing is the first of its pair
        return torch.where(signed.abs() < 1e-3, -1, 2 * largest + second)


def foreground(clips: Tensor) -> Tensor:
    """How much each pixel differs from the background, (B, F, H, W), at least 0.

    The background is the median brightness of the border of all frames.
    """
    luma = (clips.float() * torch.tensor(LUMA, device=clips.device)[:, None, None, None]).sum(dim=1)
    border = torch.cat([luma[..., 0, :], luma[..., -1, :], luma[..., :, 0], luma[..., :, -1]], dim=-1)
    background = border.flatten(1).median(dim=1).values
    return ((luma - background[:, None, None, None]).abs() - NOISE).clamp(min=0)


def motion(clips: Tensor) -> Motion:
    """The motion of the object in each clip.

    Args:
        clips: Clips (B, 3, F, H, W) in [0, 1] with an even background.

    Returns:
        The motion, 0 in clips without an object.
    """
    mass = foreground(clips).double()
    height, width = mass.shape[2:]
    x, y = (torch.arange(size, dtype=torch.float64, device=mass.device) for size in (width, height))
    x, y = (2 * x + 1) / width - 1, ((2 * y + 1) / height - 1)[:, None]  # of the pixels' centres
    total = mass.sum(dim=(2, 3)).clamp(min=1e-9)

    def mean(values: Tensor) -> Tensor:
        return (mass * values).sum(dim=(2, 3)) / total

    centre_x, centre_y = mean(x.expand(height, width)), mean(y.expand(height, width))
    dx, dy = x - centre_x[..., None, None], y - centre_y[..., None, None]
    xx, yy, xy = mean(dx.square()), mean(dy.square()), mean(dx * dy)
    size = 0.5 * (xx + yy).clamp(min=1e-9).log()
    spread = (xx - yy).square() + 4 * xy.square()
    orientation = 0.5 * _unwrapped(torch.atan2(2 * xy, xx - yy))  # of the long axis, modulo pi; y points down
    anisotropy = (spread.sqrt() / (xx + yy).clamp(min=1e-9)).mean(dim=1)
    turn = torch.where(anisotropy > ROUND, _change(orientation), torch.zeros_like(anisotropy))
    return Motion(_change(centre_x), _change(centre_y), turn, _change(size))


def motion_labels(clips: Tensor) -> Tensor:
    """Indices into MOTIONS (B,) of the motions in clips (B, 3, F, H, W) in [0, 1]; -1 where nothing moves."""
    return motion(clips).label()


def _unwrapped(angles: Tensor) -> Tensor:
    """Angles (B, F) in radians without jumps of 2 pi."""
    steps = torch.remainder(angles.diff(dim=1) + torch.pi, 2 * torch.pi) - torch.pi
    return torch.cat([angles[:, :1], angles[:, :1] + steps.cumsum(dim=1)], dim=1)


def _change(values: Tensor) -> Tensor:
    """The change of values (B, F) from the first to the last frame along the line that fits them best."""
    frames = values.shape[1]
    time = torch.linspace(-0.5, 0.5, frames, dtype=values.dtype, device=values.device)
    return (values * time).sum(dim=1) / time.square().sum()
