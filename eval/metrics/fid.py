"""The Frechet distance between two sets of features, each taken for a Gaussian.

    d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1^{1/2} S2 S1^{1/2})^{1/2})

Source: Heusel et al., "GANs trained by a two time-scale update rule" (arXiv 1706.08500), equation 6, where the last
trace is written tr((S1 S2)^{1/2}); the products have the same eigenvalues, and so has L^T S2 L for any S1 = L L^T. So
eigenvalues of one symmetric matrix are enough: several times faster than a matrix square root, and a covariance that
lacks rank (fewer samples than features) is no trouble. Everything here runs in float64.
"""

import torch
from torch import Tensor


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) -> their mean (D,) and unbiased covariance (D, D), both float64 on the CPU.

    Raises ValueError for fewer than two samples, another shape, or values that are not finite.
    """
    if features.ndim != 2:
        raise ValueError(
            f"features have the shape (samples, dimensions), not {tuple(features.shape)}; flatten each image's to a row"
        )
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least two samples, and there is {len(features)}; draw more samples")
    features = finite(features)
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def finite(features: Tensor) -> Tensor:
    """Features (N, D) in float64 on the CPU. Raises ValueError where some are NaN or infinite."""
    features = features.detach().cpu().double()
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(features)} samples have features that are NaN or infinite; "
            "the pipeline produced broken images, so try float32 or look at its training"
        )
    return features


class FrechetTo:
    """Distances to one set of statistics: mean (D,) and covariance (D, D), which is factorised once."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        """Raises ValueError where the shapes do not go together or a value is not finite."""
        self.mean, self.covariance = _checked(mean, covariance)
        self._factor, failed = torch.linalg.cholesky_ex(self.covariance)
        if failed:  # it lacks rank; rounding's tiny negative eigenvalues count as zero
            values, vectors = torch.linalg.eigh((self.covariance + self.covariance.T) / 2)
            self._factor = vectors * values.clamp(min=0).sqrt()

    def distance(self, mean: Tensor, covariance: Tensor) -> float:
        """The Frechet distance (squared, as everybody reports it) to N(mean, covariance)."""
        mean, covariance = self._alike(mean, covariance)
        cross = torch.linalg.eigvalsh(self._inner(covariance)).clamp(min=0).sqrt().sum()
        distance = (mean - self.mean).square().sum() + covariance.trace() + self.covariance.trace() - 2 * cross
        return max(0.0, distance.item())  # rounding can leave -1e-12 for identical sets

    def influence(self, features: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """How much each of the samples (N, D), whose statistics are given, moves the distance: (N,), of mean zero.

        The derivative of the distance in the direction of one sample more (Jaeckel's infinitesimal jackknife, which the
        bootstrap becomes to first order): std / sqrt(N) is the distance's standard error, and differences between two
        sets of samples of the same noise are compared pair by pair. With A = L (L^T S L)^{-1/2} L^T, L L^T the
        reference's covariance and y = x - mean, it is 2 (mean - mean_ref) . y + y (I - A) y - tr((I - A) S). It takes
        more samples than dimensions.
        """
        mean, covariance = self._alike(mean, covariance)
        values, vectors = torch.linalg.eigh(self._inner(covariance))
        inverse = torch.where(values > values.max() * 1e-12, values.clamp(min=0).rsqrt(), 0)
        turned = self._factor @ (vectors * inverse.sqrt())  # A = turned turned^T
        offloaded = finite(features) - mean
        quadratic = offloaded.square().sum(dim=1) - (offloaded @ turned).square().sum(dim=1)
        first = 2 * offloaded @ (mean - self.mean) + quadratic
        return first - first.mean()

    def _inner(self, covariance: Tensor) -> Tensor:
        inner = self._factor.T @ covariance @ self._factor
        return (inner + inner.T) / 2

    def _alike(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        mean, covariance = _checked(mean, covariance)
        if mean.shape != self.mean.shape:
            raise ValueError(
                f"the two sets of statistics have {mean.numel()} and {self.mean.numel()} dimensions; "
                "compute both with the same feature extractor"
            )
        return mean, covariance


def _checked(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    mean, covariance = mean.detach().cpu().double(), covariance.detach().cpu().double()
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"a mean (D,) goes with a covariance (D, D), not {tuple(mean.shape)} with {tuple(covariance.shape)}"
        )
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("the statistics hold NaN or infinite values; compute them again from finite features")
    return mean, covariance


def frechet_from_statistics(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The Frechet distance between N(mean1, covariance1) and N(mean2, covariance2).

    Means are (D,), covariances (D, D). Raises ValueError where the dimensions differ or a value is not finite.
    """
    return FrechetTo(mean2, covariance2).distance(mean1, covariance1)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """The Frechet distance between two sets of features (N, D) and (M, D); N and M may differ.

    Raises ValueError for fewer than two samples, different D, or values that are not finite.
    """
    return frechet_from_statistics(*statistics(features_a), *statistics(features_b))
