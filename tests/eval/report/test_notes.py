"""Notes of a report about the runs' teachers."""

import shutil

import torch

from eval.config.options import Options
from eval.features.extractors import extractor
from eval.metrics.context import MetricContext
from eval.pipelines.inputs import read_inputs
from eval.report.notes import notes
from teachers.loading.contents import pipeline_contents, stored_files


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
