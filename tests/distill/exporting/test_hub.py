"""Exporting by hand: stopped runs, cards that carry their evaluation, and the way to the hub."""

import json
import os
from types import SimpleNamespace

import httpx
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from safetensors.torch import load_file

from distill import export as export_module
from distill.config.recipe import load
from distill.export import export_and_push, export_run
from distill.exporting import hub as publish
from distill.train import train
from distill.training import checkpoint
from eval.compare import compare

FAST = ["train.batch_size=2", "train.evaluate_every=0", "train.evaluate_samples=2", "train.evaluate_teacher_steps=1"]


@pytest.fixture
def recipe(text_pipeline, tmp_path):
    (tmp_path / "prompts.txt").write_text("a coat\na dress\n")
    (tmp_path / "r.yaml").write_text(
        f"name: run\noutput: {tmp_path / 'runs'}\nteacher: {{path: {text_pipeline}, guidance: 2.0, num_steps: 2}}\n"
        f"data: {{prompts: {tmp_path / 'prompts.txt'}}}\nmethod: {{name: dmd}}\n"
    )

    def make(*overrides):
        return load(tmp_path / "r.yaml", [*FAST, "train.checkpoint_every=1", "train.tracker=none", *overrides])

    return make


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


class Stopped(Exception):
    pass


@pytest.fixture
def stopped(recipe, monkeypatch):
    """A run of 3 steps that was stopped after its second checkpoint."""
    run = recipe("train.steps=3")
    save = checkpoint.save

    def stop(folder, state, *rest):
        save(folder, state, *rest)
        if state.meta["step"] == 2:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", stop)
        with pytest.raises(Stopped):
            train(run)
    return run


def test_a_run_keeps_its_recipe(recipe):
    run = recipe("train.steps=1", "method.timesteps=[700]", "optimizers.student.lr=3e-5")
    train(run)
    assert load(run.folder / "recipe.yaml") == run


def test_a_stopped_run_is_exported_from_its_newest_checkpoint_and_goes_on(stopped, recipe, monkeypatch):
    moved = stopped.folder.rename(stopped.folder.with_name("moved"))
    pipeline = export_run(moved)
    record = json.loads((pipeline / "distill.json").read_text())
    assert record["cost"]["steps"] == 2 and pipeline == moved.resolve() / "pipeline"
    ema = checkpoint.load_newest(moved / "checkpoints").ema
    stored = weights(pipeline)
    assert all(stored[key.removeprefix("network.")].equal(value) for key, value in ema.items())
    assert DiffusionPipeline.from_pretrained(pipeline).text_encoder is not None
    train(load(moved / "recipe.yaml", ["name=moved", "train.steps=3"]))
    assert json.loads((pipeline / "distill.json").read_text())["cost"]["steps"] == 3
    monkeypatch.setattr(export_module, "prepare", lambda *a: pytest.fail("it is finished"))
    assert export_run(moved) == moved / "pipeline"
    assert export_run(moved / "pipeline") == moved / "pipeline"


def test_an_export_that_fails_leaves_the_earlier_one(stopped, monkeypatch):
    pipeline = export_run(stopped.folder)
    train(load(stopped.folder / "recipe.yaml", ["train.steps=3"]))
    record = pipeline / "distill.json"
    record.write_text(record.read_text().replace('"steps": 3', '"steps": 2'))  # of an earlier time

    def fails(*args):
        raise ValueError("no room")

    monkeypatch.setattr(export_module, "export_student", fails)
    with pytest.raises(ValueError, match="no room"):
        export_run(stopped.folder)
    assert record.is_file()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda run: None, "there is no run"),
        (lambda run: run.mkdir(), "holds neither a pipeline nor a checkpoint"),
        (
            lambda run: (run / "checkpoints" / "00000002").mkdir(parents=True),
            "holds neither a pipeline nor a checkpoint",
        ),
    ],
)
def test_runs_with_nothing_to_export(tmp_path, make, sentence):
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=sentence):
        export_run(tmp_path / "run")


@pytest.fixture
def finished(make_run):
    run = make_run()
    (run / "pipeline" / "README.md").write_text(
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags: [distillation, dmd]\n---\n\n# student\n"
    )
    return run


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub's client and records what it is asked."""
    asked = {}

    class Recorder:
        def create_repo(self, name, **options):
            asked["create_repo"] = (name, options)
            return RepoUrl(f"https://huggingface.co/me/{name.split('/')[-1]}")

        def upload_folder(self, **options):
            asked["upload_folder"] = options

    monkeypatch.setattr(publish, "HfApi", Recorder)
    return asked


def run_command(run, *, name=None, private=False, report=None):
    export_and_push(run, name, private, report)


def test_the_uploaded_card_carries_the_evaluation(finished, hub, tmp_path, capsys):
    options = {"samples": 4, "batch_size": 4, "command": "python -m eval", "few_steps": (1,)}
    report = compare([finished], tmp_path / "runs" / "report", **options)
    for _ in range(2):  # again, and the card does not grow
        run_command(finished, name="me/student", private=True)
    assert hub["create_repo"] == ("me/student", {"private": True, "exist_ok": True})
    sent = hub["upload_folder"]
    assert sent["repo_id"] == "me/student" and sent["folder_path"] == finished / "pipeline"
    assert sent["ignore_patterns"] == ["training_prompts.txt"]
    out = capsys.readouterr().out
    assert "huggingface.co/me/student" in out and "shows the report's figures" in out
    text = (finished / "pipeline" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "diffusers" and card.data.tags == ["distillation", "dmd"]
    row = next(row for row in report["rows"] if row["method"] == "dmd")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["frechet_distance"] == row["frechet_distance"] and values["latency_ms"] == row["latency_ms"]
    assert {result.task_type for result in card.data.eval_results} == {"text-to-image"}
    assert text.count("## Evaluation") == 1 and "| student, 1 step" in text and "| teacher, 3 steps" in text


def test_figures_of_an_earlier_pipeline_do_not_go_into_the_card(finished, hub, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs" / "report"
    folder.mkdir()
    old = {"runs": [{"folder": str(finished / "pipeline"), "name": "student"}], "rows": []}
    (folder / "report.json").write_text(json.dumps(old))
    os.utime(folder / "report.json", (1e9, 1e9))
    run_command(finished)
    assert "shows no figures" in capsys.readouterr().out and "upload_folder" not in hub
    with pytest.raises(ValueError, match="is older than the pipeline; judge it again"):
        run_command(finished, report=folder)
    with pytest.raises(ValueError, match="holds no report on"):
        run_command(finished, report=tmp_path)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("Failed to resolve host"), "the hub cannot be reached, so me/x was not uploaded"),
        (httpx.ConnectError("[Errno -2] Name or service not known"), "the hub cannot be reached, so me/x"),
        (LocalTokenNotFoundError("Token is required"), r"log in with a token that may write \(hf auth login\)"),
        (
            HfHubHTTPError("403", response=SimpleNamespace(status_code=403, headers={}, request=None)),
            "does not let you",
        ),
        (RuntimeError("bad hf_abcdefSECRET token"), r"RuntimeError: bad hf_\.\.\. token"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_without_a_token(finished, monkeypatch, error, sentence):
    def refuse(self, *args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(ValueError, match=sentence) as caught:
        run_command(finished, name="me/x")
    assert "SECRET" not in str(caught.value) and caught.value.__cause__ is None and "\n" not in str(caught.value)


def test_a_name_that_is_none_is_told(finished, monkeypatch):
    with pytest.raises(ValueError, match="is no name for a model on the hub"):
        run_command(finished, name="not/a/name")
