"""Processes that start at once: forks of a server that has imported everything.

A new interpreter imports torch, diffusers and transformers for six seconds of processor time. multiprocessing's server
imports them once for each worker of pytest. It computes nothing: threads of a computation would not survive a fork.
Tests about the start of an interpreter, or about a command's own arguments, start one with `subprocess`.
"""

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


class Fork:
    """A process that runs a function.

    Attributes:
        process: The process; its standard output and error are the files `folder`/out and `folder`/error.
    """

    def __init__(
        self, folder: Path, target: Callable[..., object], *words: object, variables: Mapping[str, str] | None = None
    ) -> None:
        """Start `target`(*`words`), a function of a module, with more environment variables.

        An integer that it returns is the exit code.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.process = CONTEXT.Process(target=_run, args=(folder, target, words, dict(variables or {})))
        self.process.start()

    @property
    def out(self) -> str:
        return _text(self.folder / "out")

    @property
    def error(self) -> str:
        return _text(self.folder / "error")

    def wait_for(self, pattern: str, seconds: float = 150.0) -> None:
        """Wait until the process has printed text that a regular expression matches.

        Raises:
            AssertionError: The process ended first, or did not print it in time.
        """
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.out + self.error):
            assert self.process.is_alive() and time.monotonic() < deadline, self.error
            time.sleep(0.02)

    def wait(self, seconds: float = 150.0) -> int:
        """Wait for the end of the process; returns its exit code.

        Raises:
            AssertionError: The process is still running after `seconds`.
        """
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds:.0f} seconds"
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _run(folder: Path, target: Callable[..., object], words: tuple[object, ...], variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    for number, name in ((1, "out"), (2, "error")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
    code = target(*words)
    raise SystemExit(code if isinstance(code, int) else 0)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
