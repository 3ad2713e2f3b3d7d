"""The weights that are part of this package match their manifests and can be read."""

import shutil

import pytest
import torch

from teachers.loading.embedded import EMBEDDED
from teachers.support.checksums import MANIFEST, read_manifest, verify_files

NAMES = list(EMBEDDED)


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_lists_every_file_of_the_weights(name):
    folder = EMBEDDED[name].folder
    files = read_manifest(folder)["files"]
    present = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".md"]
    assert set(files) == {file.relative_to(folder).as_posix() for file in present} - {MANIFEST}
    verify_files(folder, files, files)
    assert sum(file.stat().st_size for file in present) < 8e6
    assert not any(b"_name_or_path" in file.read_bytes() for file in folder.rglob("*.json")) or name == "pocket"


@pytest.mark.parametrize("name", NAMES)
def test_latents_reference_and_judge_fit_together(name):
    teacher = EMBEDDED[name]
    latents, labels = teacher.labelled_examples()
    mean, covariance, features = teacher.reference()
    assert len(latents) == len(labels) and 0.5 < latents.std() < 2
    assert features is not None and features.shape[1:] == mean.shape == covariance.shape[:1] == covariance.shape[1:]
    assert torch.allclose(features.double().mean(0), mean, atol=0.2 * covariance.diag().max().sqrt().item())
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in teacher.judge().parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_an_error_that_names_it(name, tmp_path, monkeypatch):
    teacher = EMBEDDED[name]
    folder = shutil.copytree(teacher.folder, tmp_path / "weights")
    monkeypatch.setattr(teacher.package, "FOLDER", folder)
    monkeypatch.setattr(teacher.package, "PIPELINE", folder / "pipeline")
    assert teacher.pipeline() == folder / "pipeline"
    network = "unet" if name == "pocket" else "transformer"
    uses = {
        "latents.safetensors": teacher.examples,
        "reference.safetensors": teacher.reference,
        teacher.judge_file: teacher.judge,
        f"pipeline/{network}/config.json": teacher.pipeline,
    }
    for file, use in uses.items():
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(content)
        with pytest.raises(ValueError, match=rf"damaged \({file} has changed .*; install this package again"):
            use()
