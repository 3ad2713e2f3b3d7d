"""The weights that are part of this package match their manifest."""

import shutil

import pytest

from teachers import pocket
from teachers.support.checksums import MANIFEST, check_files, read_manifest


def test_the_manifest_lists_every_file_of_the_weights():
    files = read_manifest(pocket.FOLDER)["files"]
    present = [file for file in pocket.FOLDER.rglob("*") if file.is_file() and file.suffix != ".md"]
    assert set(files) == {file.relative_to(pocket.FOLDER).as_posix() for file in present} - {MANIFEST}
    check_files(pocket.FOLDER, files, files)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path, monkeypatch):
    folder = shutil.copytree(pocket.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(pocket, "FOLDER", folder)
    monkeypatch.setattr(pocket, "PIPELINE", folder / "pipeline")
    assert pocket.pipeline() == folder / "pipeline"
    for name, use in {"latents.safetensors": pocket.examples, "pipeline/unet/config.json": pocket.pipeline}.items():
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"damaged \({name} has changed .*; install this package again"):
            use()
