"""Shards of tensors and tables of their rows."""

import pytest
import torch
from safetensors import SafetensorError

from distill.data import shards
from distill.data.shards import Table, compact, is_valid, write

CPU = torch.device("cpu")


def test_large_table_reads_rows_from_its_shards(monkeypatch):
    parts = [{"a": torch.randn(n, 3), "b": torch.arange(n)} for n in (4, 1, 6)]
    rows = torch.tensor([10, 0, 4, 3, 4, 5])
    small = Table(parts, CPU)
    monkeypatch.setattr(shards, "RESIDENT", 0)
    large = Table(parts, CPU)
    assert small.resident and not large.resident and len(large) == len(small) == 11
    assert all(torch.equal(small.gather(rows)[key], large.gather(rows)[key]) for key in ("a", "b"))
    assert torch.equal(large.gather(rows)["a"], torch.cat([part["a"] for part in parts])[rows])


def test_half_precision_is_stored_only_without_loss():
    exact, other = torch.tensor([1.5, 1024.0]), torch.tensor([1.5, 832.3])
    assert compact(exact, torch.bfloat16).dtype == torch.bfloat16
    assert compact(other, torch.bfloat16).dtype == torch.float32
    assert compact(torch.arange(3), torch.bfloat16).dtype == torch.int64


def test_shard_with_another_key_or_too_few_rows_is_invalid(tmp_path):
    file = tmp_path / "a.safetensors"
    write(file, "key", {"x": torch.ones(3, dtype=torch.bfloat16)})
    assert is_valid(file, "key", 3) and not is_valid(file, "other") and not is_valid(file, "key", 4)
    assert not is_valid(tmp_path / "b.safetensors", "key")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_full_disk_is_an_error_and_old_temporary_files_are_removed(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    (tmp_path / ".a.safetensors.999999.tmp").write_bytes(b"half a shard")
    write(file, "key", {"x": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_tensors", full)
    with pytest.raises(ValueError, match=r"cannot be written \(Error while serializing: .*No space left"):
        write(file, "another", {"x": torch.ones(3)})
    write(file, "key", {"x": torch.ones(3)})  # another run has written it in the meantime
