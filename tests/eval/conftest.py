"""Options that make whole comparisons fast in tests that are not about their rows or timings."""

from typing import Any

import pytest

from tests.commands import ONE_OR_TWO_CALLS


@pytest.fixture
def quick() -> dict[str, Any]:
    """One few-step row of the teacher, no LPIPS, latencies from one or two calls."""
    return {"few_steps": (1,), "lpips": None, "timing": ONE_OR_TWO_CALLS}


@pytest.fixture
def quick_with_lpips(quick) -> dict[str, Any]:
    """The same with a substitute for LPIPS, whose weights are not on every machine: the mean absolute difference."""
    return quick | {"lpips": lambda one, two: (one - two).abs().mean(dim=(1, 2, 3))}
