"""What makes whole comparisons quick where a test is not about their rows or their timings."""

import functools

import pytest

import eval.pipelines.measure


@pytest.fixture
def quick(monkeypatch):
    """One few-step row of the teacher, no LPIPS, latencies from a call or two."""
    monkeypatch.setattr("eval.pipelines.jobs.FEW_STEPS", (1,))
    monkeypatch.setattr("eval.compare.perceptual", lambda device: None)
    once = functools.partial(eval.pipelines.measure.latency, repeats=2, least=1, seconds=0.1)
    monkeypatch.setattr(eval.pipelines.measure, "latency", once)
    monkeypatch.setattr(eval.pipelines.measure, "parts", functools.partial(eval.pipelines.measure.parts, repeats=1))
