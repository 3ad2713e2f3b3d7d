"""A method and a teacher family of another installed package: training, export and report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.settings import PLUGIN


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment in which the plug-in is installed with its entry points."""
    target = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(["cp", "-r", str(PLUGIN), str(copy)], check=True)  # building writes files next to the source
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return os.environ | {"PYTHONPATH": str(target)}


@pytest.mark.slow
def test_plugin_method_and_family_train_export_and_are_reported(environment, text_pipeline, tmp_path):
    (tmp_path / "prompts.txt").write_text("a coat\na dress\n")
    (tmp_path / "recipe.yaml").write_text(
        f"""name: plugin
output: {tmp_path / "runs"}
teacher: {{family: negative_prompt, path: {text_pipeline}, guidance: 2.0, num_steps: 2}}
data: {{prompts: {tmp_path / "prompts.txt"}}}
method: {{name: regression, pairs: 8}}
evaluation: {{features: pixels}}
train: {{steps: 2, batch_size: 4, evaluate_every: 0, evaluate_samples: 4, evaluate_teacher_steps: 2, tracker: none}}
"""
    )

    def python(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    python("distill.train", str(tmp_path / "recipe.yaml"))
    assert (tmp_path / "runs/plugin/pipeline/model_index.json").is_file()
    python(
        "eval", str(tmp_path / "runs/plugin"), "--out", str(tmp_path / "report"), "--samples", "4", "--batch-size", "4"
    )
    rows = json.loads((tmp_path / "report/report.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["teacher"] * 5 + ["regression"]


def test_module_that_is_not_a_plugin_is_not_imported(text_pipeline, tmp_path):
    from distill.config.recipe import load

    file = tmp_path / "r.yaml"
    file.write_text(f"name: x\nteacher: {{family: os.path, path: {text_pipeline}}}\nmethod: {{name: dmd}}\n")
    with pytest.raises(ValueError, match=r"no teacher family 'os\.path'"):
        load(file)


def test_the_documentation_shows_the_plug_in_whole():
    method = PLUGIN / "fewstep_plugin" / "regression.py"
    page = Path("docs/how-to/add-a-method.md").read_text()
    assert f"<!-- include: {method.relative_to(Path.cwd())} -->" in page
    assert len(method.read_text().splitlines()) < 40
