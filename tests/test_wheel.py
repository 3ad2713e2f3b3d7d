"""The wheel: it holds what the commands need and nothing else, and it works from a directory that is not a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.settings import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):  # building leaves files next to the source
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_what_the_commands_need(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "recipes/pocket/dmd.yaml",
        "recipes/accelerate/ddp.yaml",
        "recipes/eval/coco30k.yaml",
        "teachers/pocket/weights/latents.safetensors",
        "teachers/pocket/weights/pipeline/model_index.json",
        "distill/py.typed",
        "eval/py.typed",
        "teachers/py.typed",
    ):
        assert needed in names, needed
    assert any(name.startswith("eval/report/") and name.endswith(".html") for name in names)
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"distill", "eval", "recipes", "teachers"}


def test_the_wheel_works_outside_a_checkout(wheel, tmp_path):
    place, cwd = tmp_path / "site", tmp_path / "cwd"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(place), str(wheel)]
    subprocess.run(command, check=True)
    for name in ("eval.py", "distill.py", "recipes/pocket/dmd.yaml"):
        (cwd / name).parent.mkdir(parents=True, exist_ok=True)
        (cwd / name).write_text("raise SystemExit('a file of the working directory was read')\n")
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "distill", *words],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import distill; print(distill.__file__)"
    where = subprocess.check_output([sys.executable, "-c", code], cwd=cwd, env=environment, text=True)
    assert where.startswith(str(place))
    assert "pocket/dmd" in run("recipes", "list")
    assert "name: pocket-scm" in run("recipes", "show", "pocket/scm")
    assert "family     stable_diffusion" in run("describe", "pocket")
