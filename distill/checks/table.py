"""The result of one check, and a table of results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from teachers.support.text import printable


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: What is compared.
        difference: The largest difference; NaN fails.
        tolerance: The largest difference that passes; None: the value is reported only.
        note: What a reader should know, such as why a check was left out.
    """

    name: str
    difference: float
    tolerance: float | None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.tolerance is None or self.difference <= self.tolerance


def left_out(name: str, reason: str) -> Check:
    """A check that does not apply."""
    return Check(name, math.nan, None, reason)


def table(checks: Sequence[Check]) -> str:
    """The checks as text, one line each: check, largest difference, tolerance, ok."""
    width = max(len("check"), *(len(printable(check.name)) for check in checks))
    lines = [f"{'check':<{width}}  {'largest difference':>18}  {'tolerance':>9}  ok"]
    for check in checks:
        value = "-" if check.tolerance is None and math.isnan(check.difference) else f"{check.difference:.1e}"
        limit = "-" if check.tolerance is None else f"{check.tolerance:.0e}"
        verdict = "-" if check.tolerance is None else "yes" if check.passed else "NO"
        lines.append(
            f"{printable(check.name):<{width}}  {value:>18}  {limit:>9}  {verdict:<3} {printable(check.note)}".rstrip()
        )
    return "\n".join(lines)
