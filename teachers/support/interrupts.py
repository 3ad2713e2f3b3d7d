"""Ctrl-C ends a command also where a library discards KeyboardInterrupt or raises another exception in its place.

Libraries do so mostly while they are imported: an extension module turns the interrupt into an ImportError, a lazy
import tries again, a destructor prints and ignores it.
"""

import _thread
import signal
import sys
import threading
import time
from typing import Any, Self

REPEAT = 2.0  # seconds until a discarded interrupt is raised again


class Interrupts:
    """Notes Ctrl-C while a command runs, and interrupts again every two seconds while nothing handles the interrupt.

    Use it as a context manager. Handlers that are in place already remain, and those that the command sets, such as
    the training loop's, receive a discarded interrupt once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._installed = False
        self._ended = False

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: object) -> None:
        if not self.requested:
            self.requested = True
            _thread.start_new_thread(self._repeat, ())  # a threading.Thread would wait for locks of the main thread
        raise KeyboardInterrupt

    def _repeat(self) -> None:
        while True:
            time.sleep(REPEAT)
            if self._ended:
                return
            if is_handled():
                continue
            _thread.interrupt_main()
            if signal.getsignal(signal.SIGINT) != self._handle:
                return  # the command's own handler may take a second interrupt for a user's


def is_handled() -> bool:
    """Whether the main thread is in an `except` or `finally` block of a KeyboardInterrupt."""
    entry: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    error = entry[1] if isinstance(entry, tuple) else entry  # Python 3.11 has (type, error, traceback)
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
