"""Checksums of JSON, tensors and folders: each covers all that a reader uses."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers.support.checksums import (
    Damaged,
    digest,
    load_tensors,
    read_manifest,
    read_metadata,
    read_sealed_json,
    save_tensors,
    seal,
    unseal,
    verify_files,
    write_manifest,
    write_sealed_json,
)


@pytest.mark.parametrize(
    "values", [{}, {"a": (1, 2.5), "b": {"c": None}}, {"x": math.inf, "é": "\ud83d"}, {"n": 10**30, "z": -0.0}]
)
def test_json_is_read_as_it_was_written(tmp_path, values):
    write_sealed_json(tmp_path / "a.json", values)
    assert read_sealed_json(tmp_path / "a.json") == json.loads(json.dumps(values))
    assert seal(seal(values)) == seal(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "has no checksum"),
        (json.dumps(seal({"a": 1}) | {"a": 2}), "has changed since it was written"),
        (json.dumps(seal({"a": 1}) | {"b": 2}), "has changed since it was written"),
        (json.dumps(seal({"a": 1}) | {"sha256": [1]}), "has changed since it was written"),
        ("[1]", "must be a JSON object, got list"),
        ("{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("9" * 5000, "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_other_json_is_an_error_of_one_sentence(text, message):
    with pytest.raises(Damaged, match=f"^x.json {message}"):
        unseal(text, "x.json")


def test_json_without_a_checksum_is_accepted_only_where_users_write_it():
    assert unseal('{"a": 1}', "x.json", required=False) == {"a": 1}
    with pytest.raises(Damaged, match="has changed"):
        unseal(json.dumps(seal({"a": 1}) | {"a": 2}), "x.json", required=False)


TENSORS = {"x": torch.arange(12.0).view(3, 4), "y": torch.arange(4).half()}


def test_tensors_and_metadata_are_read_as_they_were_written(tmp_path):
    save_tensors(tmp_path / "t", TENSORS, {"key": "k"})
    tensors, metadata = load_tensors(tmp_path / "t")
    assert metadata == {"key": "k"} and digest(tensors) == digest(TENSORS)
    assert read_metadata(tmp_path / "t")["key"] == "k"


@pytest.mark.parametrize(
    "changed",
    [
        {**TENSORS, "x": TENSORS["x"].view(torch.int32)},
        {**TENSORS, "y": TENSORS["y"].view(torch.bfloat16)},
        {**TENSORS, "x": TENSORS["x"].view(4, 3)},
        {**TENSORS, "x": TENSORS["x"] + 1},
        {"x": TENSORS["y"], "y": TENSORS["x"]},
        {"x": TENSORS["x"]},
        {**TENSORS, "z": torch.ones(1)},
    ],
)
def test_other_values_dtypes_shapes_and_names_are_found(tmp_path, changed):
    save_tensors(tmp_path / "t", TENSORS, {"key": "k"})
    metadata = raw_metadata(tmp_path / "t")
    save_file(changed, tmp_path / "t", metadata=metadata)
    assert read_metadata(tmp_path / "t")["key"] == "k"
    with pytest.raises(Damaged, match="has changed since it was written"):
        load_tensors(tmp_path / "t")


@pytest.mark.parametrize("metadata", [None, {"key": "k"}, {"key": "other"}, {"key": "k", "more": "1"}])
def test_other_metadata_are_found_without_reading_the_tensors(tmp_path, metadata):
    save_tensors(tmp_path / "t", TENSORS, {"key": "k"})
    kept = raw_metadata(tmp_path / "t") if metadata != {"key": "k"} and metadata else {}
    save_file(load_file(tmp_path / "t"), tmp_path / "t", metadata={**kept, **(metadata or {})} or None)
    for read in (read_metadata, load_tensors):
        with pytest.raises(Damaged, match=r"has (changed|no checksum)"):
            read(tmp_path / "t")
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path / "missing")


def raw_metadata(file):
    size = int.from_bytes(file.read_bytes()[:8], "little")
    return json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]


def test_a_manifest_covers_the_files_of_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b", "page.md"):
        (tmp_path / name).write_text(name)
    write_manifest(tmp_path, {"key": "k"})
    manifest = read_manifest(tmp_path)
    assert manifest["key"] == "k" and set(manifest["files"]) == {"a", "sub/b"}
    verify_files(tmp_path, manifest["files"], manifest["files"])
    (tmp_path / "a").write_text("b")
    with pytest.raises(Damaged, match="a has changed since it was written"):
        verify_files(tmp_path, manifest["files"], ["a"])
    for name in ("c", "sub"):
        with pytest.raises(Damaged, match=f"{name} is missing"):
            verify_files(tmp_path, manifest["files"] | {"c": "0"}, [name])
