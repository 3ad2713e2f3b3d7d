"""Runs that went wrong: said with exit code 3, and only their best EMA is exported."""

import json
import math
import shutil
import socket
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from distill.config.evaluation_section import EvaluationRecipe
from distill.config.recipe import Recipe
from distill.config.sections import OptimizerRecipe, TeacherRecipe, TrainRecipe
from distill.export import export_run
from distill.train import train
from distill.training import best, checkpoint
from distill.training.diversity import variation
from distill.training.held_out import HeldOut
from distill.training.monitor import Monitor
from distill.training.outcome import FAILED, TIE, RunFailed, is_better
from distill.training.run_folder import fingerprint, run_key
from distill.training.setup import plan_data
from teachers.families.unconditional import Unconditional
from tests.commands import fewstep
from tests.forks import Fork

ZERO = OptimizerRecipe(lr=1e-6, weight_decay=1e6)  # one step sets all weights to zero: a constant network
GOOD = OptimizerRecipe(lr=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline that predicts the sample, so that a network of zeros samples one image."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    with torch.no_grad():
        network.conv_out.weight.mul_(3)
    path = tmp_path_factory.mktemp("sample") / "pipeline"
    DDPMPipeline(network, DDPMScheduler(prediction_type="sample", clip_sample=False)).save_pretrained(path)
    return path


@pytest.fixture
def teacher(folder):
    return Unconditional.wrap(DDPMPipeline.from_pretrained(folder))


def recipe_in(tmp_path, optimizer=GOOD, name="r", path=None, **train_options) -> Recipe:
    settings = {"steps": 4, "evaluate_every": 2, "checkpoint_every": 2, "evaluate_samples": 16, "ema": 0.0}
    return Recipe(
        name,
        TeacherRecipe(path),
        {"name": "dmd", "fake_score_updates": 1},
        output=str(tmp_path / "runs"),
        optimizers={"student": optimizer},
        train=TrainRecipe(
            **{**settings, "batch_size": 4, "evaluate_teacher_steps": 3, "tracker": "none", **train_options}
        ),
    )


def record_of(recipe):
    return json.loads((recipe.folder / "pipeline" / "distill.json").read_text())


def distances(recipe):
    lines = (recipe.folder / "history.jsonl").read_text().splitlines()
    return {json.loads(line)["step"]: json.loads(line)["held_out_frechet"]["1"] for line in lines}


def exported(recipe):
    return load_file(recipe.folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_a_healthy_run_says_which_ema_it_exports(teacher, tmp_path):
    recipe = recipe_in(tmp_path, steps=6)
    train(recipe, teacher)
    record, curve = record_of(recipe), distances(recipe)
    smallest = min((step for step in curve if step), key=curve.get)
    expected = smallest if curve[6] > TIE * curve[smallest] else 6
    assert record["cost"]["steps"] == 6 and record["cost"]["exported_step"] == expected
    last = checkpoint.load_newest(recipe.folder / "checkpoints").ema
    kept = last if expected == 6 else best.load_best(recipe.folder / "checkpoints")
    weights = exported(recipe)
    assert all(torch.equal(kept[f"network.{key}"], weights[key]) for key in weights if "time_embedding" not in key)
    card = (recipe.folder / "pipeline" / "README.md").read_text()
    assert ("best held-out distance" in card) == (expected != 6)
    assert not (recipe.folder / FAILED).exists()
    assert checkpoint.saved_steps(recipe.folder / "checkpoints") == [4, 6]  # the best is not counted
    assert train(recipe, teacher) == recipe.folder / "pipeline"


@pytest.mark.slow
@pytest.mark.parametrize(("distance", "step"), [(1.6, 2), (1.4, 4)])
@pytest.mark.first_by_default
def test_the_best_is_exported_only_if_the_run_ends_clearly_above_it(teacher, tmp_path, monkeypatch, distance, step):
    values = {0: 9e3, 2: 1e3, 4: distance * 1e3}  # far above the noise floor

    def scripted(held_out, distiller, student):
        return {"1": values[scripted.step]}

    def evaluate(monitor, history, distiller, ema, at, *rest):
        scripted.step = at
        return original(monitor, history, distiller, ema, at, *rest)

    original = Monitor.evaluate
    monkeypatch.setattr(HeldOut, "distances", scripted)
    monkeypatch.setattr(Monitor, "evaluate", evaluate)
    recipe = recipe_in(tmp_path, steps=4)
    train(recipe, teacher)
    assert record_of(recipe)["cost"]["exported_step"] == step


@pytest.mark.slow
def test_the_last_ema_is_exported_on_request_or_without_evaluations(teacher, tmp_path):
    for name, options in {"last": {"export": "last"}, "none": {"evaluate_every": 0}}.items():
        recipe = recipe_in(tmp_path, name=name, **options)
        train(recipe, teacher)
        assert record_of(recipe)["cost"]["exported_step"] == 4
        last = checkpoint.load_newest(recipe.folder / "checkpoints").ema
        assert torch.equal(exported(recipe)["conv_in.weight"], last["network.conv_in.weight"])
    assert not (tmp_path / "runs" / "none" / "checkpoints" / "best").exists()


@pytest.mark.slow
@pytest.mark.parametrize("export", ["best", "last"])
@pytest.mark.first_by_default
def test_a_collapsed_run_exports_its_best_and_fails_again_when_started_again(teacher, tmp_path, capfd, export):
    """It trains well up to step 2 and then collapses; the result is the EMA of step 2 in every case."""
    train(recipe_in(tmp_path, steps=2), teacher)
    recipe = recipe_in(tmp_path, steps=2)
    resumed = recipe_in(tmp_path, ZERO, steps=4, export=export)
    shutil.rmtree(recipe.folder / "pipeline")
    adopt(recipe, resumed, teacher)
    for _ in range(2):
        with pytest.raises(RunFailed) as failure:
            train(resumed, teacher)
        assert failure.value.code == 3
        message = capfd.readouterr().err
        assert "went wrong: the samples of step 4 collapsed" in message and "Traceback" not in message
    assert record_of(resumed)["cost"]["exported_step"] in (0, 2)
    assert exported(resumed)["conv_out.weight"].abs().max() > 1e-3
    extended = recipe_in(tmp_path, ZERO, steps=6)  # trained longer, it is judged again
    with pytest.raises(RunFailed):
        train(extended, teacher)
    assert json.loads((extended.folder / FAILED).read_text())["step"] == 6


def adopt(recipe, other, teacher):
    """Give the checkpoints of `recipe` the fingerprint and the weight decay of `other`."""
    new = fingerprint(other, plan_data(other, teacher), teacher)
    folder = recipe.folder / "checkpoints"
    newest = checkpoint.load_newest(folder)
    newest.meta["fingerprint"] = new
    for group in newest.optimizers["student"]["param_groups"]:
        group["weight_decay"] = other.optimizers["student"].weight_decay
    checkpoint.save(folder, newest, 2)
    old = fingerprint(recipe, plan_data(recipe, teacher), teacher)
    record = best.best_record(folder, run_key(old))
    best.save_best(folder, best.load_best(folder), {**record, "fingerprint": run_key(new)})


@pytest.mark.exhaustive
def test_a_run_that_collapses_at_once_exports_the_untrained_student_or_nothing(teacher, tmp_path, capfd):
    evaluated = recipe_in(tmp_path, ZERO, name="evaluated")
    with pytest.raises(RunFailed):
        train(evaluated, teacher)
    assert record_of(evaluated)["cost"]["exported_step"] == 0
    assert "only the EMA of step 0 was exported" in capfd.readouterr().err
    unwatched = recipe_in(tmp_path, ZERO, name="unwatched", evaluate_every=0)
    with pytest.raises(RunFailed):
        train(unwatched, teacher)
    assert "nothing was exported" in capfd.readouterr().err
    assert not (unwatched.folder / "pipeline").exists()


@pytest.mark.slow
def test_a_damaged_best_is_reported_and_not_exported(teacher, tmp_path):
    recipe = recipe_in(tmp_path, ZERO)
    with pytest.raises(RunFailed):
        train(recipe, teacher)
    (recipe.folder / FAILED).unlink()
    shutil.rmtree(recipe.folder / "pipeline")
    file = recipe.folder / "checkpoints" / "best" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged; it is not used"), pytest.raises(RunFailed):
        train(recipe, teacher)
    assert not (recipe.folder / "pipeline").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "again"), [("flipped", train), ("lost", lambda recipe: export_run(recipe.folder))])
@pytest.mark.first_by_default
def test_the_last_evaluation_is_repeated_if_its_record_is_damaged_or_lost(folder, tmp_path, monkeypatch, damage, again):
    """Without it, the record of step 2 would be taken for the end of the run, and the last EMA would be exported."""
    scripted = {"step": 0, "values": {0: 9e3, 2: 1e3, 4: 2e3}}
    monkeypatch.setattr(HeldOut, "distances", lambda *a: {"1": scripted["values"][scripted["step"]]})
    original = Monitor.evaluate

    def evaluate(monitor, history, distiller, ema, at, *rest):
        scripted["step"] = at
        return original(monitor, history, distiller, ema, at, *rest)

    monkeypatch.setattr(Monitor, "evaluate", evaluate)
    recipe = recipe_in(tmp_path, steps=4, path=str(folder))
    train(recipe)
    assert record_of(recipe)["cost"]["exported_step"] == 2
    shutil.rmtree(recipe.folder / "pipeline")
    lines = (recipe.folder / "history.jsonl").read_text().splitlines()
    last = [lines[-1].replace("2000.0", "1000.0")] if damage == "flipped" else []
    (recipe.folder / "history.jsonl").write_text("\n".join([*lines[:-1], *last]) + "\n")
    again(recipe)
    assert record_of(recipe)["cost"]["exported_step"] == 2


@pytest.mark.exhaustive
def test_the_best_is_known_after_a_kill_between_an_evaluation_and_a_checkpoint(teacher, tmp_path):
    """The run resumes before the best's step, evaluates it again and ends as the uninterrupted run."""
    whole = recipe_in(tmp_path, name="whole", checkpoint_every=4)
    train(whole, teacher)
    parts = recipe_in(tmp_path, name="parts", checkpoint_every=4)
    train(parts, teacher)
    shutil.rmtree(parts.folder / "checkpoints" / "00000004")  # killed before it was written
    shutil.rmtree(parts.folder / "pipeline")
    train(parts, teacher)
    one, two = record_of(whole)["cost"]["exported_step"], record_of(parts)["cost"]["exported_step"]
    assert one == two and distances(whole) == distances(parts)
    assert all(torch.equal(value, exported(parts)[key]) for key, value in exported(whole).items())


@pytest.mark.parametrize(("first", "then"), [(16, 40), (40, 16)])
@pytest.mark.exhaustive
def test_the_best_is_evaluated_again_if_the_evaluation_changed(teacher, tmp_path, capfd, first, then):
    """Distances from 16 samples are a third larger than from 40: they must not decide which EMA is the best."""
    train(recipe_in(tmp_path, steps=4, evaluate_samples=first), teacher)
    recipe = recipe_in(tmp_path, steps=6, evaluate_samples=then)
    train(recipe, teacher)
    lines = [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["evaluation"] == lines[-1]["evaluation"]] == [6]
    record = best.best_record(
        recipe.folder / "checkpoints", run_key(fingerprint(recipe, plan_data(recipe, teacher), teacher))
    )
    assert record["evaluation"] == lines[-1]["evaluation"]
    one, two = record["held_out_frechet"]["1"], lines[-1]["held_out_frechet"]["1"]
    assert one <= two < 1.1 * one
    assert "was evaluated again, because the evaluation has changed" in capfd.readouterr().out
    unchanged = recipe_in(tmp_path, name="unchanged", steps=6, evaluate_samples=first)
    train(unchanged, teacher)
    one, two = (checkpoint.load_newest(r.folder / "checkpoints").ema for r in (recipe, unchanged))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.exhaustive
def test_a_finished_run_is_exported_again_if_another_ema_is_requested(teacher, tmp_path, capfd):
    recipe = recipe_in(tmp_path)
    train(recipe, teacher)
    last = recipe_in(tmp_path, export="last")
    with_reference = replace(last, evaluation=EvaluationRecipe(reference=str(tmp_path)))
    for changed in (last, with_reference):
        train(changed, teacher)
        assert "is finished" not in capfd.readouterr().out
        train(changed, teacher)
        assert "is finished" in capfd.readouterr().out
    weights = checkpoint.load_newest(recipe.folder / "checkpoints").ema
    assert torch.equal(exported(recipe)["conv_in.weight"], weights["network.conv_in.weight"])
    assert record_of(recipe)["evaluation"]["reference"] == str(tmp_path)


@pytest.mark.slow
def test_the_export_of_a_failed_run_fails_as_its_training_did(folder, tmp_path, capfd):
    recipe = recipe_in(tmp_path, ZERO, path=str(folder))
    for command in (lambda: train(recipe), lambda: export_run(recipe.folder)):
        with pytest.raises(RunFailed, match="only the EMA of step 0 was exported"):
            command()
    for command in (lambda: train(recipe), lambda: export_run(recipe.folder)):  # what was exported is gone
        shutil.rmtree(recipe.folder / "pipeline")
        with pytest.raises(RunFailed):
            command()
        assert record_of(recipe)["cost"]["exported_step"] == 0
    assert export_run(recipe.folder / "pipeline") == recipe.folder / "pipeline"


@pytest.mark.slow
def test_the_cost_of_an_export_includes_a_best_newer_than_the_last_checkpoint(folder, tmp_path):
    recipe = recipe_in(tmp_path, path=str(folder), checkpoint_every=2)
    train(recipe)
    newest = best.best_record(recipe.folder / "checkpoints", run_key(fingerprint(recipe, plan_data(recipe))))
    shutil.rmtree(recipe.folder / "checkpoints" / "00000004")  # killed before it was written
    shutil.rmtree(recipe.folder / "pipeline")
    export_run(recipe.folder)
    cost = record_of(recipe)["cost"]
    assert cost["exported_step"] == cost["steps"] == newest["step"] == 4 and cost["samples"] == 16
    assert cost["seconds"] == pytest.approx(newest["seconds"], abs=0.06)


def test_the_best_of_another_recipe_is_not_used(tmp_path):
    record = {"step": 2, "seconds": 1.0, "held_out_frechet": {"1": 0.5}, "fingerprint": "a"}
    best.save_best(tmp_path, {"w": torch.ones(2)}, record)
    assert best.best_record(tmp_path, "a") == record
    assert best.best_record(tmp_path, "b") is None
    assert best.best_record(tmp_path / "missing", "a") is None


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        ((4, 0.5), (2, 0.6), True),
        ((4, 0.6), (2, 0.5), False),
        ((2, 0.6), (0, 0.5), True),  # the untrained student is no result where training is not far worse
        ((2, 5.0), (0, 0.5), False),
        ((4, None), (2, 0.5), False),
        ((4, 0.5), (2, None), True),
    ],
)
def test_is_better(new, old, better):
    one, two = ({"step": step, "held_out_frechet": {"1": value}} for step, value in (new, old))
    assert is_better(one, two) is better


def test_score_is_the_geometric_mean_over_numbers_of_steps():
    assert best.score({"1": 0.5, "2": 2.0}) == pytest.approx(1.0)
    assert best.score({"1": 1e-9, "2": 4.0}, floor=1.0) == pytest.approx(2.0)
    assert best.score({"1": None, "2": 2.0}) == math.inf


def test_variation_detects_one_image_and_copies_of_a_few():
    rng = torch.Generator().manual_seed(0)
    varied = torch.rand(64, 3, 8, 8, generator=rng)
    one = varied[:1].expand(64, -1, -1, -1) + 0.01 * torch.randn(64, 3, 8, 8, generator=rng)
    few = varied[torch.randint(4, (64,), generator=rng)]
    reference = variation(varied)
    assert (variation(one) / reference).max() < 0.01
    ratio = variation(few) / reference
    assert ratio[0] > 0.3 and ratio[1] < 0.01  # the variance alone misses it


@pytest.mark.slow
def test_stopped_runs_export_their_best(folder, tmp_path):
    (tmp_path / "runs").mkdir()
    recipe = recipe_in(tmp_path, path=str(folder), steps=4)
    train(recipe)
    steps = record_of(recipe)["cost"]["exported_step"]
    shutil.rmtree(recipe.folder / "pipeline")
    assert export_run(recipe.folder) == recipe.folder.resolve() / "pipeline"
    assert record_of(recipe)["cost"]["exported_step"] == steps


@pytest.mark.exhaustive
def test_commands_end_with_exit_code_3(folder, tmp_path):
    recipe = recipe_in(tmp_path, ZERO, path=str(folder))
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(recipe)))))
    for name, words in {"direct": (), "launched": ("--num-processes", 1)}.items():
        ended = Fork(tmp_path / name, fewstep, "train", file, *words)
        assert ended.wait() == 3, ended.error
        assert ended.error.count("went wrong") == 1 and "Traceback" not in ended.error


@pytest.mark.exhaustive
def test_sharded_processes_agree_on_the_best(folder, tmp_path):
    """The main process writes the best EMA while the others continue; they must not read an earlier one."""
    file = tmp_path / "r.yaml"
    for options in ({"steps": 4}, {"steps": 6, "evaluate_samples": 40}):
        recipe = recipe_in(tmp_path, path=str(folder), precision="no", **options)
        file.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(recipe)))))
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
        variables |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "true"}
        processes = [
            Fork(tmp_path / rank, fewstep, "train", file, variables=variables | {"RANK": rank, "LOCAL_RANK": rank})
            for rank in "01"
        ]
        try:
            assert [process.wait(200) for process in processes] == [0, 0], [process.error for process in processes]
        finally:
            for process in processes:
                process.kill()
    lines = [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]
    record = best.best_record(recipe.folder / "checkpoints", run_key(fingerprint(recipe, plan_data(recipe))))
    assert record["evaluation"] == lines[-1]["evaluation"] != lines[0]["evaluation"]
    curve = distances(recipe)
    ends_clearly_above = curve[6] > TIE * curve[record["step"]]
    assert record_of(recipe)["cost"]["exported_step"] == (record["step"] if ends_clearly_above else 6)
