"""Exit codes and messages of commands that fail; tracebacks with --debug only."""

import json
import logging
import os
import re
import sys
import warnings

import click
import pytest

from distill.cli import fewstep as commands
from eval.__main__ import demo, evaluate
from teachers.__main__ import teachers
from teachers.support import errors
from teachers.support.errors import reading, reads, run_cli, run_click
from teachers.support.files import sha256_file


def fail(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), KeyError("a bug"), TypeError("a bug\nof two lines"), AssertionError(), IndexError()],
)
def test_unexpected_error_asks_for_a_report_and_has_code_1(error, capsys):
    assert run_cli(fail(error)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"unexpected error: {type(error).__name__}: ") and "please report it" in line
    assert re.search(r"test_errors\.py, line \d+", line) and "--debug" in line


def endless():
    endless()


def test_recursion_without_end_is_one_line(capsys):
    assert run_cli(endless) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("error", "code"), [(ValueError("wrong"), 2), (KeyError("bug"), 1), (OSError("disk"), 2)])
def test_debug_prints_the_traceback_before_the_message(error, code, monkeypatch, capsys):
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    assert run_cli(fail(error)) == code
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last)") and "error: " in text.splitlines()[-1]


def test_debug_option_shows_the_cause_and_ends_with_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("FEWSTEP_DEBUG", raising=False)

    @click.command()
    def broken():
        with reading(tmp_path / "a.json"):
            json.loads("{")

    for words, traceback in (([], False), (["--debug"], True), ([], False)):
        assert run_click(broken, words, "broken") == 2
        text = capsys.readouterr().err
        assert ("Traceback" in text) == ("direct cause" in text) == traceback
        assert text.splitlines()[-1].startswith(f"error: {tmp_path / 'a.json'} cannot be used: Expecting property name")
    assert "FEWSTEP_DEBUG" not in os.environ


def every_command(command, name):
    yield name, command
    for word, child in getattr(command, "commands", {}).items():
        yield from every_command(child, f"{name} {word}")


@pytest.mark.parametrize("top", [commands, evaluate, demo, teachers], ids=["fewstep", "eval", "demo", "teachers"])
def test_every_command_has_the_debug_option_once(top, capsys):
    for _ in "12":
        assert run_click(top, ["--help"], "name") == 0
        assert "--debug" in capsys.readouterr().out
    found = list(every_command(top, "name"))
    for name, command in found:
        assert [parameter.name for parameter in command.params].count("debug") == 1, name


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: json.loads("{"), "cannot be used: Expecting property name"),
        (lambda: {}["_class_name"], "cannot be used: the key '_class_name' is missing"),
        (lambda: [] + {}, "cannot be used: TypeError: can only concatenate"),
        (lambda: json.loads("[" * 100_000), "cannot be used: it is nested too deeply"),
        (b"\xff".decode, "cannot be used: 'utf-8' codec can't decode"),
        (lambda: 10.0**400, "cannot be used: OverflowError"),
        (lambda: int("1" * 5000), "cannot be used: Exceeds the limit"),
    ],
)
def test_any_exception_of_a_reader_names_the_file(read, message):
    @reads
    def reader(source):
        return read()

    with pytest.raises(ValueError, match=f"^{re.escape('a/b.json')} {message}"):
        reader("a/b.json")


def test_message_of_a_reader_is_one_short_line_without_control_characters(capsys):
    def command():
        with reading("a\x1b[31m\nb"):
            raise RuntimeError("\x1b]0;title\x07" + "long " * 10_000)

    assert run_cli(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line and "\x07" not in line and r"a\x1b[31m\nb" in line and len(line) < 500


def test_sentences_of_the_project_pass_unchanged(tmp_path):
    from teachers.support.text import read_text

    (tmp_path / "a.txt").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match=r"^.*a\.txt, line 1: the byte 0xff is not UTF-8 text"), reading("the caption"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError), reading("the weights"):
        sha256_file(tmp_path / "none")


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyboardInterrupt(), SystemExit(3), RuntimeError("[/x/gloo/y.cc:1] closed")]
)
def test_what_is_no_fault_of_a_file_passes_a_reader(error):
    with pytest.raises(type(error)), reading("a.json"):
        raise error


def test_panic_of_a_rust_library_is_an_error_of_the_file():
    panic = type("PanicException", (BaseException,), {})
    message = r"^tokenizer\.json cannot be used: PanicException: out of range$"
    with pytest.raises(ValueError, match=message), reading("tokenizer.json"):
        raise panic("out of range")


def test_only_the_main_process_reports_an_interruption(monkeypatch, capsys):
    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert run_cli(fail(KeyboardInterrupt())) == 130
        assert bool(capsys.readouterr().err) == printed


def test_other_processes_report_after_the_main_one(monkeypatch, tmp_path):
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run_cli(fail(RuntimeError("a bug"))) == 1
    assert waited == [10]
    assert json.loads((tmp_path / "error.json").read_text())["message"].startswith("unexpected error")


def test_library_messages_are_one_short_line_inside_a_command(capsys):
    logger = logging.getLogger("some.library")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:

        def command():
            logger.warning("the config %s\nis ignored", {"a": "\x1b[31m" + "x" * 999})
            try:
                raise KeyError("inner")
            except KeyError:
                logger.exception("failed")
            text = warnings.formatwarning(
                "first\nsecond " + "y" * 999, UserWarning, __file__, 1
            )  # pytest keeps warnings
            assert text.startswith("warning: first second y") and len(text) < 400 and text.count("\n") == 1

        assert run_cli(command) == 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and all(len(line) < 400 and "\x1b" not in line for line in lines)
        assert lines[1] == "failed (KeyError: 'inner')"
        assert logging.getLogRecordFactory() is logging.LogRecord
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        (FutureWarning, "`a` is deprecated", False),
        (DeprecationWarning, "`a` is deprecated", False),
        (UserWarning, "The `local_dir_use_symlinks` argument is deprecated and ignored", False),
        (UserWarning, "the disk is full", True),
    ],
)
def test_warnings_for_developers_are_left_out(kind, text, shown, monkeypatch):
    for debugging in ("0", "1"):
        monkeypatch.setenv("FEWSTEP_DEBUG", debugging)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_cli(lambda: warnings.warn(text, kind, stacklevel=1))
        assert bool(caught) == (shown or debugging == "1")
