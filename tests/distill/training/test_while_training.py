"""What a run shows while it trains: validation samples, trackers, status.json, several EMAs."""

import json
import os
import signal
import sys
import types
from functools import partial
from importlib import import_module

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from accelerate.utils import LoggerType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.config.evaluation_section import EvaluationRecipe
from distill.config.recipe import Recipe, load
from distill.config.sections import TeacherRecipe
from distill.train import train
from distill.training import checkpoint, trackers
from distill.training.best import best_record, score
from distill.training.status import ENDED, Status, read_status, status_line
from distill.training.trackers import log_image
from distill.training.validation import label_sheet
from teachers.loading.registry import load_teacher
from tests.commands import fewstep
from tests.runs import interrupted

PROMPTS = ["a coat", "a prompt that no training caption has"]


@pytest.fixture
def recipe_of(two_step_recipe, text_pipeline):
    """recipe_of(*overrides): a recipe of two steps with the tiny pipeline."""
    return partial(two_step_recipe, "stable_diffusion", text_pipeline)


def history(recipe):
    return [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_validation_prompts_are_drawn_labelled_and_logged(recipe_of):
    prompts = f"evaluation.validation_prompts={json.dumps(PROMPTS)}"
    seeds = "evaluation.validation_seeds=[3, 4]"
    recipe = recipe_of(prompts, seeds, "evaluation.validation_every=1", "train.tracker=tensorboard")
    plain = recipe_of("name=plain")
    train(recipe)
    train(plain)
    one, two = (checkpoint.load_newest(r.folder / "checkpoints") for r in (recipe, plain))
    assert all(torch.equal(one.ema[name], two.ema[name]) for name in one.ema)  # drawing changes no random number
    for step in (0, 1, 2):
        files = sorted((recipe.folder / "validation" / f"{step:08d}").iterdir())
        assert [file.name for file in files] == ["00.png", "01.png"]
    with Image.open(files[0]) as sheet:  # teacher, student, fake score; two seeds of 32 x 32 pixels, enlarged 4 times
        assert sheet.size[0] == 6 + 3 * (128 + 6) and sheet.size[1] > 2 * 128
    logs = EventAccumulator(str(recipe.folder / "run"), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert [event.step for event in logs.Images("validation/01")] == [0, 1, 2]
    text = logs.Tensors("validation/01/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == PROMPTS[1]
    with Image.open(recipe.folder / "validation" / "00000000" / "00.png") as first, Image.open(files[0]) as last:
        left = (6, 30, 6 + 128, 30 + 128)
        assert list(first.crop(left).getdata()) == list(last.crop(left).getdata())  # the teacher's column


def test_sheet_has_every_picture_at_its_own_size():
    values = {"a": (9, 90, 200), "b": (200, 9, 90)}
    columns = {name: [torch.tensor(v, dtype=torch.uint8).expand(200, 260, 3).numpy()] for name, v in values.items()}
    sheet = label_sheet(columns, "a caption " * 40, ["step 1, seed 0"])
    colours = {colour: count for count, colour in sheet.getcolors(100_000)}
    assert colours[values["a"]] == colours[values["b"]] == 200 * 260
    assert sheet.size[0] == 6 + 2 * 266


VALIDATION = "evaluation.validation_prompts=[a coat]"
NO_PROMPTS = r"evaluation\.validation_prompts must be empty: this teacher takes no prompts"


def test_teachers_without_prompts_refuse_validation_prompts(unconditional_pipeline, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: run\nmethod: {{name: scm}}\nteacher: {{path: {unconditional_pipeline}}}\n")
    with pytest.raises(ValueError, match=NO_PROMPTS):
        load(file, [VALIDATION])
    teacher, latents = load_teacher(unconditional_pipeline), torch.zeros(2, 3, 16, 16)
    samples = EvaluationRecipe(validation_prompts=("a coat",))
    with pytest.raises(ValueError, match=NO_PROMPTS):  # a teacher in memory
        train(Recipe("run", TeacherRecipe(), {"name": "scm"}, str(tmp_path), evaluation=samples), teacher, latents)


@pytest.mark.slow
def test_teachers_with_source_images_refuse_validation_prompts(tiny_source, tmp_path):
    family, folder = tiny_source("InstructPix2Pix")
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: run\nmethod: {{name: dmd}}\nteacher: {{family: {family}, path: {folder}}}\n")
    with pytest.raises(ValueError, match=r"validation_prompts must be empty: they are not available for a teacher w"):
        load(file, [VALIDATION])


@pytest.mark.parametrize(("key", "values"), [("prompts", "[a coat, a bag, a coat]"), ("seeds", "[3, 4, 3]")])
def test_repeated_validation_samples_are_refused(recipe_of, key, values):
    with pytest.raises(ValueError, match=rf"evaluation\.validation_{key} must have every value once, got .* more than"):
        recipe_of(f"evaluation.validation_{key}={values}")


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "comet_ml"])
def test_absent_tracker_is_an_error_before_the_run(recipe_of, name, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    recipe = recipe_of(f"train.tracker={name}")
    with pytest.raises(ValueError, match=rf"train\.tracker={name} needs the package {name}") as error:
        train(recipe)
    assert "\n" not in str(error.value) and not recipe.folder.exists()
    for installed in ("tensorboard", "none"):
        trackers.check_tracker(installed)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType(name)])
    trackers.check_tracker(name)


class Recorder:
    """Stands for a tracker's run: it keeps what it is given."""

    def __init__(self):
        self.logged = {}

    def log(self, values, step):
        self.logged |= {(name, step): value for name, value in values.items()}

    def log_image(self, image, name, step, metadata):
        self.logged[name, step] = (image, metadata["caption"])


def test_every_tracker_receives_pictures_with_captions(tmp_path, monkeypatch):
    def picture(array, caption=None):
        return array, caption

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Image=picture))
    files = {}
    keep = lambda value, file: files.update({file: value})  # noqa: E731
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(log_image=keep, log_text=keep))
    board = TensorBoardTracker("run", tmp_path)
    board.start()
    runs = {name: Recorder() for name in ("wandb", "trackio", "comet_ml")}
    others = [types.SimpleNamespace(name=name, tracker=run) for name, run in runs.items()]
    value = torch.rand(3, 4, 5)
    log_image([board, *others, types.SimpleNamespace(name="mlflow")], "validation/00", value, 7, "a coat")
    for run in runs.values():
        image, caption = run.logged["validation/00", 7]
        assert caption == "a coat"
        assert torch.tensor(image if hasattr(image, "shape") else list(image.getdata())).numel() == 60
    assert files["validation/00/00000007.png"].size == (5, 4) and files["validation/00/caption.txt"] == "a coat"
    board.finish()
    logs = EventAccumulator(str(tmp_path / "run")).Reload()
    assert logs.Images("validation/00")[0].step == 7


def test_status_estimates_the_rest_from_its_own_steps_and_evaluations(recipe_of):
    recipe = recipe_of("train.steps=100", "train.evaluate_every=25")
    recipe.folder.mkdir(parents=True)
    status = Status(recipe, True)
    status.training(1, 50.0)  # with its warm-up
    assert status.values()["hours_left"] is None
    status.evaluation_seconds, status.evaluations = 60.0, 2
    status.training(11, 70.0)
    assert status.seconds_left() == pytest.approx(89 * 2.0 + 4 * 30.0)
    values = status.values()
    assert values["estimated_total_hours"] == pytest.approx((70 + 60 + 298) / 3600, abs=1e-4)
    status.write()
    assert "step 11 of 100; 5 min left of an estimated 7 min" in status_line(recipe.folder)
    status.training(100, 248.0)
    assert status.seconds_left() == 0


@pytest.mark.parametrize(
    ("evaluate_every", "validation_every", "rounds"), [(25, 0, 4), (25, 10, 11), (0, 40, 3), (0, 0, 0)]
)
def test_status_counts_the_steps_at_which_samples_are_drawn(recipe_of, evaluate_every, validation_every, rounds):
    prompts = f"evaluation.validation_prompts=[{'a coat' if rounds else ''}]"
    every = f"train.evaluate_every={evaluate_every}", f"evaluation.validation_every={validation_every}"
    status = Status(recipe_of("train.steps=100", prompts, *every), False)
    status.evaluation_seconds, status.evaluations = 30.0, 1
    status.training(1, 0.0)
    status.training(11, 0.0)
    assert status.seconds_left() == 30.0 * rounds


def test_status_of_a_run_whose_process_is_gone(recipe_of):
    recipe = recipe_of()
    recipe.folder.mkdir(parents=True)
    Status(recipe, True).write("training")
    file = recipe.folder / "status.json"
    assert read_status(recipe.folder)["phase"] == "training"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"process": 2**22 + 1}))
    assert "interrupted, step 0 of 2" in status_line(recipe.folder)
    half = json.loads(file.read_text()) | {"hours_left": 1.0, "estimated_total_hours": None, "process": os.getpid()}
    file.write_text(json.dumps(half))
    assert "0 s of training" in status_line(recipe.folder)
    file.write_text('{"run": 3}')
    with pytest.raises(ValueError, match="not a status that fewstep train wrote"):
        status_line(recipe.folder)
    with pytest.raises(ValueError, match=r"has no status\.json"):
        status_line(recipe.folder / "absent")


def test_status_of_several_folders_names_those_that_are_no_runs(recipe_of, capsys):
    recipe = recipe_of()
    recipe.folder.mkdir(parents=True)
    Status(recipe, True).write("training")
    other, damaged = recipe.folder.parent / "report", recipe.folder.parent / "damaged"
    other.mkdir()
    damaged.mkdir()
    (damaged / "status.json").write_text("{")
    assert fewstep("status", other, recipe.folder, damaged) == 0
    out, error = capsys.readouterr()
    assert out == "run: training, step 0 of 2; 0 s of training\n"
    assert f"{other} has no status.json" in error and "status.json is not valid JSON" in error
    assert fewstep("status", other, damaged) == 2


def test_status_says_how_a_run_ended(recipe_of):
    recipe = recipe_of()
    recipe.folder.mkdir(parents=True)
    for error, phase in ((ValueError, "failed"), (KeyboardInterrupt, "stopped")):
        with pytest.raises(error), Status(recipe, True).until_the_end():
            raise error
        assert read_status(recipe.folder)["phase"] == phase in ENDED


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_stopped_run_exits_with_the_code_of_its_signal(recipe_of, monkeypatch, signal_number, code):
    recipe = recipe_of()
    module = import_module("distill.train")
    step = module.train_step

    def stopping_step(*args):
        signal.raise_signal(signal_number)
        return step(*args)

    monkeypatch.setattr(module, "train_step", stopping_step)
    with pytest.raises(SystemExit) as end:
        train(recipe)
    assert end.value.code == code
    assert read_status(recipe.folder)["phase"] == "stopped"
    assert checkpoint.saved_steps(recipe.folder / "checkpoints") == [1]


@pytest.mark.slow
def test_ema_with_the_smallest_held_out_distance_is_exported(recipe_of):
    options = ["train.ema_half_lives=[1, 5, 50]", "train.steps=4", "train.evaluate_every=2", "train.checkpoint_every=1"]
    fast = "optimizers.student.lr=0.02"
    whole = recipe_of("name=whole", fast, *options)
    train(whole)
    parts = interrupted(whole, "parts")
    train(parts)
    saved, resumed = (checkpoint.load_newest(r.folder / "checkpoints") for r in (whole, parts))
    assert {name.split("/")[0] for name in saved.ema} == {"1", "5", "50"}
    for one, two in ((saved.ema, resumed.ema), (saved.weights, resumed.weights)):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    last = history(whole)[-1]
    assert set(last["emas"]) == {"1", "5", "50"}
    assert last["held_out_frechet"] == min(last["emas"].values(), key=score) == last["emas"][f"{last['ema']:g}"]
    record = json.loads((whole.folder / "pipeline" / "distill.json").read_text())
    best = best_record(whole.folder / "checkpoints", record["run"])
    exported = best if record["cost"]["exported_step"] == best["step"] else last
    assert record["cost"]["ema_half_life"] == exported["ema"]
    assert read_status(whole.folder)["phase"] == "finished"


def test_half_lives_are_checked(recipe_of):
    for value, message in (
        ("[5]", "must have 2 or 3 values"),
        ("[9, 5]", "must increase"),
        ("[0, 5]", "must be positive"),
    ):
        with pytest.raises(ValueError, match=rf"train\.ema_half_lives {message}"):
            recipe_of(f"train.ema_half_lives={value}")
