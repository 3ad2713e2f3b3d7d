"""Entries of metrics in report.json: values, intervals, marks of the best rows, and ratios."""

import math

import pytest
import torch

from eval.features.extractors import Extractor
from eval.metrics.base import Figure, SampleMetric
from eval.metrics.clip_score import ClipScore
from eval.metrics.context import MetricContext, Reference, Row
from eval.metrics.fid import FrechetDistance
from eval.metrics.kid import KernelInceptionDistance
from eval.report.rows import best_rows, metric_entries

NOISE = torch.linspace(-1, 1, 100, dtype=torch.float64)


def test_best_rows_are_those_within_the_paired_interval_of_the_best():
    figures = [Figure(value, None, 0.1 * scale * NOISE) for value, scale in ((30.0, 1), (30.01, 3), (29.0, 1))]
    assert best_rows(figures, higher_is_better=True) == [True, True, False]
    assert best_rows(figures, higher_is_better=False) == [False, False, True]
    assert best_rows([*figures, None], higher_is_better=True) == [False] * 4
    assert best_rows([Figure(1.0), Figure(2.0), Figure(1.0)], higher_is_better=False) == [True, False, True]


def test_entries_of_a_metric_with_ratio_and_marks():
    figures = [Figure(2.0, [1.5, 2.5], NOISE), Figure(4.0, [3.0, 5.0], 2 * NOISE), None]
    first, second, third = metric_entries(FrechetDistance, figures, baseline=0)
    assert first == {
        "frechet_distance": 2.0,
        "frechet_interval": [1.5, 2.5],
        "best": False,
        "frechet_ratio": 1.0,
        "frechet_ratio_interval": None,
    }
    assert second["frechet_ratio"] == 2
    assert second["frechet_ratio_interval"] == pytest.approx([2, 2]), "the noise of both rows is proportional"
    assert third == dict.fromkeys(first) | {"best": False}


def test_entries_of_metrics_without_figures_and_of_a_baseline_of_zero():
    assert metric_entries(ClipScore, [None]) == [{"clip_score": None, "clip_interval": None, "clip_best": False}]
    assert metric_entries(KernelInceptionDistance, [Figure(0.1)]) == [{"kid": 0.1, "kid_interval": None}]
    entries = metric_entries(FrechetDistance, [Figure(0.0, None, NOISE), Figure(1.0, None, NOISE)])
    assert [entry["frechet_ratio"] for entry in entries] == [None, None]
    assert [entry["frechet_ratio_interval"] for entry in entries] == [None, None]


class Plain(SampleMetric):
    """A metric whose scores are given."""

    key, heading, help, higher_is_better = "plain", "Plain", "Plain.", True

    def score(self, images, prompts):
        raise AssertionError("the scores are given")


@pytest.mark.parametrize(
    ("scores", "mean", "paired"),
    [([1.0, -3.0], -1.0, True), ([1.0, math.nan, -3.0], -1.0, False), ([2.0, math.nan], 2.0, False)],
)
def test_the_mean_of_a_sample_metric_leaves_out_nan(scores, mean, paired):
    metric = Plain(MetricContext(3, 0, torch.device("cpu"), Extractor("pixels", torch.flatten), 4))
    one = torch.zeros(1)
    figure = metric.compute(Row(one, one, one, one, {"plain": torch.tensor(scores)}, Reference(one, one)))
    assert figure.value == mean
    assert (figure.influence is not None) == paired
    assert (figure.interval is None) == (len(scores) - sum(map(math.isnan, scores)) < 2)
    if figure.interval is not None:
        assert figure.interval[0] < mean < figure.interval[1]
