"""The export command: stopped runs, model cards with an evaluation, and uploads to the Hub."""

import json
import os
import shutil
from types import SimpleNamespace

import httpx
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from safetensors.torch import load_file

from distill import export as export_module
from distill.config.recipe import load
from distill.export import export_and_push, export_run
from distill.exporting import hub as hub_module
from distill.train import train
from distill.training import checkpoint
from eval.compare import compare
from teachers.support.checksums import write_sealed_json

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


@pytest.mark.slow
def test_run_folder_contains_its_recipe(recipe):
    run = recipe("train.steps=1", "method.timesteps=[700]", "optimizers.student.lr=3e-5")
    train(run)
    assert load(run.folder / "recipe.yaml") == run


@pytest.mark.slow
def test_stopped_run_is_exported_from_its_newest_checkpoint_and_can_continue(stopped, recipe, monkeypatch):
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
    monkeypatch.setattr(export_module, "prepare", lambda *a: pytest.fail("the run is finished"))
    assert export_run(moved) == moved / "pipeline"
    assert export_run(moved / "pipeline") == moved / "pipeline"


@pytest.mark.exhaustive
def test_failed_export_keeps_the_previous_pipeline(stopped, monkeypatch):
    pipeline = export_run(stopped.folder)
    train(load(stopped.folder / "recipe.yaml", ["train.steps=3"]))
    record = pipeline / "distill.json"
    (stopped.folder / "exported.json").unlink()  # as of an earlier export

    def fails(*args):
        raise ValueError("no room")

    monkeypatch.setattr(export_module, "finish", fails)
    with pytest.raises(ValueError, match="no room"):
        export_run(stopped.folder)
    assert record.is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: None, "RUN must be the folder of a run"),
        (lambda run: run.mkdir(), "RUN must have a pipeline or a checkpoint"),
        (
            lambda run: (run / "checkpoints" / "00000002").mkdir(parents=True),
            "RUN must have a pipeline or a checkpoint",
        ),
    ],
)
def test_runs_without_anything_to_export(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        export_run(tmp_path / "run")


@pytest.fixture
def finished(make_run):
    run = make_run()
    for file in (run / "pipeline").rglob("*"):
        if file.is_symlink():  # an upload refuses links out of the folder
            shutil.copyfile(file.resolve(), file.with_name("copy"))
            file.with_name("copy").replace(file)
    (run / "pipeline" / "README.md").write_text(
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags: [distillation, dmd]\n---\n\n# student\n"
    )
    return run


@pytest.fixture
def hub(monkeypatch):
    """Replaces the Hub's client and records its calls."""
    calls = {}

    class Recorder:
        def create_repo(self, name, **options):
            calls["create_repo"] = (name, options)
            return RepoUrl(f"https://huggingface.co/me/{name.split('/')[-1]}")

        def upload_folder(self, **options):
            calls["upload_folder"] = options

    monkeypatch.setattr(hub_module, "HfApi", Recorder)
    return calls


def run_command(run, *, name=None, private=False, report=None):
    export_and_push(run, name, private, report)


@pytest.mark.slow
def test_uploaded_card_contains_the_evaluation(finished, hub, tmp_path, capsys):
    options = {"samples": 4, "batch_size": 4, "command": "python -m eval", "few_steps": (1,)}
    report = compare([finished], tmp_path / "runs" / "report", **options)
    for _ in range(2):  # the second time the evaluation is replaced
        run_command(finished, name="me/student", private=True)
    assert hub["create_repo"] == ("me/student", {"private": True, "exist_ok": True})
    upload = hub["upload_folder"]
    assert upload["repo_id"] == "me/student" and upload["folder_path"] == finished / "pipeline"
    assert upload["ignore_patterns"] == ["training_prompts.txt", "evaluation_prompts.txt", "evaluation_sources/*"]
    out = capsys.readouterr().out
    assert "huggingface.co/me/student" in out and "the model card contains the evaluation" in out
    text = (finished / "pipeline" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "diffusers" and card.data.tags == ["distillation", "dmd"]
    row = next(row for row in report["rows"] if row["method"] == "dmd")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["frechet_distance"] == row["frechet_distance"] and values["latency_ms"] == row["latency_ms"]
    assert {result.task_type for result in card.data.eval_results} == {"text-to-image"}
    assert text.count("## Evaluation") == 1 and "| student, 1 step" in text and "| teacher, 3 steps" in text


@pytest.mark.slow
def test_evaluation_of_an_earlier_export_is_not_used(finished, hub, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs" / "report"
    folder.mkdir()
    entry = {"folder": str(finished / "pipeline"), "name": "student"}
    write_sealed_json(folder / "report.json", {"runs": [entry], "rows": []})
    run_command(finished)
    assert "no evaluation yet" in capsys.readouterr().out and "upload_folder" not in hub
    entry["contents"] = hub_module.pipeline_identity(finished / "pipeline")
    write_sealed_json(folder / "report.json", {"runs": [entry], "rows": []})
    os.utime(folder / "report.json", (1e9, 1e9))  # times do not matter: they change when a folder is copied
    assert hub_module.find_report(finished / "pipeline", folder)["runs"] == [entry]
    record = finished / "pipeline" / "distill.json"
    values = json.loads(record.read_text().replace("210.5", "310.5"))
    record.write_text(json.dumps({name: value for name, value in values.items() if name != "sha256"}))
    os.utime(record, (1e9, 1e9))
    assert hub_module.find_report(finished / "pipeline", None) is None
    with pytest.raises(ValueError, match="as it is now, but its files have changed; evaluate it again"):
        run_command(finished, report=folder)
    with pytest.raises(ValueError, match="contains no evaluation of"):
        run_command(finished, report=tmp_path)


@pytest.mark.slow
def test_the_newest_report_near_the_run_counts_whatever_its_name(finished, tmp_path):
    """By the date in it: file times change when a folder is copied. Reports of others and damaged ones are ignored."""
    entry = {"folder": "elsewhere", "contents": hub_module.pipeline_identity(finished / "pipeline")}
    dates = {"runs/mine": "2026-03-01T12:00:00+00:00", "other": "2026-03-01T12:30:00+01:00", "runs/report": "unknown"}
    for name, date in dates.items():
        (tmp_path / name).mkdir()
        write_sealed_json(tmp_path / name / "report.json", {"runs": [entry], "rows": [], "date": date})
    for name, text in {"runs/damaged": "{", "runs/strange": '{"runs": 1, "date": "2027-01-01"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text)
    for name in ("runs/mine", "other", "runs/report"):
        assert hub_module.find_report(finished / "pipeline", None)["date"] == dates[name]
        (tmp_path / name / "report.json").unlink()
    assert hub_module.find_report(finished / "pipeline", None) is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Failed to resolve host"), "the Hub cannot be reached, so me/x was not uploaded"),
        (httpx.ConnectError("[Errno -2] Name or service not known"), "the Hub cannot be reached, so me/x"),
        (LocalTokenNotFoundError("Token is required"), r"log in with a write token \(hf auth login\)"),
        (
            HfHubHTTPError("403", response=SimpleNamespace(status_code=403, headers={}, request=None)),
            "no permission to write to me/x",
        ),
        (RuntimeError("bad hf_abcdefSECRET token"), r"RuntimeError: bad hf_\.\.\. token"),
    ],
)
@pytest.mark.first_is_quick
def test_upload_errors_have_one_line_without_tokens(finished, monkeypatch, error, message):
    def refuse(self, *args, **options):
        raise error

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ValueError, match=message) as caught:
        run_command(finished, name="me/x")
    assert "SECRET" not in str(caught.value) and caught.value.__cause__ is None and "\n" not in str(caught.value)


def test_invalid_model_name_is_rejected(finished, monkeypatch):
    with pytest.raises(ValueError, match="a model on the Hub must be named owner/name, got 'not/a/name'"):
        run_command(finished, name="not/a/name")
