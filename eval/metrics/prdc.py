"""Precision, recall, density and coverage: separate measures of fidelity and diversity.

NN_k(X_i) is the distance of real feature X_i to its k-th nearest real neighbour, and its ball has that radius:

    precision   share of samples inside the ball of at least one real image
    recall      share of real images inside the ball (built from samples) of at least one sample
    density     number of real balls that contain a sample, mean over samples, divided by k; 1 for the real distribution
    coverage    share of real balls that contain at least one sample

Precision and recall: Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models"
(arXiv 1904.06991), equation 2, k = 3. Density and coverage: Naeem et al., "Reliable fidelity and diversity metrics for
generative models" (arXiv 2002.09797), equations 4 and 5, k = 5. Distances are Euclidean, in float64. All four depend on
the number of images in both sets: compare only figures with equal counts.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from eval.metrics.base import EVERY_MEDIUM, Figure, Metric
from eval.metrics.context import MetricContext, Row
from eval.metrics.fid import finite

LEAST = 10  # with fewer images nearest neighbours are not meaningful
CHUNK = 1000  # rows of the distance matrix in memory at once


@dataclass(frozen=True)
class PRDC:
    """The four figures; density can exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float

    def figures(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def prdc(real: Tensor, samples: Tensor, k_manifold: int = 3, k_density: int = 5, chunk: int = CHUNK) -> PRDC:
    """Precision, recall, density and coverage of a set of samples.

    Args:
        real: Features of real images (N, D).
        samples: Features of samples (M, D).
        k_manifold: k of precision and recall.
        k_density: k of density and coverage.
        chunk: Rows of the distance matrix in memory at once; it does not change the figures.

    Raises:
        ValueError: For different D, values that are not finite, or a set with at most k members.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
        raise ValueError(
            f"the two sets of features have the shapes {tuple(real.shape)} and {tuple(samples.shape)}; both must be "
            "(images, dimensions) from the same feature extractor"
        )
    real, samples = finite(real), finite(samples)
    most = max(k_manifold, k_density)
    for name, features in (("real images", real), ("samples", samples)):
        if len(features) <= most:
            raise ValueError(f"nearest neighbours need at least {most + 1} {name}, got {len(features)}")
    real_manifold, real_density = _radii(real, (k_manifold, k_density), chunk)
    (samples_manifold,) = _radii(samples, (k_manifold,), chunk)
    precise = hits = 0.0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for part, radius in zip(torch.split(samples, chunk), torch.split(samples_manifold, chunk), strict=True):
        distances = _distances(part, real)
        precise += (distances <= real_manifold).any(dim=1).sum().item()
        recalled |= (distances <= radius[:, None]).any(dim=0)
        inside = distances < real_density  # strict, as published: a set has density 1 against itself
        hits += inside.sum().item()
        covered |= inside.any(dim=0)
    return PRDC(
        precision=precise / len(samples),
        recall=recalled.double().mean().item(),
        density=hits / (k_density * len(samples)),
        coverage=covered.double().mean().item(),
    )


def _radii(features: Tensor, neighbours: tuple[int, ...], chunk: int) -> list[Tensor]:
    """For each k the distance (N,) of every row to its k-th nearest other row."""
    nearest = [
        _distances(rows, features).topk(max(neighbours) + 1, largest=False).values
        for rows in torch.split(features, chunk)
    ]
    ordered = torch.cat(nearest)  # the first is the row itself, at distance zero
    return [ordered[:, k] for k in neighbours]


def _distances(one: Tensor, two: Tensor) -> Tensor:
    """Euclidean distances (N, M); in float64 the fast |a|^2 + |b|^2 - 2ab is accurate to 1e-6 for equal points."""
    return torch.cdist(one, two, compute_mode="use_mm_for_euclid_dist")


def compared_images(row: Row) -> int | None:
    """How many samples and as many reference images are compared; None if there are too few."""
    features = row.reference.features
    count = 0 if features is None else min(len(features), len(row.features))
    return count if count >= LEAST else None


def _spread(features: Tensor, count: int) -> Tensor:
    """`count` of the rows, spread evenly: files are often sorted by class, and prompts by subject."""
    return features[torch.arange(count) * len(features) // count]


class _NearestNeighbourMetric(Metric):
    """One of the four figures, against as many reference images as there are samples."""

    higher_is_better = True
    media = EVERY_MEDIUM
    needs = frozenset({"features", "reference_features"})
    format = ".3f"

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        count = context.reference_images
        self.heading = f"{type(self).heading}@{count}"
        self.help = (
            f"Between {count:,} samples and as many reference images, with the features “{context.extractor.name}”. "
            + type(self).help
        )

    def compute(self, row: Row) -> Figure | None:
        """The figure, without an interval; None if there are too few images."""
        count = compared_images(row)
        if count is None:
            return None
        real = row.reference.features
        assert real is not None
        figures = row.shared("prdc", lambda: prdc(_spread(real, count), _spread(row.features, count)).figures())
        return Figure(figures[self.key])


class Precision(_NearestNeighbourMetric):
    """Share of samples that are close to a reference image."""

    key = "precision"
    heading = "Precision"
    help = "Share of samples that are close to at least one reference image."
    position = 30


class Recall(_NearestNeighbourMetric):
    """Share of reference images that are close to a sample."""

    key = "recall"
    heading = "Recall"
    help = "Share of reference images that are close to at least one sample."
    position = 31


class Density(_NearestNeighbourMetric):
    """Number of reference images close to a sample, relative to real images."""

    key = "density"
    heading = "Density"
    help = "Like precision, but counts how many reference images are close; about 1 for real images."
    position = 32
    summary = False


class Coverage(_NearestNeighbourMetric):
    """Share of reference images whose neighbourhood contains a sample."""

    key = "coverage"
    heading = "Coverage"
    help = "Share of reference images whose neighbourhood contains a sample; missing modes lower it, and recall."
    position = 33
    summary = False
