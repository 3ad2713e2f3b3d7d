"""The Frechet distance against closed forms and against scipy's matrix square root."""

import math

import pytest
import torch
from scipy.linalg import sqrtm

from eval.metrics.fid import frechet_distance, frechet_from_statistics, statistics


def normal(samples: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(samples, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_identical_sets_have_distance_zero():
    features = normal(100, 12, seed=0)
    assert frechet_distance(features, features.clone()) == pytest.approx(0, abs=1e-9)


def test_distance_of_two_gaussians_in_closed_form():
    # Diagonal covariances commute: |mu1 - mu2|^2 + sum (s1 - s2)^2 over standard deviations.
    mean1, mean2 = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 5.0])
    std1, std2 = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 2.0, 0.1])
    expected = 1 + 4 + 4 + 0 + 0.16
    assert frechet_from_statistics(mean1, std1.diag() ** 2, mean2, std2.diag() ** 2) == pytest.approx(
        expected, rel=1e-6
    )


def test_distance_equals_scipys_for_covariances_that_do_not_commute():
    one, two = normal(300, 10, seed=1) @ normal(10, 10, seed=2), normal(200, 10, seed=3) @ normal(10, 10, seed=4) + 1
    mean1, covariance1 = statistics(one)
    mean2, covariance2 = statistics(two)
    root = torch.from_numpy(sqrtm((covariance1 @ covariance2).numpy()).real)
    expected = (mean1 - mean2).square().sum() + (covariance1 + covariance2 - 2 * root).trace()
    assert frechet_distance(one, two) == pytest.approx(expected.item(), rel=1e-9)


def test_distance_of_covariances_without_full_rank():
    # Both of rank 1: covariances u u^T and v v^T, whose cross term is |u . v|.
    u, v = torch.tensor([3.0, 0, 0, 0]).double(), torch.tensor([1.0, 2, 0, 0]).double()
    one, two = torch.stack([u, -u]) / math.sqrt(2), torch.stack([v, -v]) / math.sqrt(2)
    assert frechet_distance(one, two) == pytest.approx(9 + 5 - 2 * 3, rel=1e-6)


def test_statistics_equal_torchs():
    features = normal(50, 4, seed=5).float()
    mean, covariance = statistics(features)
    assert mean.dtype == covariance.dtype == torch.float64
    torch.testing.assert_close(covariance, features.double().T.cov())


def test_distance_is_symmetric_and_accurate_for_large_float32_features():
    one, two = normal(500, 8, seed=6) + 1000, normal(500, 8, seed=7) + 1000
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), rel=1e-9)
    assert frechet_distance(one.float(), two.float()) == pytest.approx(frechet_distance(one, two), rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad):
    features = normal(10, 3, seed=8)
    features[4, 1] = bad
    with pytest.raises(ValueError, match="1 of 10 samples"):
        frechet_distance(features, normal(10, 3, seed=9))


def test_too_few_samples_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="at least two samples"):
        frechet_distance(normal(1, 3, seed=0), normal(5, 3, seed=0))
    with pytest.raises(ValueError, match=r"\(samples, dimensions\)"):
        statistics(torch.zeros(5))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(normal(5, 3, seed=0), normal(5, 4, seed=0))
    with pytest.raises(ValueError, match="mean and covariance must have the shapes"):
        frechet_from_statistics(torch.zeros(3), torch.zeros(4, 4), torch.zeros(3), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="NaN"):
        frechet_from_statistics(*[torch.zeros(2), torch.full((2, 2), math.nan)] * 2)
