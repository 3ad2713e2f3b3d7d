"""distill.json: a pipeline is used only if it has the files that its export wrote."""

import json

import pytest

from teachers.loading.record import RECORD, read_record, write_record


@pytest.fixture
def pipeline(tmp_path):
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(5000))
    (folder / "README.md").write_text("a card")
    write_record(folder, {"name": "x", "calls": [1]})
    return folder


def test_the_record_lists_the_files_but_not_the_card(pipeline):
    record = read_record(pipeline)
    assert set(record["files"]) == {"model_index.json", "unet/weights.safetensors"} and record["name"] == "x"
    (pipeline / "README.md").write_text("a card with an evaluation")
    (pipeline / "notes.txt").write_text("of a user")
    assert read_record(pipeline, complete=True) == record


def test_a_changed_file_or_record_is_an_error_with_advice(pipeline):
    weights = pipeline / "unet" / "weights.safetensors"
    weights.write_bytes(bytes(4999) + b"\1")
    advice = r'; export the pipeline again \(if the change is intended, remove "files" and "sha256" from distill.json\)'
    with pytest.raises(ValueError, match=rf"weights\.safetensors is not the file that distill\.json lists{advice}"):
        read_record(pipeline)
    stored = json.loads((pipeline / RECORD).read_text())
    (pipeline / RECORD).write_text(json.dumps(stored | {"calls": [2]}))
    with pytest.raises(ValueError, match=rf"distill\.json has changed since it was written .*{advice}"):
        read_record(pipeline)
    del stored["files"], stored["sha256"]
    (pipeline / RECORD).write_text(json.dumps(stored | {"calls": [2]}))
    assert read_record(pipeline)["calls"] == [2]


def test_missing_files_are_an_error_only_if_the_pipeline_must_be_complete(pipeline):
    (pipeline / "unet" / "weights.safetensors").unlink()
    read_record(pipeline)
    with pytest.raises(ValueError, match="is not the file that distill"):
        read_record(pipeline, complete=True)


def test_files_outside_the_folder_are_not_read(pipeline, tmp_path):
    (tmp_path / "secret").write_text("x")
    (pipeline / RECORD).write_text(json.dumps({"files": {"../secret": "0", str(tmp_path / "secret"): "0", "": "0"}}))
    assert "files" in read_record(pipeline)
    (pipeline / RECORD).write_text(json.dumps({"files": [1]}))
    with pytest.raises(ValueError, match=r'"files" in .* must be a mapping, got list'):
        read_record(pipeline)
