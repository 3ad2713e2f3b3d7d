"""What commands print, cleaned: names and texts of strangers must not control the terminal or hide what they say."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from teachers.support.text import one_line, printable

# What progress bars write, and nothing of others: return, cursor up by lines, the rest of the line deleted, colours.
BARS = re.compile(r"(\r|\x1b\[\d{0,3}A|\x1b\[K|\x1b\[[\d;]{0,20}m)")


# Warnings of libraries about how other libraries call them: a kind, and the beginning of the text.
FOR_DEVELOPERS = ((DeprecationWarning, ""), (FutureWarning, ""), (UserWarning, "The `local_dir_use_symlinks` argument"))


class CleanStream:
    """A text stream that writes control characters and marks of direction as escape sequences.

    Args:
        stream: The stream that it writes to.
        bars: Whether the sequences of progress bars are written as they are.
    """

    def __init__(self, stream: TextIO, bars: bool) -> None:
        self.stream, self.bars = stream, bars

    def write(self, text: str) -> int:
        """Write `text`, cleaned; returns its length."""
        if not isinstance(text, str):
            raise TypeError(f"a text stream writes str, got {type(text).__name__}")
        parts = BARS.split(text) if self.bars else [text]
        self.stream.write("".join(part if i % 2 else printable(part, lines=True) for i, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def clean_output(short: bool = True) -> Iterator[None]:
    """Clean what the block prints, warns and logs, also through other libraries.

    Args:
        short: Whether a warning or log message is one short line, without source lines and tracebacks: those about a
            foreign file can quote all of it. Warnings for developers are then left out.
    """
    write_warning, make_record = warnings.formatwarning, logging.getLogRecordFactory()

    def warning_text(message: Warning | str, *arguments: Any, **options: Any) -> str:
        if short:
            return f"warning: {one_line(str(message))}\n"
        text: Any = printable(message, lines=True)
        return write_warning(text, *arguments, **options)

    def record(*arguments: Any, **options: Any) -> logging.LogRecord:
        made = make_record(*arguments, **options)
        with suppress(Exception):  # a wrong format: logging reports it
            made.msg, made.args = _short(made) if short else printable(made.getMessage(), lines=True), ()
        return made

    warnings.formatwarning = warning_text
    logging.setLogRecordFactory(record)
    try:
        # Progress bars are on standard error; nothing else that is printed there comes from strangers unchanged.
        with (
            redirect_stdout(_clean(sys.stdout, bars=False)),
            redirect_stderr(_clean(sys.stderr, bars=True)),
            warnings.catch_warnings(),
        ):
            for kind, message in FOR_DEVELOPERS if short else ():
                warnings.filterwarnings("ignore", message, kind)
            yield
    finally:
        warnings.formatwarning = write_warning
        logging.setLogRecordFactory(make_record)


def _short(record: logging.LogRecord) -> str:
    """A record's message as one short line, with its exception instead of the traceback."""
    text, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
    record.exc_info = record.stack_info = None
    return one_line(text if error is None else f"{text} ({type(error).__name__}: {error})")


def _clean(stream: Any, bars: bool) -> Any:
    return stream if stream is None or isinstance(stream, CleanStream) else CleanStream(stream, bars)
