"""Intervals against the bootstrap and repeated sampling; ties of rows that repeated sampling does not separate."""

import math

import pytest
import torch

from eval.metrics.fid import FrechetTo, frechet_distance, statistics
from eval.metrics.intervals import Z, interval, ratio_interval, share_interval, standard_error, tied

D = 6
MIX = torch.randn(D, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / 2 + torch.eye(D)
SHIFT = torch.full((D,), 0.3, dtype=torch.float64)


def normal(samples: int, seed: int) -> torch.Tensor:
    return torch.randn(samples, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def target() -> FrechetTo:
    return FrechetTo(*statistics(normal(20_000, 1000)))


def measured(target: FrechetTo, features: torch.Tensor) -> tuple[float, torch.Tensor]:
    mean, covariance = statistics(features)
    return target.distance(mean, covariance), target.influence(features, mean, covariance)


def test_influence_is_the_derivative_by_a_samples_weight(target):
    features, step = normal(200, 0) @ MIX + SHIFT, 1e-5
    _, influence = measured(target, features)

    def weighted(weights):
        mean = weights @ features
        centred = features - mean
        return target.distance(mean, centred.T @ (centred * weights[:, None]))

    even = torch.full((200,), 1 / 200, dtype=torch.float64)
    for i in (0, 17, 150):
        moved = (1 - step) * even
        moved[i] += step
        back = (1 + step) * even
        back[i] -= step
        slope = (weighted(moved) - weighted(back)) / (2 * step)
        assert influence[i].item() == pytest.approx(slope, rel=0.02, abs=0.02)


@pytest.mark.slow
def test_standard_error_equals_that_of_repeated_sampling_and_of_the_bootstrap(target):
    samples = [normal(400, seed) @ MIX + SHIFT for seed in range(150)]
    found = [measured(target, features) for features in samples]
    repeated = torch.tensor([value for value, _ in found]).std().item()
    claimed = sum(standard_error(influence) for _, influence in found) / len(found)
    assert claimed == pytest.approx(repeated, rel=0.15)

    features, random = samples[0], torch.Generator().manual_seed(5)
    resampled = [
        target.distance(*statistics(features[torch.randint(400, (400,), generator=random)])) for _ in range(150)
    ]
    assert standard_error(found[0][1]) == pytest.approx(torch.tensor(resampled).std().item(), rel=0.2)


@pytest.mark.slow
def test_intervals_contain_the_true_value_at_their_nominal_rate(target):
    truth = measured(target, normal(200_000, 77) @ MIX + SHIFT)[0]
    held = 0
    for seed in range(100):
        value, influence = measured(target, normal(1500, seed) @ MIX + SHIFT)
        low, high = interval(value, standard_error(influence))
        held += low <= truth <= high
    assert 88 <= held <= 100


def test_pairing_makes_ratio_intervals_narrower(target):
    noise = normal(500, 3)
    one, two = noise @ MIX + SHIFT, (noise @ MIX + SHIFT) * 1.02
    (value1, influence1), (value2, influence2) = measured(target, one), measured(target, two)
    alone = measured(target, normal(500, 4) @ MIX + SHIFT)[1]
    paired = ratio_interval(value2, influence2, value1, influence1)
    apart = ratio_interval(value2, influence2, value1, alone)
    assert paired[0] < value2 / value1 < paired[1]
    assert (paired[1] - paired[0]) < 0.2 * (apart[1] - apart[0])


def test_rows_of_equal_quality_are_tied(target):
    samples = [normal(500, 0) @ MIX + SHIFT, normal(500, 1) @ MIX + SHIFT, (normal(500, 2) @ MIX + SHIFT) * 3]
    values, influences = zip(*(measured(target, features) for features in samples), strict=True)
    assert tied(values, influences) == [True, True, False]
    assert tied([2.0, 1.0, 1.0], [None, None, None]) == [False, True, True]


def test_wilson_interval():
    low, high = share_interval(0.5, 100)
    assert (low, high) == pytest.approx((0.404, 0.596), abs=1e-3)  # tabulated values
    assert share_interval(1.0, 50)[1] == pytest.approx(1)
    assert share_interval(1.0, 50)[0] == pytest.approx(50 / (50 + Z**2))
    assert share_interval(0.0, 50)[0] == 0


def test_distance_of_features_with_exact_moments_is_the_closed_form():
    root1, root2 = MIX, MIX.T @ MIX + torch.eye(D)
    covariance1, covariance2 = root1 @ root1.T, root2 @ root2.T

    def exact(seed, mean, root):
        white = normal(300, seed)
        white = white - white.mean(dim=0)
        white = white @ torch.linalg.inv(torch.linalg.cholesky(statistics(white)[1])).T
        return white @ root.T + mean

    mean = torch.arange(D, dtype=torch.float64)
    values = torch.linalg.eigvals(covariance1 @ covariance2).real
    expected = (mean**2).sum() + covariance1.trace() + covariance2.trace() - 2 * values.sqrt().sum()
    found = frechet_distance(exact(0, mean, root1), exact(1, 0 * mean, root2))
    assert found == pytest.approx(expected.item(), rel=1e-6)
    assert math.isfinite(found)
