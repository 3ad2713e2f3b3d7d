"""Faithfulness: similarity to the teacher's images from the same noise and prompts, as LPIPS and PSNR.

PSNR = -10 log10(MSE) dB for images in [0, 1]
"""

from torch import Tensor

from eval.metrics.base import Figure, Metric
from eval.metrics.context import Row

SMALLEST_ERROR = 1e-10  # mean squared error; caps PSNR at 100 dB


def psnr(one: Tensor, two: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pairs of images (N, 3, H, W) in [0, 1], at most 100 dB each."""
    errors = (one - two).double().square().mean(dim=(1, 2, 3)).clamp(min=SMALLEST_ERROR)
    return (-10 * errors.log10()).mean().item()


def image_pairs(row: Row) -> tuple[Tensor, Tensor] | None:
    """The teacher's images and the row's, equally many (K, 3, H, W); None if there are none to compare with."""
    if row.teacher_images is None:
        return None
    count = min(len(row.teacher_images), len(row.images))
    return row.teacher_images[:count], row.images[:count]


class LpipsToTeacher(Metric):
    """Mean LPIPS to the teacher's images."""

    key = "lpips_to_teacher"
    heading = "LPIPS to teacher"
    help = "Lower is more faithful. Mean LPIPS to the teacher's images from the same noise and prompts (first samples)."
    higher_is_better = False
    needs = frozenset({"images", "teacher_images", "lpips"})
    format = ".3f"
    position = 50
    summary = False

    def compute(self, row: Row) -> Figure | None:
        """The mean, without an interval."""
        pairs = image_pairs(row)
        if pairs is None or self.context.lpips is None:
            return None
        return Figure(self.context.lpips(*pairs).double().mean().item())


class PsnrToTeacher(Metric):
    """Mean PSNR to the teacher's images."""

    key = "psnr_to_teacher"
    heading = "PSNR to teacher (dB)"
    help = "Higher is more faithful. Mean PSNR to the teacher's images from the same noise and prompts (first samples)."
    higher_is_better = True
    needs = frozenset({"images", "teacher_images"})
    position = 51
    summary = False

    def compute(self, row: Row) -> Figure | None:
        """The mean, without an interval."""
        pairs = image_pairs(row)
        return None if pairs is None else Figure(psnr(*pairs))
