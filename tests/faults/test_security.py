"""Security of runs: no execution of data, no writes or reads outside of their folders, no secrets in outputs.

See also: plug-ins (tests/distill/config/test_plugins.py), pickles in checkpoints (test_checkpoints.py), mutated recipes
(test_fuzz.py), members of .tar datasets (tests/distill/data/test_images.py), and HTML in reports
(tests/eval/report/test_report.py).
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.config.recipe import load
from distill.data.images import ImageFolder
from distill.train import train
from distill.training import checkpoint
from teachers.support.checksums import MANIFEST, seal
from tests.commands import eval_main

SECRETS = {
    "HF_TOKEN": "hf_canaryCanaryCanary",
    "HUGGING_FACE_HUB_TOKEN": "hf_otherOtherOther",
    "WANDB_API_KEY": "cafe" * 10,
    "AWS_SECRET_ACCESS_KEY": "awsCanaryCanary",
}
OBJECTS = [
    "!!python/object/apply:os.mkdir [exploded]",
    "!!python/object/new:os.mkdir [exploded]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
]


@pytest.mark.parametrize("value", OBJECTS)
@pytest.mark.parametrize("where", ["name", "method", "notes"])
def test_recipes_create_no_python_objects(tmp_path, monkeypatch, value, where):
    monkeypatch.chdir(tmp_path)
    values = {"name": "x", "teacher": "{family: stable_diffusion, path: pocket}", "method": "{name: dmd}"} | {
        where: value
    }
    (tmp_path / "recipe.yaml").write_text("".join(f"{key}: {text}\n" for key, text in values.items()))
    with pytest.raises(ValueError, match=r"recipe\.yaml is not valid YAML: .*python/"):
        load("recipe.yaml")
    assert not (tmp_path / "exploded").exists()


def all_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_run_and_report_write_only_into_their_folders_and_no_secrets(recipe, tmp_path, monkeypatch, capsys):
    for key, value in SECRETS.items():
        monkeypatch.setenv(key, value)
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    run = recipe("train.steps=1", "train.evaluate_every=1", "train.tracker=tensorboard", "teacher.num_steps=2")
    train(run)
    report = tmp_path / "runs" / "report"
    assert eval_main([str(run.folder), "--samples", "2", "--batch-size", "2", "--out", str(report)]) == 0
    files = all_files(tmp_path)
    folders = (run.folder, run.cache, report)
    assert not {file for file in files if not any(folder in file.parents for folder in folders)}
    assert (report / "report.html") in files and (run.folder / "log.jsonl") in files
    output = capsys.readouterr()
    contents = {str(file): file.read_bytes() for file in files} | {"output": (output.out + output.err).encode()}
    for secret in SECRETS.values():
        assert not [name for name, content in contents.items() if secret.encode() in content]


@pytest.mark.parametrize("name", ["../secret.png", "{absolute}", "sub/../../secret.png"])
def test_metadata_cannot_add_images_outside_the_folder(tmp_path, name):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "secret.png", folder / "a.png"):
        Image.new("RGB", (8, 8)).save(file)
    named = name.format(absolute=tmp_path / "secret.png")
    rows = [{"file_name": named, "text": "a secret"}, {"file_name": "a.png", "text": "a coat"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 1: there is no image "):
        ImageFolder(folder, True)


def test_manifest_cannot_add_files_outside_the_checkpoint(tmp_path):
    """Only the files of a checkpoint are read, whatever a manifest lists."""
    state = checkpoint.Checkpoint({"a": torch.ones(4)}, {"b": torch.ones(4)}, {"student": {}}, {"step": 1})
    checkpoint.save(tmp_path / "c", state, keep=1)
    manifest = tmp_path / "c" / "00000001" / MANIFEST
    values = json.loads(manifest.read_text())
    values["files"]["../../secret"] = {"bytes": 1, "sha256": "0"}
    manifest.write_text(json.dumps(seal(values)))
    checkpoint.quarantine_damaged(tmp_path / "c")
    assert checkpoint.load_newest(tmp_path / "c").meta["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
