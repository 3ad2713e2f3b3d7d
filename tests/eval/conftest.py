"""Options that make whole comparisons fast in tests that are not about their rows or timings."""

from typing import Any

import pytest

from eval.config.options import Timing


@pytest.fixture
def quick() -> dict[str, Any]:
    """One few-step row of the teacher, no LPIPS, latencies from one or two calls."""
    timing = Timing(repeats=2, seconds=0.1, min_repeats=1, part_repeats=1)
    return {"few_steps": (1,), "lpips": None, "timing": timing}


@pytest.fixture
def quick_with_lpips(quick) -> dict[str, Any]:
    """The same with a substitute for LPIPS, whose weights are not on every machine: the mean absolute difference."""
    return quick | {"lpips": lambda one, two: (one - two).abs().mean(dim=(1, 2, 3))}
