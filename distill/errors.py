"""How a user's mistake is told: one clear sentence on standard error, exit code 2, no traceback."""

import difflib
import sys
from collections.abc import Callable, Iterable


def suggest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" where something close is known, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def speak(command: Callable[[], int | None]) -> None:
    """Run a command line; a ValueError or a missing file becomes its sentence and exit code 2."""
    try:
        sys.exit(command() or 0)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
