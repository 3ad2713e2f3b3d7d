"""Hashes, and writes that replace a file or folder as a whole."""

import errno
import hashlib
import os
import signal

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from teachers.support.files import atomic_write, remove_folder, sha256, sha256_file, tensor_bytes


def test_sha256_of_parts_equals_hashlib(tmp_path):
    content = os.urandom(3 * 2**20 + 17)  # several blocks
    file = tmp_path / "data.bin"
    file.write_bytes(content)
    assert sha256_file(file) == hashlib.sha256(content).hexdigest()
    expected = hashlib.sha256(b"before" + content + b"after").hexdigest()
    assert sha256([b"before", file, memoryview(b"after")]) == expected


@pytest.mark.parametrize("tensor", [torch.arange(6.0).reshape(2, 3).T, torch.tensor(2.5), torch.ones(3).bfloat16()])
def test_tensor_bytes_are_row_major(tensor):
    values = torch.frombuffer(bytearray(tensor_bytes(tensor)), dtype=tensor.dtype)
    assert torch.equal(values, tensor.flatten())


@pytest.mark.parametrize("concurrent", [False, True])
def test_file_appears_when_the_block_ends(tmp_path, concurrent):
    file = tmp_path / "report.json"
    file.write_text("old")
    with atomic_write(file, concurrent) as temporary:
        assert temporary.parent == tmp_path and not temporary.exists()
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_concurrent_writers_have_temporary_names_of_their_own(tmp_path):
    with atomic_write(tmp_path / "a", concurrent=True) as temporary:
        temporary.write_text("")
        assert str(os.getpid()) in temporary.name


def test_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "old").write_text("")
    with atomic_write(folder) as temporary:
        (temporary / "unet").mkdir(parents=True)
        (temporary / "unet" / "new").write_text("")
        assert (folder / "old").exists()
    assert [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*"))] == ["unet", "unet/new"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_removes_the_temporary_and_keeps_the_old_version(tmp_path, kind, error):
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        if kind == "folder":
            temporary.mkdir()
            (temporary / "part").write_text("half")
        else:
            temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_block_that_writes_nothing_raises_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_temporary_of_a_killed_process_is_replaced_by_the_next_write(tmp_path):
    file = tmp_path / "log.jsonl"
    child = os.fork()
    if child == 0:
        with atomic_write(file) as temporary:
            temporary.mkdir()
            (temporary / "part").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".log.jsonl.tmp"]
    with atomic_write(file) as temporary:
        temporary.write_text("complete")
    assert file.read_text() == "complete" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0: file write failed"),
    ],
)
def test_full_disk_is_one_error_with_the_path(tmp_path, error):
    with (
        pytest.raises(OSError, match=r"pipeline cannot be written \(.+\)$"),
        atomic_write(tmp_path / "pipeline") as temporary,
    ):
        temporary.mkdir()
        raise error
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_block_are_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), atomic_write(tmp_path / "pipeline"):
        raise RuntimeError("shapes differ")


def test_remove_folder(tmp_path):
    folder = tmp_path / "00000010"
    folder.mkdir()
    (folder / "weights").write_text("")
    remove_folder(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
@pytest.mark.parametrize("name", ["weights.safetensors", "folder"])
def test_weights_have_the_mode_of_the_umask(tmp_path, umask, mode, name):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / name) as temporary:
            if name == "folder":
                (temporary / "unet").mkdir(parents=True)
            save_file({"a": torch.zeros(2)}, temporary / "unet/weights.safetensors" if name == "folder" else temporary)
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.rglob("*.safetensors")}
    assert modes == {mode} and not list(tmp_path.rglob("*.tmp"))
