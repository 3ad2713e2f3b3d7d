"""Ctrl-C ends a command also where a library discards the interrupt or raises another exception in its place."""

import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from teachers.support.errors import EXIT_INTERRUPTED, run_cli

LIMIT = 20.0  # seconds that a command below works if nothing interrupts it


def work(seconds=LIMIT):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def discard():
    with suppress(BaseException):
        signal.raise_signal(signal.SIGINT)
    work()


def replace():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("numpy failed to import") from None


def discard_in_a_destructor():
    class Noisy:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    Noisy()
    work()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("command", [discard, replace, discard_in_a_destructor])
@pytest.mark.slow
def test_an_interrupt_is_never_lost(command, capsys):
    begin = time.monotonic()
    assert run_cli(command) == EXIT_INTERRUPTED
    assert time.monotonic() - begin < LIMIT
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; run the same command again to continue"


@pytest.mark.slow
def test_a_slow_clean_up_is_not_interrupted_again():
    cleaned = []

    def command():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            work(5.0)  # longer than two repetitions
            cleaned.append(True)

    assert run_cli(command) == EXIT_INTERRUPTED
    assert cleaned


@pytest.mark.slow
def test_a_handler_of_the_command_receives_a_discarded_interrupt_once():
    received = []

    def command():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        previous = signal.signal(signal.SIGINT, lambda *_: received.append(True))
        work(5.0)
        signal.signal(signal.SIGINT, previous)
        return 7

    assert run_cli(command) == 7
    assert received == [True]


def test_handlers_are_restored_and_those_in_place_remain():
    assert run_cli(lambda: 0) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def mine(*_):
        pass

    signal.signal(signal.SIGINT, mine)
    try:
        assert run_cli(lambda: signal.getsignal(signal.SIGINT) is mine) == 1
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["distill.config.recipe", "numpy", "torch._C", "torch", "diffusers.utils"])
@pytest.mark.first_by_default
def test_an_interrupt_during_imports_is_one_line(module, tmp_path):
    words = ["train", "pocket/dmd", "train.steps=100000", f"output={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "distill", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            break
        assert "step 0:" not in line, f"{module} is not imported before training"
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    printed = [line for line in error.splitlines() if not line.startswith("import time:")]
    assert process.returncode in (0, EXIT_INTERRUPTED), printed
    assert "Traceback" not in error and "run the same command again to continue" in out + error
