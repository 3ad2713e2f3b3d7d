"""What a command of this package says where it cannot do what it was asked."""

import sys
from collections.abc import Callable


def told(task: Callable[[], None]) -> int:
    """Run `task`; a ValueError becomes its sentence. The exit code: 0, or 2."""
    try:
        task()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
