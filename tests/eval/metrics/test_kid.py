"""KID against clean-fid's own function and against the definition."""

import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance

from eval.metrics.kid import kid, mmd


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.rand(count, 64, generator=torch.Generator().manual_seed(seed)).double() + shift


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(300, 200), (150, 150)])
def test_distance_equals_clean_fids(n, m):
    one, two = features(n, 0), features(m, 1, shift=0.05)
    np.random.seed(3)
    expected = kernel_distance(one.numpy(), two.numpy(), num_subsets=20, max_subset_size=120)
    assert kid(one, two, seed=3, subsets=20, largest=120)[0] == pytest.approx(expected, rel=1e-9)
    np.random.seed(3)
    expected = kernel_distance(one.numpy(), two.numpy(), num_subsets=5)
    assert kid(one, two, seed=3, subsets=5)[0] == pytest.approx(expected, rel=1e-9)


def test_discrepancy_follows_its_definition():
    x, y = torch.tensor([[0.0, 1], [2, 0]]).double(), torch.tensor([[1.0, 1], [0, 0]]).double()

    def kernel(a, b):
        return (sum(i * j for i, j in zip(a, b, strict=True)) / 2 + 1) ** 3

    x_, y_ = x.tolist(), y.tolist()
    across = sum(kernel(a, b) for a in x_ for b in y_) / 4
    assert mmd(x, y) == pytest.approx(kernel(*x_) + kernel(*y_) - 2 * across)


def test_estimate_is_unbiased_for_few_samples():
    few = [kid(features(40, seed), features(40, 100 + seed))[0] for seed in range(60)]
    error = np.std(few) / len(few) ** 0.5
    assert abs(np.mean(few)) < 3 * error
    assert kid(features(400, 0), features(400, 1, shift=0.1))[0] > 100 * error


def test_invalid_features_are_refused():
    with pytest.raises(ValueError, match="same feature extractor"):
        kid(torch.rand(5, 3), torch.rand(5, 4))
    with pytest.raises(ValueError, match="at least two images"):
        kid(torch.rand(1, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match="NaN"):
        kid(torch.full((5, 3), torch.nan), torch.rand(5, 3))
