"""The Frechet distance between two sets of features, each modelled as a Gaussian.

    d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1^{1/2} S2 S1^{1/2})^{1/2})

Source: Heusel et al., "GANs trained by a two time-scale update rule" (arXiv 1706.08500), equation 6, where the last
trace is written tr((S1 S2)^{1/2}). S1 S2, S1^{1/2} S2 S1^{1/2} and L^T S2 L (for any S1 = L L^T) have the same
eigenvalues. The eigenvalues of one symmetric matrix are therefore sufficient, which is several times faster than a
matrix square root and also works for a covariance without full rank (fewer samples than features). All computations
use float64.
"""

import math

import torch
from torch import Tensor

from eval.metrics.base import EVERY_MEDIUM, Figure, Metric
from eval.metrics.context import MetricContext, Row
from eval.metrics.intervals import interval, standard_error

LARGEST = 1e100  # of the values of a mean or a covariance


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and covariance of a set of features.

    Args:
        features: Features (N, D), N at least 2.

    Returns:
        The mean (D,) and the unbiased covariance (D, D), both float64 on the CPU.

    Raises:
        ValueError: For another shape, fewer than two samples, or values that are not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have the shape (samples, dimensions), got {tuple(features.shape)}")
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least two samples, got {len(features)}")
    features = finite(features)
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def finite(features: Tensor) -> Tensor:
    """Features (N, D) in float64 on the CPU. Raises ValueError if some are complex, NaN or infinite."""
    if features.is_complex():
        raise ValueError(f"features must be real, got {features.dtype}")
    features = features.detach().cpu().double()
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(features)} samples have features that are NaN or infinite; "
            "the pipeline generated broken images, try --precision float32 or check its training"
        )
    return features


def rounding(values: Tensor) -> float:
    """How far below zero eigenvalues (D,) of a covariance can be by rounding to single precision.

    Rounding of each entry moves the eigenvalues of a (D, D) matrix by at most about eps sqrt(D) times the largest one.
    Covariances that programs computed or stored in float32 have such errors, also when they are read as float64.
    """
    largest = float(values.abs().max()) if len(values) else 0.0
    return 4 * torch.finfo(torch.float32).eps * math.sqrt(len(values)) * largest


def nonnegative(values: Tensor, name: str) -> Tensor:
    """Eigenvalues (D,) of a covariance with zero for those that are negative by rounding.

    Args:
        values: The eigenvalues.
        name: What error messages call the covariance.

    Raises:
        ValueError: If one of them is negative beyond rounding.
    """
    least = float(values.min()) if len(values) else 0.0
    if least < -rounding(values):
        raise ValueError(
            f"{name} must have no negative eigenvalues, because it is a covariance, got {least:.3g} next to a "
            f"largest of {float(values.max()):.3g}"
        )
    return values.clamp(min=0)


def check_statistics(mean: Tensor, covariance: Tensor, names: tuple[str, str] = ("mean", "covariance")) -> None:
    """Check that a mean and a covariance can be those of features.

    Args:
        mean: Mean (D,).
        covariance: Covariance (D, D).
        names: What error messages call them.

    Raises:
        ValueError: If the shapes do not fit together, a value is not finite, or the covariance is not symmetric or has
            negative eigenvalues beyond rounding.
    """
    one, two = names
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise ValueError(
            f"{one} and {two} must have the shapes (D,) and (D, D), got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    for name, array in ((one, mean), (two, covariance)):
        if array.is_complex():
            raise ValueError(f"{name} must be real, got {array.dtype}")
        if not bool(array.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        if float(array.abs().max()) > LARGEST:  # squares and products of such values would be infinite
            raise ValueError(f"{name} must be at most {LARGEST:g} in size, got {float(array.abs().max()):g}")
    covariance = covariance.detach().cpu().double()
    largest = float(covariance.abs().max())
    apart = float((covariance - covariance.T).abs().max())
    if apart > 1e-5 * largest:
        raise ValueError(
            f"{two} must be symmetric, because it is a covariance, got entries that differ by {apart:.3g} "
            f"next to a largest of {largest:.3g}"
        )
    if torch.linalg.cholesky_ex(covariance)[1]:  # not positive definite: without full rank, or no covariance at all
        nonnegative(torch.linalg.eigvalsh((covariance + covariance.T) / 2), two)


class FrechetTo:
    """Frechet distances to one Gaussian, whose covariance is factorized once."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        """
        Args:
            mean: Mean (D,).
            covariance: Covariance (D, D).

        Raises:
            ValueError: If they cannot be a mean and a covariance; see `check_statistics`.
        """
        check_statistics(mean, covariance)
        self.mean, covariance = mean.detach().cpu().double(), covariance.detach().cpu().double()
        self.covariance = (covariance + covariance.T) / 2
        self._factor, failed = torch.linalg.cholesky_ex(self.covariance)
        if failed:  # not full rank; small negative eigenvalues from rounding count as zero
            values, vectors = torch.linalg.eigh(self.covariance)
            self._factor = vectors * nonnegative(values, "covariance").sqrt()

    def distance(self, mean: Tensor, covariance: Tensor) -> float:
        """The squared Frechet distance d^2 to N(mean, covariance), which is what papers report as FID.

        Raises:
            ValueError: If the dimensions differ, or they cannot be a mean and a covariance; see `check_statistics`.
        """
        mean, covariance = self._same_dimensions(mean, covariance)
        check_statistics(mean, covariance)
        cross = nonnegative(torch.linalg.eigvalsh(self._inner(covariance)), "covariance").sqrt().sum()
        distance = (mean - self.mean).square().sum() + covariance.trace() + self.covariance.trace() - 2 * cross
        return max(0.0, float(distance))  # rounding can give -1e-12 for identical sets

    def influence(self, features: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """The influence function of the distance at each sample.

        It is the derivative of the distance when the weight of one sample grows (Jaeckel, "The infinitesimal
        jackknife", 1972). std / sqrt(N) is the standard error of the distance, equal to the bootstrap's to first
        order. With the covariance S of the samples, L L^T the reference's, A = L (L^T S L)^{-1/2} L^T and
        y = x - mean:

            2 (mean - mean_ref) . y + y (I - A) y - tr((I - A) S)

        Args:
            features: The samples' features (N, D), N larger than D.
            mean: Their mean (D,).
            covariance: Their covariance (D, D).

        Returns:
            The influence of each sample (N,), with mean zero.
        """
        mean, covariance = self._same_dimensions(mean, covariance)
        values, vectors = torch.linalg.eigh(self._inner(covariance))
        inverse = torch.where(values > values.max() * 1e-12, values.clamp(min=0).rsqrt(), 0)
        root = self._factor @ (vectors * inverse.sqrt())  # A = root root^T
        centred = finite(features) - mean
        quadratic = centred.square().sum(dim=1) - (centred @ root).square().sum(dim=1)
        influence: Tensor = 2 * centred @ (mean - self.mean) + quadratic
        return influence - influence.mean()

    def _inner(self, covariance: Tensor) -> Tensor:
        inner: Tensor = self._factor.T @ covariance @ self._factor
        return (inner + inner.T) / 2

    def _same_dimensions(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        mean, covariance = mean.detach().cpu().double(), covariance.detach().cpu().double()
        if mean.shape != self.mean.shape or covariance.shape != self.covariance.shape:
            raise ValueError(
                f"the two sets of statistics have {mean.numel()} and {self.mean.numel()} dimensions; "
                "compute both with the same feature extractor"
            )
        return mean, covariance


def frechet_from_statistics(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The squared Frechet distance between N(mean1, covariance1) and N(mean2, covariance2).

    Args:
        mean1: Mean (D,).
        covariance1: Covariance (D, D).
        mean2: Mean (D,).
        covariance2: Covariance (D, D).

    Raises:
        ValueError: If the dimensions differ or a value is not finite.
    """
    return FrechetTo(mean2, covariance2).distance(mean1, covariance1)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """The squared Frechet distance between two sets of features (N, D) and (M, D).

    Raises:
        ValueError: For fewer than two samples, different D, or values that are not finite.
    """
    return frechet_from_statistics(*statistics(features_a), *statistics(features_b))


class FrechetDistance(Metric):
    """The Frechet distance to the reference, its ratio to the baseline's, and ties with the lowest."""

    key = "frechet_distance"
    heading = "Frechet distance"
    help = "Lower is better."
    higher_is_better = False
    media = EVERY_MEDIUM
    needs = frozenset({"features", "reference"})
    position = 10
    marks_best = True
    interval_key, best_key, ratio_key = "frechet_interval", "best", "frechet_ratio"

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.heading = context.extractor.figure(context.samples, context.dimensions)
        if context.reference is None:
            self.heading += ", to the teacher's own samples"
        self.help = (
            f"Lower is better. Computed from the features “{context.extractor.name}” of {context.samples:,} samples; "
            "do not compare it with distances of other features or sample counts. Below it the 95% interval over the "
            "random samples. Bold: the lowest distance and all that are tied with it in a paired test on equal noise."
        )
        self._target: FrechetTo | None = None

    def compute(self, row: Row) -> Figure:
        """The distance; its interval needs more samples than dimensions."""
        if self._target is None:
            self._target = FrechetTo(row.reference.mean, row.reference.covariance)
        distance = self._target.distance(row.mean, row.covariance)
        if len(row.features) <= row.features.shape[1]:
            return Figure(distance)
        influence = self._target.influence(row.features, row.mean, row.covariance)
        return Figure(distance, interval(distance, standard_error(influence)), influence)
