"""Resuming: a run continues only with the teacher, data and options that it began with, and errors say what changed."""

import dataclasses
import json
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.config.recipe import load
from distill.data.dataset import Dataset
from distill.data.latents import EmbeddedLatents, LatentsInMemory
from distill.data.plan import Plan
from distill.data.shards import Table
from distill.export import export_run
from distill.train import train
from distill.training import checkpoint
from distill.training.held_out import teacher_samples_key
from distill.training.run_folder import CODE, fingerprint, finished
from distill.training.setup import load_teacher
from eval.features.extractors import extractor
from teachers.loading.embedded import EMBEDDED
from teachers.loading.registry import load_teacher as teacher_from
from tests.settings import FAST

CPU = torch.device("cpu")


@pytest.fixture
def make(text_pipeline, tmp_path):
    """make("key=value", ...): a recipe whose teacher is a copy in the test's folder."""
    shutil.copytree(text_pipeline, tmp_path / "t")
    (tmp_path / "p.txt").write_text("a coat\na bag\n")
    (tmp_path / "r.yaml").write_text(
        f"name: r\noutput: {tmp_path / 'runs'}\ndata: {{prompts: {tmp_path / 'p.txt'}}}\nmethod: {{name: dmd}}\n"
        f"teacher: {{family: stable_diffusion, path: {tmp_path / 't'}, guidance: 2.0}}\n"
    )
    return lambda *overrides: load(tmp_path / "r.yaml", [*FAST, *overrides])


def replace_weights(folder: Path, component: str = "unet") -> None:
    file = next((folder / component).glob("*.safetensors"))
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file, {"format": "pt"})


OVERRIDES = [
    "seed=1",
    "teacher.guidance=3.0",
    "teacher.sigma_data=0.5",
    "teacher.precision=bfloat16",
    "method.fake_score_updates=3",
    "method.name=rcm",
    "train.batch_size=8",
    "train.ema=0.5",
    "train.max_norm=2.0",
    "train.precision=bf16",
    "memory.tier=lora",
    "optimizers.student.lr=0.1",
]
FREE = [
    "name=other",
    "output=elsewhere",
    "train.steps=9",
    "train.accumulation=2",
    "train.evaluate_samples=9",
    "memory.checkpointing=true",
    "optimizers.student.lr=0.0001",  # the default, written out
    "teacher.sigma_data=1.0",  # the family's
]


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.first_is_quick
def test_changed_options_change_the_fingerprint(make, override):
    plan = Plan(["a"])
    assert fingerprint(make(), plan) == fingerprint(make(), plan) != fingerprint(make(override), plan)


@pytest.mark.parametrize("override", FREE)
@pytest.mark.first_is_quick
def test_other_options_do_not(make, override):
    assert fingerprint(make(), Plan(["a"])) == fingerprint(make(override), Plan(["a"]))


@pytest.mark.slow
def test_every_file_of_the_teacher_is_part_of_the_fingerprint(make, tmp_path):
    before = fingerprint(make(), Plan(["a"]))
    for file in sorted(f for f in (tmp_path / "t").rglob("*") if f.is_file()):
        original = file.read_bytes()
        file.write_bytes(original[:-1] + (b" \n" if file.suffix == ".json" else b"\1"))
        after = fingerprint(make(), Plan(["a"]))
        name = file.relative_to(tmp_path / "t").as_posix()
        assert {k for k in before if before[k] != after[k]} == {f"the teacher's {name}"}
        file.write_bytes(original)
    shutil.copytree(tmp_path / "t", tmp_path / "copy")
    assert fingerprint(make(f"teacher.path={tmp_path / 'copy'}"), Plan(["a"])) == before


@pytest.mark.slow
def test_data_are_part_of_the_fingerprint(make):
    embedded = EmbeddedLatents(EMBEDDED["pocket"])
    plans = [Plan(["a", "b"]), Plan(["b", "a"]), Plan(["a"]), Plan(embedded.captions), Plan(latents=embedded)]
    plans += [Plan(latents=LatentsInMemory(torch.full((2, 4, 8, 8), value), ["a", "b"])) for value in (0.0, 1.0)]
    found = [json.dumps(fingerprint(make(), plan), sort_keys=True) for plan in plans]
    assert len(set(found)) == len(plans)


@pytest.mark.slow
def test_a_teacher_in_memory_is_part_of_the_fingerprint(make, tmp_path):
    teacher = teacher_from(tmp_path / "t")
    recipe, plan = make(), Plan(["a"])
    before = fingerprint(recipe, plan, teacher)
    assert fingerprint(recipe, plan, teacher_from(tmp_path / "t")) == before
    next(teacher.stock.vae.parameters()).data[0] += 1
    assert fingerprint(recipe, plan, teacher) != before


@pytest.mark.slow
def test_a_run_whose_teacher_was_replaced_is_neither_finished_nor_resumed(make, tmp_path):
    train(make("train.steps=1"))
    assert finished(make("train.steps=1"), fingerprint(make("train.steps=1"), Plan(["a coat", "a bag"])))
    replace_weights(tmp_path / "t")
    changed = r"\(the teacher's unet/diffusion_pytorch_model\.safetensors changed\); give this run another name"
    for steps in (1, 2):
        with pytest.raises(ValueError, match=changed):
            train(make(f"train.steps={steps}"))


@pytest.mark.exhaustive
def test_the_pipeline_of_an_earlier_run_or_step_is_not_the_result(make, tmp_path, monkeypatch):
    """Training ended after its last checkpoint and before its export, beside the pipeline of an earlier run."""
    save = checkpoint.save

    def slow_save(*args, **kwargs):
        time.sleep(0.3)  # the time of the last checkpoint would show in the cost of the first export only
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", slow_save)
    weights = tmp_path / "runs/r/pipeline/unet/diffusion_pytorch_model.safetensors"
    train(make("train.steps=2"))
    first = weights.read_bytes()
    train(make("train.steps=4"))
    second, exported = weights.read_bytes(), (tmp_path / "runs/r/exported.json").read_text()
    assert first != second
    for stale in (exported.replace('"step": 4', '"step": 2'), None):
        weights.write_bytes(first)
        if stale is None:
            (tmp_path / "runs/r/exported.json").unlink()
        else:
            (tmp_path / "runs/r/exported.json").write_text(stale)
        train(make("train.steps=4"))
        assert weights.read_bytes() == second
    weights.write_bytes(first)
    (tmp_path / "runs/r/exported.json").unlink()
    export_run(tmp_path / "runs/r")
    assert weights.read_bytes() == second
    assert (tmp_path / "runs/r/exported.json").read_text() == exported  # with the hash of an equal distill.json
    train(make("train.steps=4"))  # finished: nothing is trained or exported
    assert (tmp_path / "runs/r/exported.json").read_text() == exported


@pytest.mark.slow
def test_an_error_says_which_options_changed(make, tmp_path):
    train(make("train.steps=1"))
    with pytest.raises(ValueError, match=r"\(teacher\.guidance was 2\.0 and is 3\.0\)"):
        train(make("train.steps=2", "teacher.guidance=3.0"))
    (tmp_path / "p.txt").write_text("a coat\na shoe\n")
    with pytest.raises(ValueError, match=r"\(seed was 0 and is 1, the captions changed\)"):
        train(make("train.steps=2", "seed=1"))


@pytest.mark.slow
def test_other_versions_of_the_code_are_a_warning(make, tmp_path):
    train(make("train.steps=1"))
    plan = Plan(["a coat", "a bag"])
    expected = fingerprint(make(), plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert finished(make("train.steps=1"), expected | {CODE: "other"})
        assert not finished(make("train.steps=2"), expected)
    with pytest.warns(UserWarning, match="other versions of the code or of its libraries up to step 1"):
        assert not finished(make("train.steps=2"), expected | {CODE: "other"})
    assert checkpoint.newest_meta(tmp_path / "runs/r/checkpoints")["fingerprint"] == expected


# --- the teacher's held-out samples -----------------------------------------------------------------------------------


@pytest.fixture
def samples(make):
    """samples("key=value", ...): the key of the teacher's held-out samples; keywords change the data and features."""

    def key_for(*overrides: str, captions=("a", "b"), prompt=(0, 1, 1), features="pixels", weights="", teacher=None):
        recipe = make(*overrides)
        loaded = load_teacher(recipe, CPU)
        table = Table([{"x": torch.zeros(len(captions), 1)}], CPU)
        data = Dataset(list(captions), table, torch.tensor(prompt), teacher=teacher or {"unet": "1"})
        chosen = dataclasses.replace(extractor("pixels"), name=features, weights=weights)
        return teacher_samples_key(recipe, loaded, data, chosen)

    return key_for


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "teacher.guidance=3.0",
        "teacher.sigma_data=0.5",
        "train.evaluate_teacher_steps=3",
        "train.evaluate_samples=7",
    ],
)
@pytest.mark.first_by_default
def test_the_teachers_samples_depend_on_the_recipe(samples, override):
    assert samples() == samples("train.steps=9") != samples(override)


@pytest.mark.slow
def test_the_teachers_samples_depend_on_prompts_features_and_contents(samples):
    changes = [
        {},
        {"captions": ("a", "c")},
        {"prompt": (0, 0, 1)},
        {"features": "clean"},
        {"weights": "other"},
        {"teacher": {"unet": "2"}},
    ]
    assert len({samples(**change) for change in changes}) == len(changes)


@pytest.mark.exhaustive
def test_the_monitor_samples_a_replaced_teacher_again(make, tmp_path):
    file = tmp_path / "runs/r/cache/teacher.safetensors"
    train(make("train.steps=0", "train.evaluate_every=1"))
    before = load_file(file)["images"]
    shutil.rmtree(tmp_path / "runs/r/checkpoints", ignore_errors=True)
    replace_weights(tmp_path / "t")
    shutil.rmtree(tmp_path / "runs/r/pipeline")
    train(make("train.steps=0", "train.evaluate_every=1"))
    assert not torch.equal(load_file(file)["images"], before)
