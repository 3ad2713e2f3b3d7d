"""Warnings and log messages of libraries as one short line each: those about a foreign file can quote all of it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from teachers.support.text import printable, split_lines

LONGEST = 300  # characters of a log message or warning


def shorten(text: str, longest: int) -> str:
    """`text` with at most about `longest` characters: beginning and end, with "..." between them."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 3 // 4]} ... {text[-longest // 4 :]}"


def one_line(text: str, longest: int = LONGEST) -> str:
    """`text` as one line of at most about `longest` characters, without control characters."""
    lines = split_lines(shorten(text, 4 * longest))  # escaping all of a huge text would take minutes
    return shorten(" ".join(printable(line.strip()) for line in lines if line.strip()), longest)


@contextmanager
def short_messages(on: bool = True) -> Iterator[None]:
    """Inside the block, log messages and warnings are one short line each, without tracebacks and source lines."""
    if not on:
        yield
        return
    factory, format_warning = logging.getLogRecordFactory(), warnings.formatwarning
    logging.setLogRecordFactory(_ShortRecord)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(str(message))}\n"
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = format_warning


class _ShortRecord(logging.LogRecord):
    """A log record whose message is one short line; of an exception it has the type and the message."""

    def getMessage(self) -> str:
        error = self.exc_info[1] if self.exc_info else None
        text = super().getMessage()
        if error is not None:
            self.exc_info = None
            self.msg, self.args = f"{text} ({type(error).__name__}: {error})", None
            text = str(self.msg)
        return one_line(text)
