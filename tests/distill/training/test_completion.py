"""A run counts as finished only if its export's record and every file of its pipeline agree with the recipe."""

import importlib
import json
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.config.evaluation_section import EvaluationRecipe
from distill.config.recipe import Recipe, load
from distill.config.sections import TeacherRecipe
from distill.export import export_run
from distill.exporting import finish as finish_module
from distill.train import train
from distill.training import checkpoint, state
from distill.training.export_record import export_key, is_exported, record_export
from distill.training.guard import Stop
from distill.training.run_folder import fingerprint, finished, run_key
from distill.training.setup import plan_data
from distill.training.status import read_status
from tests.settings import FAST

train_module = importlib.import_module("distill.train")  # `distill.train` is also the name of its function
export_module = importlib.import_module("distill.export")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(text_pipeline, tmp_path_factory):
    """A folder with a recipe, and two finished runs of it: "two" of 2 steps and "four" of 4."""
    root = tmp_path_factory.mktemp("completion")
    (root / "p.txt").write_text("a coat\na bag\n")
    (root / "r.yaml").write_text(
        f"name: r\noutput: {root / 'runs'}\ndata: {{prompts: {root / 'p.txt'}}}\n"
        f"method: {{name: dmd, fake_score_updates: 1}}\n"
        f"teacher: {{family: stable_diffusion, path: {text_pipeline}, guidance: 2.0, num_steps: 2}}\n"
    )
    for name, steps in (("two", 2), ("four", 4)):
        train(load(root / "r.yaml", [*FAST, f"name={name}", f"train.steps={steps}"]))
    return root


@pytest.fixture
def run(folder, tmp_path):
    """run(steps): the recipe of a copy of the run of 4 steps, in the test's folder."""
    shutil.copytree(folder / "runs" / "four", tmp_path / "runs" / "four")
    return lambda steps=4: load(
        folder / "r.yaml", [*FAST, f"output={tmp_path / 'runs'}", "name=four", f"train.steps={steps}"]
    )


def steps_of(pipeline):
    return json.loads((pipeline / "distill.json").read_text())["cost"]["steps"]


def is_repeated(recipe, monkeypatch):
    """Whether `train` exports again, instead of calling the run finished."""
    exports = []
    finish = finish_module.finish
    monkeypatch.setattr(train_module, "finish", lambda *a: exports.append(1) or finish(*a))
    assert steps_of(train(recipe)) == recipe.train.steps
    return bool(exports)


def altered(pipeline):
    file = pipeline / WEIGHTS
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"format": "pt"})


def other(pipeline, folder):
    shutil.rmtree(pipeline)
    shutil.copytree(folder / "runs/two/pipeline", pipeline)


def half(pipeline, folder):
    shutil.copy(folder / "runs/two/pipeline" / WEIGHTS, pipeline / WEIGHTS)


def with_record(pipeline, folder):
    other(pipeline, folder)
    shutil.copy(folder / "runs/two/exported.json", pipeline.parent / "exported.json")


CHANGES = {
    "altered weights": lambda pipeline, folder: altered(pipeline),
    "missing weights": lambda pipeline, folder: (pipeline / WEIGHTS).unlink(),
    "missing configuration": lambda pipeline, folder: (pipeline / "unet/config.json").unlink(),
    "missing distill.json": lambda pipeline, folder: (pipeline / "distill.json").unlink(),
    "missing pipeline": lambda pipeline, folder: shutil.rmtree(pipeline),
    "missing record": lambda pipeline, folder: (pipeline.parent / "exported.json").unlink(),
    "empty record": lambda pipeline, folder: (pipeline.parent / "exported.json").write_text("{}"),
    "a number as record": lambda pipeline, folder: (pipeline.parent / "exported.json").write_text("3"),
    "another scheduler": lambda pipeline, folder: (pipeline / "scheduler/scheduler_config.json").write_text("{}"),
    "an index of shards": lambda pipeline, folder: (pipeline / f"{WEIGHTS}.index.json").write_text("{}"),
    "the pipeline of an earlier step": other,
    "half of the pipeline of an earlier step": half,
    "pipeline and record of an earlier step": with_record,
    "a pipeline cut in the middle": lambda pipeline, folder: os.truncate(pipeline / WEIGHTS, 1000),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not as it was exported")
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_whose_pipeline_is_not_the_export_is_not_finished(run, folder, change):
    recipe = run()
    identity = fingerprint(recipe, plan_data(recipe))
    assert finished(recipe, identity)
    CHANGES[change](recipe.folder / "pipeline", folder)
    assert not finished(recipe, identity)
    assert not is_exported(recipe.folder, run_key(identity), 4)


@pytest.mark.slow
def test_a_pipeline_that_is_not_the_export_is_exported_again(run, folder, monkeypatch):
    recipe = run()
    pipeline = recipe.folder / "pipeline"
    whole = (pipeline / WEIGHTS).read_bytes()
    half(pipeline, folder)
    (pipeline / f"{WEIGHTS}.index.json").write_text("{}")
    with pytest.warns(UserWarning, match=rf"is not as it was exported \({WEIGHTS}, .* changed\); it is exported again"):
        assert is_repeated(recipe, monkeypatch)
    assert (pipeline / WEIGHTS).read_bytes() == whole
    assert not (pipeline / f"{WEIGHTS}.index.json").exists()
    assert not is_repeated(recipe, pytest.MonkeyPatch())


@pytest.mark.slow
def test_files_that_no_loader_reads_do_not_matter(run, monkeypatch):
    recipe = run()
    (recipe.folder / "pipeline/README.md").write_text("# changed by fewstep export")
    (recipe.folder / "pipeline/notes.txt").write_text("mine")
    assert not is_repeated(recipe, monkeypatch)
    assert (recipe.folder / "pipeline/notes.txt").is_file()


def test_an_export_has_the_contents_of_the_evaluation_prompts(tmp_path):
    def found(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        evaluation = EvaluationRecipe(prompts=str(tmp_path / name))
        return export_key(Recipe("x", TeacherRecipe("pocket"), {"name": "dmd"}, evaluation=evaluation))

    assert found("a.txt", "a bag\n") == found("b.txt", "a bag\n")
    assert found("a.txt", "a coat\n") != found("b.txt", "a bag\n")


@pytest.mark.slow
def test_an_extended_run_that_ended_before_its_export_is_exported_on_the_next_start(run, monkeypatch):
    def killed(*args):
        raise SystemExit("killed")

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "finish", killed)
        with pytest.raises(SystemExit, match="killed"):
            train(run(6))
    assert steps_of(run().folder / "pipeline") == 4
    assert not is_repeated(run(4), pytest.MonkeyPatch()), "the run of 4 steps is finished"
    assert is_repeated(run(6), monkeypatch)


@pytest.mark.slow
def test_a_run_beyond_the_recipes_last_step_is_refused(run):
    with pytest.raises(ValueError, match=r"train\.steps must be at least 4, the step that .* has reached, got 2"):
        train(run(2))


@pytest.mark.slow
def test_an_altered_pipeline_without_checkpoints_is_not_taken_for_the_export(run):
    folder = run().folder
    shutil.rmtree(folder / "checkpoints")
    assert export_run(folder) == folder / "pipeline"
    altered(folder / "pipeline")
    with pytest.raises(
        ValueError, match=rf"pipeline has changed since its export \({WEIGHTS}\), and .* has no checkpoint"
    ):
        export_run(folder)
    assert export_run(folder / "pipeline") == folder / "pipeline"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.first_by_default
def test_a_signal_during_the_export_waits_until_it_is_on_disk(run, monkeypatch, capfd, number):
    export = finish_module.export_student

    def interrupted(*args):
        signal.raise_signal(number)
        return export(*args)

    monkeypatch.setattr(finish_module, "export_student", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:  # so that a script's next command does not start
        train(run(6))
    assert end.value.code == 128 + number and signal.getsignal(number) is before
    assert "ends when it is on disk" in capfd.readouterr().err
    assert steps_of(run(6).folder / "pipeline") == 6 and read_status(run(6).folder)["phase"] == "finished"
    assert not is_repeated(run(6), pytest.MonkeyPatch())


@pytest.mark.slow
def test_a_signal_in_the_last_step_ends_the_process_after_the_export(run, monkeypatch):
    step = train_module.train_step

    def interrupted(state, *args):
        if state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(state, *args)

    monkeypatch.setattr(train_module, "train_step", interrupted)
    with pytest.raises(SystemExit) as end:
        train(run(6))
    assert end.value.code == 128 + signal.SIGTERM and steps_of(run(6).folder / "pipeline") == 6
    assert not is_repeated(run(6), monkeypatch)


@pytest.mark.slow
def test_a_second_signal_during_the_export_acts_at_once_and_nothing_is_lost(run, monkeypatch):
    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        later = time.monotonic() + 60
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", lambda: later)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(finish_module, "export_student", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(run(6))
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_of(run().folder / "pipeline") == 4
    assert is_repeated(run(6), monkeypatch)


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Stop():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize(("part", "value"), [("weights", float("inf")), ("ema", float("nan"))])
def test_a_checkpoint_with_weights_that_are_not_finite_is_neither_exported_nor_resumed(run, part, value):
    recipe = run()
    checkpoints = recipe.folder / "checkpoints"
    saved = checkpoint.load_newest(checkpoints)
    name = next(iter(getattr(saved, part)))
    getattr(saved, part)[name].view(-1)[0] = value
    checkpoint.save(checkpoints, saved, keep=9)
    (recipe.folder / "exported.json").unlink()
    before = (recipe.folder / "pipeline" / WEIGHTS).read_bytes()
    for start in (lambda: export_run(recipe.folder), lambda: train(recipe), lambda: train(run(6))):
        with pytest.raises(ValueError, match=r"checkpoint of step 4 .* must have finite weights, got NaN or infinite"):
            start()
    assert (recipe.folder / "pipeline" / WEIGHTS).read_bytes() == before


@pytest.mark.slow
def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(run, monkeypatch, capsys):
    update = train_module.train_step

    def broken(run_state, *rest):
        metrics = update(run_state, *rest)
        if run_state.step == 6:
            with torch.no_grad():
                next(run_state.ema.parameters()).fill_(torch.nan)
        return metrics

    monkeypatch.setattr(train_module, "train_step", broken)
    with pytest.raises(ValueError, match="step 6 was not written, because weights must be finite"):
        train(load_with(run(6), "stop"))
    assert checkpoint.saved_steps(run().folder / "checkpoints")[-1] == 4
    assert state.nonfinite_tensor({"a": torch.ones(2), "b": torch.tensor([torch.inf])}) == "b"


def load_with(recipe, on_failed_save):
    recipe.train.on_failed_save = on_failed_save
    return recipe


@pytest.mark.slow
def test_a_failed_run_is_not_taken_for_finished_if_its_record_is_damaged(run, monkeypatch):
    """`failed.json` is the record of a failed run; without it `exported.json` still says so."""
    recipe = run()
    key = run_key(fingerprint(recipe, plan_data(recipe)))
    record_export(recipe, key, 4, failed=True)
    (recipe.folder / "failed.json").write_text("{}")
    assert is_exported(recipe.folder, key, 4)
    with monkeypatch.context() as patched:
        patched.setattr(export_module, "finish", lambda *a: "judged again")
        assert export_run(recipe.folder) == "judged again"
    assert is_repeated(recipe, monkeypatch)
    assert not (recipe.folder / "failed.json").exists()


@pytest.mark.slow
def test_a_failed_run_without_checkpoints_is_not_exported(run):
    folder = run().folder
    record_export(run(), run_key(fingerprint(run(), plan_data(run()))), 4, failed=True)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"pipeline comes from a run that failed, and .* has no checkpoint"):
        export_run(folder)
    assert export_run(folder / "pipeline") == folder / "pipeline"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fingerprint", None, "holds checkpoints of another recipe or of other data"),
        ("fingerprint", "text", "holds checkpoints of another recipe or of other data"),
        pytest.param("seconds", None, "must have its seconds of training, got None", marks=pytest.mark.slow),
        pytest.param("seconds", "text", "must have its seconds of training, got 'text'", marks=pytest.mark.slow),
        pytest.param("seconds", float("nan"), "must have its seconds of training, got nan", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_checkpoint_with_a_record_that_no_run_writes_is_refused(run, key, value, message):
    recipe = run()
    saved = checkpoint.load_newest(recipe.folder / "checkpoints")
    saved.meta[key] = value
    checkpoint.save(recipe.folder / "checkpoints", saved, keep=9)
    shutil.rmtree(recipe.folder / "pipeline")
    for start in (lambda: export_run(recipe.folder), lambda: train(recipe)):
        with pytest.raises(ValueError, match=message):
            start()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["export_student", "record_export", "report_failure"])
@pytest.mark.first_by_default
def test_a_run_that_ends_anywhere_around_its_export_has_the_same_result_on_the_next_start(run, monkeypatch, name):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    before = (run().folder / "pipeline" / WEIGHTS).read_bytes()
    (run().folder / "exported.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(finish_module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            train(run())
    assert is_repeated(run(), monkeypatch) == (name != "report_failure")
    assert (run().folder / "pipeline" / WEIGHTS).read_bytes() == before
    assert not list(run().folder.glob(".*.tmp"))
