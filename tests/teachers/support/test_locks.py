"""Two commands never write into one folder, and a pipeline is not replaced while it is read."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from teachers.support.files import atomic_write
from teachers.support.locks import hold, lock_folder, replaced

HOLD = """
import sys, time
from pathlib import Path
from teachers.support.locks import lock_folder
with lock_folder(Path(sys.argv[1]), "--out", "choose another folder with --out"):
    print("held", flush=True)
    time.sleep(100)
"""
ADVICE = "choose another folder with --out"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_command_is_refused_with_the_folder_and_the_process(tmp_path, holder):
    message = f"--out {tmp_path} is in use by another command .process {holder.pid} on .*; wait until .* with --out"
    with pytest.raises(ValueError, match=message), lock_folder(tmp_path, "--out", ADVICE):
        pass


def test_killed_command_does_not_block_the_next_one(tmp_path, holder):
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path, "--out", ADVICE):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_file_systems_without_locks_cost_a_warning(tmp_path, monkeypatch, number):
    def flock(handle, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="does not support locks"), lock_folder(tmp_path, "--out", ADVICE):
        pass
    with hold(tmp_path):
        pass


def test_link_at_the_name_of_the_lock_is_refused_and_its_target_unchanged(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="cannot be written"), lock_folder(tmp_path / "run", "--out", ADVICE):
        pass
    assert (tmp_path / "precious").read_text() == "content"


def test_special_file_at_the_name_of_the_lock_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match="must be a regular file"), lock_folder(tmp_path, "--out", ADVICE):
        pass


def test_text_of_the_lock_is_not_repeated_if_it_is_not_ours(tmp_path, holder):
    (tmp_path / ".lock").write_text("\x1b[31mprocess 1 on host; rm -rf")
    with pytest.raises(ValueError, match="unknown process") as error, lock_folder(tmp_path, "--out", ADVICE):
        pass
    assert "\x1b" not in str(error.value)


def test_file_in_place_of_the_folder_is_an_error_with_advice(tmp_path):
    (tmp_path / "out").write_text("")
    with (
        pytest.raises(ValueError, match=r"out cannot be written .*; choose"),
        lock_folder(tmp_path / "out", "--out", ADVICE),
    ):
        pass


def test_temporary_files_of_killed_commands_are_removed_and_others_kept(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run / "cache" / ".key.tmp", run / ".pipeline.tmp", run / "cache" / "pairs", elsewhere):
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    kept = {run / ".foreign.tmp", elsewhere / ".mine.tmp"}
    for file in (*kept, run / ".log.jsonl.tmp", run / "log.jsonl", run / "cache" / "pairs" / ".0.safetensors.4711.tmp"):
        file.write_text("")
    (run / "cache" / "link").symlink_to(elsewhere)
    patterns = (".pipeline*.tmp", ".*.jsonl*.tmp", "cache/**/.*.tmp", "cache/link/.*.tmp")
    with lock_folder(run, "--out", ADVICE, patterns):
        assert set(tmp_path.rglob(".*.tmp")) == kept
        assert (run / "log.jsonl").is_file() and (run / "cache" / "pairs" / "file").is_file()


def test_pipeline_whose_replacement_was_interrupted_gets_its_name_back(tmp_path):
    (tmp_path / ".pipeline.old.tmp").mkdir()
    (tmp_path / ".pipeline.old.tmp" / "unet").write_text("old")
    (tmp_path / ".pipeline.tmp").mkdir()
    with lock_folder(tmp_path, "--out", ADVICE, (".pipeline*.tmp",)):
        assert (tmp_path / "pipeline" / "unet").read_text() == "old"
        assert not list(tmp_path.glob(".pipeline*"))


@pytest.mark.slow
def test_pipeline_is_replaced_after_its_readers_have_ended(tmp_path, capsys):
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "unet").write_text("old")

    def export() -> None:
        with replaced(pipeline), atomic_write(pipeline) as temporary:
            temporary.mkdir()
            (temporary / "unet").write_text("new")

    thread = threading.Thread(target=export)
    with hold(pipeline), hold(pipeline):  # readers share
        thread.start()
        time.sleep(0.3)
        assert (pipeline / "unet").read_text() == "old"
    thread.join(10)
    assert (pipeline / "unet").read_text() == "new"
    assert f"waiting until no other process reads {pipeline}" in capsys.readouterr().out


def test_reader_that_waited_for_an_export_reads_the_new_pipeline(tmp_path):
    pipeline, read = tmp_path / "pipeline", []
    pipeline.mkdir()

    def reader() -> None:
        with hold(pipeline):
            read.append((pipeline / "unet").read_text())

    thread = threading.Thread(target=reader)
    with replaced(pipeline), atomic_write(pipeline) as temporary:
        thread.start()
        time.sleep(0.2)
        temporary.mkdir()
        (temporary / "unet").write_text("new")
    thread.join(10)
    assert read == ["new"]


def test_folder_that_does_not_exist_needs_no_lock(tmp_path: Path):
    with replaced(tmp_path / "missing"), hold(tmp_path / "missing"):
        pass
