"""How a user's mistake is told: one clear sentence on standard error, exit code 2, no traceback."""

import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def suggest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" where something close is known, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def speak(command: Callable[[], int | None]) -> None:
    """Run a command line; a ValueError or a missing file becomes its sentence and exit code 2."""
    try:
        sys.exit(command() or 0)
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(3)  # the same mistake on every process: the first one says it, and its launcher ends the others
        print(f"error: {error}", file=sys.stderr)
        summary = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if summary:  # the launcher of several processes closes with a table: the sentence belongs there
            Path(summary).write_text(json.dumps({"message": f"error: {error}", "timestamp": int(time.time())}))
        sys.exit(2)
