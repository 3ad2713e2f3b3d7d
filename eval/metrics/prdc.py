"""Precision, recall, density and coverage: fidelity and diversity apart, where a Frechet distance mixes them.

With NN_k(X_i) the distance from a real X_i to its k-th nearest real neighbour, and B the ball of that radius round it:

    precision   the share of samples that lie in the ball of some real image
    recall      the share of real images that lie in the ball, made from samples, of some sample
    density     how many real balls a sample lies in, on average, over k: 1 for the real distribution itself
    coverage    the share of real balls that hold a sample at all

Precision and recall: Kynkäänniemi et al., "Improved precision and recall" (arXiv 1904.06991), equation 2, k = 3.
Density and coverage: Naeem et al. (arXiv 2002.09797), equations 4 and 5, k = 5. Distances are Euclidean, in float64.
All four depend on the number of samples on both sides: compare figures with the same counts only.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from eval.metrics.fid import finite

LEAST = 10  # images under which nearest neighbours say nothing
CHUNK = 1000  # rows of the distance matrix held at once


@dataclass(frozen=True)
class PRDC:
    """The four figures; density can exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float

    def figures(self) -> dict[str, float]:
        """By name, as report.json holds them."""
        return asdict(self)


def prdc(real: Tensor, samples: Tensor, k_manifold: int = 3, k_density: int = 5) -> PRDC:
    """Features of real images (N, D) and of samples (M, D) -> the four figures.

    `k_manifold` is k for precision and recall, `k_density` for density and coverage. Raises ValueError for different D,
    values that are not finite, and sets with no more than k members.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
        raise ValueError(
            f"the two sets of features have the shapes {tuple(real.shape)} and {tuple(samples.shape)}; "
            "both have to be (images, dimensions), made with the same feature extractor"
        )
    real, samples = finite(real), finite(samples)
    most = max(k_manifold, k_density)
    for name, features in (("real images", real), ("samples", samples)):
        if len(features) <= most:
            raise ValueError(
                f"there are {len(features)} {name}, and each needs {most} neighbours among the others; "
                f"give at least {most + 1}"
            )
    real_manifold, real_density = _radii(real, (k_manifold, k_density))
    (samples_manifold,) = _radii(samples, (k_manifold,))
    precise = hits = 0.0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for chunk, radius in zip(samples.split(CHUNK), samples_manifold.split(CHUNK), strict=True):
        distances = _distances(chunk, real)
        precise += (distances <= real_manifold).any(dim=1).sum().item()
        recalled |= (distances <= radius[:, None]).any(dim=0)
        inside = distances < real_density  # strictly, as published: a set has density 1 against itself
        hits += inside.sum().item()
        covered |= inside.any(dim=0)
    return PRDC(
        precision=precise / len(samples),
        recall=recalled.double().mean().item(),
        density=hits / (k_density * len(samples)),
        coverage=covered.double().mean().item(),
    )


def _radii(features: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """For each k the distance (N,) of every row to its k-th nearest other row."""
    nearest = [
        _distances(rows, features).topk(max(neighbours) + 1, largest=False).values for rows in features.split(CHUNK)
    ]
    ordered = torch.cat(nearest)  # the first is the row itself, at distance zero
    return [ordered[:, k] for k in neighbours]


def _distances(one: Tensor, two: Tensor) -> Tensor:
    """Euclidean distances (N, M); in float64 the fast |a|^2 + |b|^2 - 2ab leaves coincident points within 1e-6."""
    return torch.cdist(one, two, compute_mode="use_mm_for_euclid_dist")
