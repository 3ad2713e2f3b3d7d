"""Precision, recall, density and coverage: known values, missing modes, and a second implementation."""

import math

import pytest
import torch

from eval.features.extractors import Extractor
from eval.metrics.context import MetricContext, Reference, Row
from eval.metrics.fid import frechet_distance, statistics
from eval.metrics.prdc import Coverage, Precision, Recall, prdc
from teachers.loading.embedded import EMBEDDED


def normal(samples: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(samples, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(count: int, each: int, seed: int) -> torch.Tensor:
    """`count` distant clusters with `each` members."""
    centres = 100 * torch.eye(count, 12, dtype=torch.float64)
    return (centres[:, None] + normal(count * each, 12, seed).reshape(count, each, 12)).reshape(-1, 12)


def test_figures_of_a_set_against_itself():
    features = normal(1500, 16, seed=0)
    figures = prdc(features, features.clone())
    assert (figures.precision, figures.recall, figures.coverage) == (1, 1, 1)
    assert figures.density == pytest.approx(
        1, abs=1e-3
    )  # a point lies exactly on the surface of each ball, up to rounding


def test_missing_classes_lower_recall_and_coverage_but_not_precision():
    real, whole, half = classes(10, 60, seed=1), classes(10, 60, seed=2), classes(10, 60, seed=3)[:300]
    complete, dropped = prdc(real, whole), prdc(real, half)
    assert dropped.precision > complete.precision - 0.03
    assert dropped.density > complete.density - 0.1
    assert dropped.recall == pytest.approx(complete.recall / 2, abs=0.05)
    assert dropped.coverage == pytest.approx(complete.coverage / 2, abs=0.05)


@pytest.mark.slow
def test_missing_classes_of_real_photographs_lower_recall_and_coverage():
    """The pocket classifier's features of real test photographs, split by the predicted class."""
    features = EMBEDDED["pocket"].reference()[2]
    assert features is not None, "the pocket weights include them"
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    features = features[order]
    predicted = EMBEDDED["pocket"].judge().head(features).argmax(dim=1)
    # Bags, sandals, sneakers, boots and trousers do not resemble the other half of the classes.
    selected = torch.isin(predicted, torch.tensor([1, 5, 7, 8, 9]))
    real, rest, selected = features[:1000], features[1000:], selected[1000:]
    whole, half = rest[:1000], rest[selected][:1000]
    assert len(half) == 1000
    complete, dropped = prdc(real, whole), prdc(real, half)
    assert complete.precision > 0.85
    assert complete.recall > 0.85
    assert dropped.precision > complete.precision - 0.03
    assert dropped.recall < 0.7 * complete.recall
    assert dropped.coverage < 0.7 * complete.coverage
    assert frechet_distance(half, real) > 10 * frechet_distance(whole, real)


def test_outliers_lower_precision_but_not_recall():
    real = classes(10, 60, seed=1)
    with_outliers = torch.cat([classes(10, 60, seed=2), normal(200, 12, seed=3) - 500])
    clean, mixed = prdc(real, with_outliers[:600]), prdc(real, with_outliers)
    assert mixed.precision == pytest.approx(clean.precision * 600 / 800, abs=1e-9)
    assert mixed.recall == clean.recall
    assert mixed.coverage == clean.coverage


def test_figures_of_points_on_a_line():
    # Real 0, 1, 3, 7: distances to the nearest other 1, 1, 2, 4; samples 0.5 and 6: radii 5.5 each.
    real, samples = torch.tensor([[0.0], [1], [3], [7]]), torch.tensor([[0.5], [6.0]])
    figures = prdc(real, samples, k_manifold=1, k_density=1)
    assert figures.precision == 1  # 0.5 in the balls of 0 and 1, 6 in that of 7
    assert figures.recall == 1  # 7 is 1 from 6; the others are at most 5.5 from 0.5
    assert figures.density == 3 / 2  # 0.5 in two balls, 6 in one
    assert figures.coverage == 3 / 4  # nothing within 2 of 3


def test_figures_follow_their_definitions_for_any_chunk_size():
    real, samples = normal(70, 5, seed=4), 0.8 * normal(50, 5, seed=5) + 0.3
    figures = prdc(real, samples)

    def ball(points, k):
        return [sorted(math.dist(p, q) for q in points.tolist())[k] for p in points.tolist()]

    radii, wide, own = ball(real, 3), ball(real, 5), ball(samples, 3)
    apart = [[math.dist(s, r) for r in real.tolist()] for s in samples.tolist()]
    n, m = len(real), len(samples)
    assert figures.precision == sum(any(apart[j][i] <= radii[i] for i in range(n)) for j in range(m)) / m
    assert figures.recall == pytest.approx(sum(any(apart[j][i] <= own[j] for j in range(m)) for i in range(n)) / n)
    assert figures.density == sum(apart[j][i] < wide[i] for i in range(n) for j in range(m)) / (5 * m)
    assert figures.coverage == pytest.approx(sum(any(apart[j][i] < wide[i] for j in range(m)) for i in range(n)) / n)
    assert prdc(real, samples, chunk=7) == figures


def test_invalid_features_are_refused():
    with pytest.raises(ValueError, match="at least 6 samples, got 4"):
        prdc(normal(20, 3, 0), normal(4, 3, 0))
    with pytest.raises(ValueError, match="same feature extractor"):
        prdc(normal(20, 3, 0), normal(20, 4, 0))
    broken = normal(20, 3, 0)
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 20 samples"):
        prdc(normal(20, 3, 0), broken)


def test_fewer_samples_than_reference_images_are_compared_with_all_classes():
    """A reference in the order of its classes: its first rows would be a few classes only."""
    real, samples = classes(10, 60, seed=1), classes(10, 20, seed=2)
    reference = Reference(*statistics(real), real)
    context = MetricContext(
        len(samples), 0, torch.device("cpu"), Extractor("pixels", lambda batch: batch), 12, reference=reference
    )
    row = Row(samples, *statistics(samples), torch.zeros(1, 3, 8, 8), {}, reference)
    assert context.reference_images == len(samples)
    expected, of_first = prdc(real[::3], samples), prdc(real[: len(samples)], samples)
    for metric in (Precision(context), Recall(context), Coverage(context)):
        assert metric.compute(row).value == getattr(expected, metric.key)
    assert expected.precision > 2 * of_first.precision and expected.coverage > of_first.coverage + 0.2
