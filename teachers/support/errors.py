"""Command line errors: one sentence on standard error and exit code 2 instead of a traceback."""

import difflib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from teachers.support.terminal import clean_output
from teachers.support.text import printable, split_lines

EXIT_ERROR, EXIT_FAILED, EXIT_INTERRUPTED = 2, 3, 130


def suggest(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` with the closest of the `known` words, "" where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def run_cli(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code.

    A ValueError or OSError is a user's mistake: its message is printed and the code is 2, also if the memory does not
    suffice. Ctrl-C gives code 130.
    With FEWSTEP_DEBUG=1 in the environment, exceptions keep their traceback. What the command prints, warns and logs is
    cleaned of control characters, which names and texts of strangers may contain.

    Args:
        command: What to run; an int that it returns is the exit code.
    """
    for stream in (sys.stdout, sys.stderr):  # without UTF-8, what cannot be printed must not end a run
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with clean_output():
            result = command()
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        if os.environ.get("FEWSTEP_DEBUG") == "1":
            raise
        _report("error: " + " ".join(printable(line.strip()) for line in split_lines(_sentence(error))))
        return EXIT_ERROR
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("FEWSTEP_DEBUG") == "1" or not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or "MemoryError"
        _report(f"error: not enough memory ({reason}); use smaller batches (train.accumulation, --batch-size)")
        return EXIT_ERROR


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is Python's or torch's error of a failed allocation, on the CPU or on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
        or "can't allocate memory" in str(error)
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object[:100]!a} cannot be written in this machine's encoding, {error.encoding}; "
            "set PYTHONUTF8=1 in the environment"
        )
    return str(error)


def run_click(command: Any, arguments: Sequence[str] | None = None, name: str | None = None) -> int:
    """Run a click command and return its exit code; usage errors have code 2.

    Args:
        command: A `click.Command`.
        arguments: The command line, by default the process's.
        name: The program name that help and errors show.
    """
    import click

    def run() -> int:
        try:
            result = command.main(None if arguments is None else list(arguments), prog_name=name, standalone_mode=False)
            return result if isinstance(result, int) else 0
        except click.Abort as error:
            raise KeyboardInterrupt from error
        except click.ClickException as error:
            error.show()
            return error.exit_code

    return run_cli(run)


def _report(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)  # every process has the same error: the main one prints it, then the launcher ends the others
    print(message, file=sys.stderr)
    summary = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if summary:  # the launcher of several processes ends with a table that shows this message
        Path(summary).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
