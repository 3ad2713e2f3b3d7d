"""Damaged files that figures and weights come from are found, or the damage has no effect; see `tests.faults.flips`."""

import pytest

from tests.faults.flip_kinds import KINDS
from tests.faults.flips import trial


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "_"))
def test_damage_is_found_or_harmless(kind):
    counts, wrong = trial(kind, flips=25)
    assert not wrong
    assert sum(counts.values()) > 29  # flips, truncations and zero-filled pages
