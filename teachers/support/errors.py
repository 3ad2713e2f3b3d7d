"""Command line errors: one sentence on standard error and an exit code instead of a traceback.

`reading` turns any exception of reading a foreign file into such a sentence; `run_cli` prints it. `--debug`, or
FEWSTEP_DEBUG=1 in the environment, prints the traceback too.
"""

import difflib
import dis
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from teachers.support.interrupts import Interrupts
from teachers.support.plugins import OWN_PACKAGES, plugin_at_fault
from teachers.support.terminal import clean_output
from teachers.support.text import LONGEST_LINE, one_line, printable

Source = TypeVar("Source")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
EXIT_UNEXPECTED, EXIT_ERROR, EXIT_FAILED = 1, 2, 3
EXIT_SIGNAL = 128  # plus the number of the signal that ended a command, as in a shell
EXIT_INTERRUPTED, EXIT_TERMINATED = EXIT_SIGNAL + signal.SIGINT, EXIT_SIGNAL + signal.SIGTERM
# "1" in the environment: tracebacks are printed, also those of processes that a launcher starts.
DEBUG = "FEWSTEP_DEBUG"
LONGEST = 2000  # characters of an error message


def suggest(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` with the closest of the `known` words, "" where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


@contextmanager
def reading(what: object, problem: str = "cannot be used") -> Iterator[None]:
    """Turn any exception of reading or checking a foreign file into a ValueError that names it.

    Sentences for the user and failed allocations pass unchanged.

    Args:
        what: The file or folder, or what the user calls it.
        problem: What the exception means.

    Raises:
        ValueError: If the block raises another exception than those.
    """
    try:
        yield
    except BaseException as error:
        if not is_foreign(error) or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise ValueError(f"{printable(what)} {problem}: {reason(error)}") from error


def reads(
    function: Callable[Concatenate[Source, Arguments], Result],
) -> Callable[Concatenate[Source, Arguments], Result]:
    """Decorator of a function that reads the foreign file or folder that is its first argument; see `reading`."""

    @wraps(function)
    def read(source: Source, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with reading(source):
            return function(source, *args, **kwargs)

    return read


def is_foreign(error: BaseException) -> bool:
    """Whether `error`, raised while a foreign file is read, is not a sentence for the user yet."""
    if not isinstance(error, Exception):
        return type(error).__name__ == "PanicException"  # of tokenizers and safetensors, which are written in Rust
    return not (is_sentence(error) or is_out_of_memory(error) or is_connection(error))


def is_sentence(error: BaseException) -> bool:
    """Whether `error` is a ValueError or OSError that this project's code raises deliberately, for the user."""
    trace = error.__traceback__
    if trace is None or not isinstance(error, ValueError | OSError):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in OWN_PACKAGES and instruction == dis.opmap["RAISE_VARARGS"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is Python's or torch's error of a failed allocation, on the CPU or on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
        or "can't allocate memory" in str(error)
    )


def is_connection(error: BaseException) -> bool:
    """Whether `error` is torch's error of a lost connection to another process of the run."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in names or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def reason(error: BaseException) -> str:
    """An exception of a library as a short phrase on one line."""
    text = one_line(str(error), LONGEST_LINE)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"the key {text} is missing"
    name = "" if isinstance(error, ValueError) and text else type(error).__name__
    return f"{name}: {text}" if name and text else name or text


def run_cli(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code.

    A ValueError or OSError is a user's mistake: its message is printed and the code is 2, also if the memory does not
    suffice. Ctrl-C gives code 130. Any other exception is a bug of this project: the code is 1, and the message asks
    for a report. What the command prints, warns and logs is cleaned of control characters, which names and texts of
    strangers may contain.

    Args:
        command: What to run; an int that it returns is the exit code.
    """
    for stream in (sys.stdout, sys.stderr):  # without UTF-8, what cannot be printed must not end a run
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")
    with Interrupts() as interrupts:
        try:
            with clean_output(short=not is_debugging()):
                result = command()
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, KeyboardInterrupt) or interrupts.requested:
                code, message = EXIT_INTERRUPTED, "interrupted; run the same command again to continue"
            else:
                code, message = _outcome(error)
            if is_debugging():
                traceback.print_exc()
            if code != EXIT_INTERRUPTED:
                _report(message)
            elif _is_main():
                print(message, file=sys.stderr)
            return code
        return result if isinstance(result, int) else 0


def is_debugging() -> bool:
    """Whether tracebacks are printed."""
    return os.environ.get(DEBUG) == "1"


def _outcome(error: Exception) -> tuple[int, str]:
    """The exit code of a command that ends with `error`, and what it prints."""
    if is_out_of_memory(error):
        cause = " ".join(str(error).split())[:200] or "MemoryError"
        return EXIT_ERROR, f"error: not enough memory ({cause}); use smaller batches (train.accumulation, --batch-size)"
    if isinstance(error, UnicodeEncodeError):
        return EXIT_ERROR, f"error: {error.object[:100]!a} {_unwritable(error)}"
    text = one_line(str(error), LONGEST)
    if isinstance(error, ValueError | OSError):
        return EXIT_ERROR, f"error: {text or type(error).__name__}"
    if is_connection(error):
        return EXIT_UNEXPECTED, (
            f"error: the connection between the processes of this run failed ({reason(error)}); "
            "run the same command again to continue from the last checkpoint"
        )
    last, text = traceback.extract_tb(error.__traceback__)[-1:], one_line(str(error), LONGEST_LINE)
    where = f" ({Path(last[0].filename).name}, line {last[0].lineno})" if last else ""
    if plugin := plugin_at_fault(error):
        return EXIT_UNEXPECTED, (
            f"error: the plug-in {plugin} failed: {type(error).__name__}: {text}{where}; run again with --debug for "
            "the traceback"
        )
    return EXIT_UNEXPECTED, (
        f"unexpected error: {type(error).__name__}: {text}{where}; please report it, run again with --debug "
        "for the traceback"
    )


def _unwritable(error: UnicodeEncodeError) -> str:
    if error.encoding.lower().startswith("utf"):
        return "contains half of a surrogate pair, so it is not text; save it as UTF-8"
    return f"cannot be written in this machine's encoding, {error.encoding}; set PYTHONUTF8=1 in the environment"


def run_click(command: Any, arguments: Sequence[str] | None = None, name: str | None = None) -> int:
    """Run a click command and return its exit code; usage errors have code 2.

    Args:
        command: A `click.Command`; it and its subcommands get the option `--debug`.
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

    add_debug_option(command)
    before = os.environ.get(DEBUG)
    try:
        return run_cli(run)
    finally:
        if before is None:
            os.environ.pop(DEBUG, None)


def add_debug_option(command: Any) -> None:
    """Give a click command and all its subcommands the option `--debug`."""
    import click

    def switch_on(ctx: object, parameter: object, value: bool) -> None:
        if value:
            os.environ[DEBUG] = "1"

    if not any(parameter.name == "debug" for parameter in command.params):
        text = "Print the traceback of an error."
        command.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, is_eager=True, callback=switch_on, help=text)
        )
    for child in getattr(command, "commands", {}).values():
        add_debug_option(child)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _report(message: str) -> None:
    if not _is_main():
        time.sleep(10)  # every process has the same error: the main one prints it, then the launcher ends the others
    print(message, file=sys.stderr)
    summary = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if summary:  # the launcher of several processes ends with a table that shows this message
        Path(summary).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
