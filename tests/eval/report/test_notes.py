"""Notes of a report about the runs' teachers, their training prompts, and scores that were not computed."""

import shutil
from dataclasses import replace

import pytest
import torch

from eval.config.options import Options
from eval.features.extractors import extractor
from eval.metrics.context import MetricContext, Reference
from eval.pipelines.inputs import read_inputs
from eval.report.notes import notes
from teachers.loading.contents import pipeline_contents, stored_files
from teachers.loading.prompts import read_prompts


def test_a_teacher_that_changed_since_training_is_reported(make_run, text_pipeline, tmp_path):
    shutil.copytree(text_pipeline, tmp_path / "t")
    teacher = {
        "family": "stable_diffusion",
        "path": str(tmp_path / "t"),
        "call": {"num_inference_steps": 3, "guidance_scale": 2.0},
        "contents": stored_files(pipeline_contents(str(tmp_path / "t"))),
    }
    run = make_run("student", teacher=teacher)
    context = MetricContext(4, 0, torch.device("cpu"), extractor("pixels"), 192)

    def found():
        inputs = read_inputs(Options([run], tmp_path / "out", samples=4))
        return [note for note in notes(inputs, context, None, []) if "distilled from" in note]

    assert not found()
    weights = tmp_path / "t/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    (note,) = found()
    assert "is not the one that student was distilled from: unet/diffusion_pytorch_model.safetensors changed" in note
    shutil.rmtree(tmp_path / "t/vae")
    (note,) = found()
    assert " and 2 more files changed" in note


@pytest.mark.parametrize(
    ("stored", "own", "used", "sentence"),
    [
        (
            ["a coat", "a bag"],
            True,
            ["a coat", "a bag", "a coat"],
            "All 2 evaluation prompts are training prompts of student",
        ),
        (
            ["a coat", "a bag"],
            False,
            ["a coat", "a hat"],
            "1 of the 2 evaluation prompts are training prompts of student",
        ),
        (["a coat", "a bag"], False, ["a hat"], None),
        (None, True, ["a hat", "a tie"], None),
        (
            None,
            False,
            ["a hat"],
            "student does not record its training prompts, so they may be among the evaluation prompts",
        ),
    ],
)
@pytest.mark.first_is_quick
def test_evaluation_prompts_that_are_training_prompts_are_reported(make_run, tmp_path, stored, own, used, sentence):
    name = "training_prompts.txt" if stored else "evaluation_prompts.txt"
    run = make_run("student", evaluation={"prompts": name, "features": "pixels", "shared_with_training": 0})
    (run / "pipeline" / name).write_text("".join(f"{prompt}\n" for prompt in (used if own else stored or ["x"])))
    (tmp_path / "used.txt").write_text("".join(f"{prompt}\n" for prompt in used))
    options = {} if own else {"prompts": str(tmp_path / "used.txt")}
    context = MetricContext(4, 0, torch.device("cpu"), extractor("pixels"), 192, used)
    inputs = read_inputs(Options([run], tmp_path / "out", samples=4, **options))
    found = [note for note in notes(inputs, context, None, []) if "prompts" in note]
    assert [note.startswith(sentence) for note in found] == ([True] if sentence else [])


@pytest.mark.parametrize(("recorded", "expected"), [(None, "All"), (0, "All"), (-5, "of the"), ("none", None)])
def test_prompts_of_an_embedded_teacher_are_training_prompts_as_far_as_recorded(make_run, tmp_path, recorded, expected):
    """`recorded` is what the run was trained with beside all of them."""
    used = sorted(set(read_prompts("pocket")))
    entry = {} if recorded is None else {"shared_with_training": 0 if recorded == "none" else len(used) + recorded}
    run = make_run("student", evaluation={"prompts": "pocket", "features": "pixels"} | entry)
    context = MetricContext(4, 0, torch.device("cpu"), extractor("pixels"), 192, used)
    inputs = read_inputs(Options([run], tmp_path / "out", samples=len(read_prompts("pocket"))))
    found = [note for note in notes(inputs, context, None, []) if "are training prompts of student" in note]
    assert [expected in note for note in found] == ([True] if expected else [])


def test_equal_notes_of_several_runs_are_one_sentence(make_run, tmp_path):
    runs = [make_run(name, evaluation={"prompts": "training_prompts.txt", "features": "pixels"}) for name in "abcd"]
    for run, prompts in zip(runs, (["a coat"], ["a coat"], ["a bag"], ["a coat"]), strict=True):
        (run / "pipeline/training_prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    (runs[3] / "pipeline/training_prompts.txt").unlink()
    (tmp_path / "used.txt").write_text("a coat\na bag\na hat\n")
    context = MetricContext(4, 0, torch.device("cpu"), extractor("pixels"), 192, ["a coat"] * 4)

    def found(prompts: list[str]) -> list[str]:
        (tmp_path / "used.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
        inputs = read_inputs(Options(runs, tmp_path / "out", samples=4, prompts=str(tmp_path / "used.txt")))
        return [note.partition(";")[0] for note in notes(inputs, context, None, []) if "prompts" in note]

    unknown = "d does not record its training prompts, so they may be among the evaluation prompts."
    assert found(["a coat", "a bag", "a hat"]) == [
        "1 of the 3 evaluation prompts are training prompts of a, b and c",
        unknown,
    ]
    assert found(["a coat"]) == ["All 1 evaluation prompts are training prompts of a and b", unknown]


def test_scores_that_were_not_computed_are_one_sentence(make_run, tmp_path):
    inputs = read_inputs(Options([make_run("student")], tmp_path / "out", samples=4))
    pixels = extractor("pixels")

    def found(features: str, **scorers: str) -> list[str]:
        context = MetricContext(4, 0, torch.device("cpu"), pixels, 192, ["a"] * 4, scorers=scorers)
        return [n for n in notes(replace(inputs, features=features), context, None, []) if n.startswith("Not computed")]

    assert found("pixels") == [], "toy features belong to toy teachers"
    (note,) = found("clean", pickscore="x")
    assert note == "Not computed, because no weights were named (--score NAME=FOLDER): HPSv2, object checks."


def test_the_note_of_a_reference_is_reported(make_run, tmp_path):
    inputs = read_inputs(Options([make_run()], tmp_path / "out", samples=4))
    target = Reference(torch.zeros(192), torch.eye(192), note="it does not say which features")
    context = MetricContext(4, 0, torch.device("cpu"), extractor("pixels"), 192, reference=target)
    assert target.note in notes(inputs, context, None, [])
