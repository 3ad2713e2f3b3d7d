"""Labels of a scatter's points: what they say, and where they stand without covering points or each other."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LETTER = 6.6  # width of a letter in units of the drawing at the labels' size, taken generously
LINE = 14.0
RADIUS = 5.5


@dataclass(frozen=True)
class Box:
    """An upright rectangle in the drawing's units; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def label_of(row: dict[str, Any], most: int = 26) -> str:
    """A point's label; the solver goes without saying, since it is in the table."""
    text = row["name"].replace(f", {row['solver']}", "") if row.get("solver") else row["name"]
    return text if len(text) <= most else text[: most - 1] + "…"


def labelled(
    rows: Sequence[dict[str, Any]], points: Sequence[tuple[float, float]], within: Box, most: int
) -> tuple[list[str], list[Box]]:
    """What stands beside the points, and where: names, or the rows' numbers from 1 where there are more than `most`
    rows or no room for their names."""
    names, numbers = [label_of(row) for row in rows], [str(i) for i in range(1, len(rows) + 1)]
    if len(rows) <= most:
        boxes = place_labels(points, names, within)
        if not any(one.overlap(two) for one, two in itertools.combinations(boxes, 2)):
            return names, boxes
    return numbers, place_labels(points, numbers, within)


def place_labels(points: Sequence[tuple[float, float]], labels: Sequence[str], within: Box) -> list[Box]:
    """Where each label goes: near its point, inside `within`, over no point and no other label wherever that can be."""
    taken = [Box(x - RADIUS - 1, y - RADIUS - 1, x + RADIUS + 1, y + RADIUS + 1) for x, y in points]
    placed: list[Box] = []
    for (x, y), label in zip(points, labels, strict=True):
        width = LETTER * len(label)
        best, least = None, math.inf
        for box in _candidates(x, y, width):
            spill = (box.right - box.left) * LINE - box.overlap(within)
            cost = 4 * spill + sum(box.overlap(other) for other in taken + placed)
            if cost < least - 1e-9:
                best, least = box, cost
            if cost <= 1e-9:
                break
        assert best is not None
        placed.append(best)
    return placed


def _candidates(x: float, y: float, width: float) -> Iterator[Box]:
    """Places for a label round a point, the nearest and most usual first."""
    for distance in (10, 18, 28, 40, 54, 70, 88, 108):
        for across, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            middle_x = x + across * (distance + width / 2) if down == 0 else x + across * (width / 2 + distance / 2)
            middle_y = y + down * (distance + LINE / 2 - 4)
            yield Box(middle_x - width / 2, middle_y - LINE / 2, middle_x + width / 2, middle_y + LINE / 2)
