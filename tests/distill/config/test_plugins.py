"""A method and a teacher family of another installed package: training, export and report."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import fewstep
from tests.forks import Fork
from tests.settings import PLUGIN


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which the plug-in is installed with its entry points."""
    target = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(["cp", "-r", str(PLUGIN), str(copy)], check=True)  # building writes files next to the source
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def train_and_evaluate(site: Path, folder: Path) -> int:
    """Both commands in a process that can import the plug-in; returns the sum of their exit codes."""
    sys.path.insert(0, str(site))
    run = folder / "runs" / "plugin"
    return fewstep("train", folder / "recipe.yaml") + fewstep(
        "eval", run, "--out", folder / "report", "--samples", 4, "--batch-size", 4
    )


@pytest.mark.slow
def test_plugin_method_and_family_train_export_and_are_reported(site, text_pipeline, tmp_path):
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

    commands = Fork(tmp_path / "commands", train_and_evaluate, site, tmp_path)
    assert commands.wait(200) == 0, commands.error
    assert (tmp_path / "runs/plugin/pipeline/model_index.json").is_file()
    rows = json.loads((tmp_path / "report/report.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["teacher"] * 5 + ["regression"]


def test_module_that_is_not_a_plugin_is_not_imported(text_pipeline, tmp_path):
    from distill.config.recipe import load

    file = tmp_path / "r.yaml"
    file.write_text(f"name: x\nteacher: {{family: os.path, path: {text_pipeline}}}\nmethod: {{name: dmd}}\n")
    with pytest.raises(ValueError, match=r"no teacher family 'os\.path'"):
        load(file)


@pytest.mark.slow
def test_the_package_of_the_documentation_can_be_installed(tmp_path):
    page = Path("docs/how-to/add-a-method.md").read_text()
    blocks = dict(re.findall(r"```(text|toml)\n(.*?)```", page, re.DOTALL))
    assert [line.strip() for line in blocks["text"].splitlines()] == [
        "my-plugin/", "pyproject.toml", "my_plugin/", "__init__.py", "regression.py"
    ]  # fmt: skip
    source = tmp_path / "my-plugin"
    (source / "my_plugin").mkdir(parents=True)
    (source / "pyproject.toml").write_text(blocks["toml"])
    (source / "my_plugin" / "__init__.py").touch()
    shutil.copy(PLUGIN / "fewstep_plugin" / "regression.py", source / "my_plugin")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", source]
    subprocess.run(command, check=True, capture_output=True)
    (points,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert points.read_text().split() == ["[distill.distillers]", "regression", "=", "my_plugin.regression:Regression"]
    assert (tmp_path / "site" / "my_plugin" / "regression.py").is_file()


def test_the_documentation_shows_the_plug_in_whole():
    method = PLUGIN / "fewstep_plugin" / "regression.py"
    page = Path("docs/how-to/add-a-method.md").read_text()
    assert f"<!-- include: {method.relative_to(Path.cwd())} -->" in page
    assert len(method.read_text().splitlines()) < 40
