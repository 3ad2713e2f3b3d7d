"""The Frechet distance between two sets of features, each taken for a Gaussian.

    d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1^{1/2} S2 S1^{1/2})^{1/2})

Source: Heusel et al., "GANs trained by a two time-scale update rule" (arXiv 1706.08500), equation 6, where the last
trace is written tr((S1 S2)^{1/2}); the two products have the same eigenvalues. The symmetric form needs eigenvalues
only, so a covariance that lacks rank (fewer samples than features) is no trouble, where a general matrix square root
breaks down. Everything here runs in float64.
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


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root (D, D) of a covariance (D, D); rounding's tiny negative eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_from_statistics(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The Frechet distance (squared, as everybody reports it) between N(mean1, covariance1) and N(mean2, covariance2).

    Means are (D,), covariances (D, D). Raises ValueError where the dimensions differ or a value is not finite.
    """
    mean1, covariance1, mean2, covariance2 = (
        part.detach().cpu().double() for part in (mean1, covariance1, mean2, covariance2)
    )
    if mean1.shape != mean2.shape or covariance1.shape != covariance2.shape:
        raise ValueError(
            f"the two sets of statistics have {mean1.numel()} and {mean2.numel()} dimensions; "
            "compute both with the same feature extractor"
        )
    if mean1.ndim != 1 or covariance1.shape != (len(mean1), len(mean1)):
        raise ValueError(
            f"a mean (D,) goes with a covariance (D, D), not {tuple(mean1.shape)} with {tuple(covariance1.shape)}"
        )
    if not all(bool(part.isfinite().all()) for part in (mean1, covariance1, mean2, covariance2)):
        raise ValueError("the statistics hold NaN or infinite values; compute them again from finite features")
    root = _root(covariance1)
    inner = root @ covariance2 @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross
    return max(0.0, distance.item())  # rounding can leave -1e-12 for identical sets


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """The Frechet distance between two sets of features (N, D) and (M, D); N and M may differ.

    Raises ValueError for fewer than two samples, different D, or values that are not finite.
    """
    return frechet_from_statistics(*statistics(features_a), *statistics(features_b))
