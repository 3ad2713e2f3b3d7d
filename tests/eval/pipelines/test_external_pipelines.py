"""External pipelines, which have no distill.json: alone, next to students, from the Hub, and users' mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, StableDiffusionPipeline

from eval.compare import compare
from eval.config.options import step_counts
from eval.features.extractors import extractor
from eval.metrics.fid import frechet_from_statistics, statistics
from eval.pipelines.folders import pipeline_folder
from eval.pipelines.generate import arguments
from eval.pipelines.loading import load_pipeline
from eval.pipelines.runs import read_run
from eval.report.markdown import title
from teachers import pocket
from teachers.media import ANY_IMAGE
from tests.commands import eval_main as main


@pytest.fixture
def real(tmp_path):
    np.savez(tmp_path / "real.npz", mu=np.full(192, 0.5), sigma=np.eye(192) / 50)
    return str(tmp_path / "real.npz")


@pytest.fixture
def words(tmp_path):
    (tmp_path / "prompts.txt").write_text("a bag\na coat\n")
    return str(tmp_path / "prompts.txt")


@pytest.mark.exhaustive
def test_the_pocket_pipeline_saved_by_diffusers(tmp_path, real, words, capsys):
    """The command of the documentation, on a folder that only diffusers wrote."""
    folder, out = tmp_path / "someone" / "fast-clothes", tmp_path / "out"
    pipe = StableDiffusionPipeline.from_pretrained(pocket.PIPELINE, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder)
    command = [str(folder), "--steps", "4", "--guidance", "1.0", "--features", "pixels", "--samples", "5"]
    assert main([*command, "--prompts", words, "--reference", real, "--batch-size", "5", "--out", str(out)]) == 0
    assert "fast-clothes, 4 steps" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    (row,) = report["rows"]
    assert (row["name"], row["method"], row["nfe"]) == ("fast-clothes, 4 steps", "external pipeline", 4)
    assert row["call"] == {"num_inference_steps": 4, "guidance_scale": 1.0}
    assert (row["frechet_ratio"], row["speedup"], row["psnr_to_teacher"]) == (1, 1, None)
    assert report["teacher"] is None
    assert report["baseline"] == row["name"]
    assert any("fast-clothes has no distill.json" in note for note in report["notes"])

    loaded = load_pipeline(folder, torch.device("cpu"), torch.float32)
    images = ANY_IMAGE.received(loaded(**arguments(loaded, row["call"], ["a bag", "a coat"] * 2 + ["a bag"], range(5))))
    found = statistics(extractor("pixels")(images))
    mean, covariance = torch.full((192,), 0.5).double(), torch.eye(192).double() / 50
    assert row["frechet_distance"] == pytest.approx(frechet_from_statistics(*found, mean, covariance), rel=1e-3)

    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    for file in (page, text):
        assert "fast-clothes: quality and speed" in file
        assert "against the teacher" not in file
        assert "The teacher takes" not in file
        assert "1.00×" not in file, "the ratio of the only row to itself is not shown"
    assert "fast-clothes" in (out / "model-index.yaml").read_text()


@pytest.mark.slow
def test_an_external_pipeline_next_to_a_student(make_run, text_pipeline, tmp_path, quick):
    student, external = make_run("student"), tmp_path / "external"
    shutil.copytree(text_pipeline, external)
    report = compare([student, external], tmp_path / "out", samples=4, steps="1,2", guidance=1.0, **quick)
    rows = report["rows"]
    assert [(row["name"], row["method"], row["nfe"]) for row in rows[-3:]] == [
        ("student, 1 step", "dmd", 1),
        ("external, 1 step", "external pipeline", 1),
        ("external, 2 steps", "external pipeline", 2),
    ]
    assert report["teacher"]["path"] == str(text_pipeline)
    assert rows[-2]["frechet_distance"] == rows[-3]["frechet_distance"], "equal weights and call"
    assert rows[-2]["psnr_to_teacher"] > 5
    assert title(report) == "student and external against the teacher"
    base = compare(
        [student, external], tmp_path / "out", samples=4, steps="1,2", guidance=1.0, baseline=external, **quick
    )
    assert base["baseline"] == "external, 1 step"
    assert base["rows"][-2]["frechet_ratio"] == 1


def test_calls_use_the_defaults_of_the_class(text_pipeline, unconditional_pipeline):
    assert read_run(text_pipeline).calls == [{"num_steps": 50, "call": {"num_inference_steps": 50}}]
    assert read_run(unconditional_pipeline).calls == [{"num_steps": 1000, "call": {"num_inference_steps": 1000}}]
    assert read_run(text_pipeline, [4], 0.0).calls[0]["call"] == {"num_inference_steps": 4, "guidance_scale": 0.0}
    assert read_run(text_pipeline).name == text_pipeline.parent.name, "not pipeline"
    assert step_counts(None) == []
    assert step_counts("4,1,4") == [4, 1]


@pytest.fixture
def hub(monkeypatch, text_pipeline):
    """A Hub with one pipeline; returns the requested ids."""
    requested = []

    def located(name):
        requested.append(name)
        if name != "owner/clothes":
            raise OSError("no route\nto the hub")
        return str(text_pipeline)

    config = DiffusionPipeline.load_config
    monkeypatch.setattr(StableDiffusionPipeline, "download", lambda name, **_: str(text_pipeline))
    monkeypatch.setattr(
        DiffusionPipeline, "load_config", lambda name, **_: config(name if Path(name).is_dir() else located(name))
    )
    return requested


def test_names_of_embedded_teachers_are_their_pipelines_unless_there_is_such_a_folder(tmp_path, monkeypatch):
    assert pipeline_folder(Path("pocket")) == pocket.PIPELINE
    monkeypatch.chdir(tmp_path)
    Path("pocket").mkdir()
    with pytest.raises(ValueError, match=r"pocket contains no pipeline; a run must be .* or one of pocket, "):
        pipeline_folder(Path("pocket"))


@pytest.mark.slow
def test_hub_ids_are_downloaded(hub, real, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--prompts", words, "--reference", real, "--features", "pixels", "--samples", "4", "--steps", "1"]
    assert main(["owner/clothes", *options, "--out", "out", "--baseline", "owner/clothes"]) == 0
    assert hub == ["owner/clothes"]
    assert "owner/clothes, 1 step" in capsys.readouterr().out

    assert main(["owner/else", *options, "--out", "out2"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: owner/else is not a folder and cannot be downloaded from the Hub: ")
    assert message.endswith("no route to the hub\n")
    # A misspelled folder name is not a Hub id.
    (tmp_path / "runs").mkdir()
    assert main(["runs/clothse", *options, "--out", "out2"]) == 2
    assert "runs/clothse does not exist" in capsys.readouterr().err
    assert hub[1:] == ["owner/else"]


MISTAKES = {
    "no reference": (["--prompts", "P"], "--reference must name real images"),
    "teacher as reference": (["--prompts", "P", "--reference", "teacher"], "has no teacher to compare with"),
    "no prompts": (["--reference", "R"], "needs prompts; name a file of prompts with --prompts"),
    "steps": (
        ["--steps", "few", "--reference", "R"],
        "--steps must be whole numbers of at least 1, such as 4 or 1,2,4",
    ),
    "no steps": (["--steps", "0", "--reference", "R"], "--steps must be whole numbers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(mistake, text_pipeline, real, words, tmp_path, capsys):
    options, sentence = MISTAKES[mistake]
    options = [{"P": words, "R": real}.get(option, option) for option in options]
    out = tmp_path / "out"
    assert main([str(text_pipeline), *options, "--features", "pixels", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert not out.exists()


def test_options_that_do_not_apply_are_refused(make_run, unconditional_pipeline, tmp_path, capsys, real):
    out = ["--out", str(tmp_path / "out")]
    assert main([str(make_run()), "--steps", "4", *out]) == 2
    assert "are only for pipelines without a distill.json" in capsys.readouterr().err
    assert main([str(unconditional_pipeline), "--guidance", "2", "--reference", real, *out]) == 2
    assert "DDPMPipeline takes no guidance_scale; omit --guidance" in capsys.readouterr().err
    index = tmp_path / "odd/model_index.json"
    index.parent.mkdir()
    index.write_text('{"_class_name": "PipelineOfTomorrow"}')
    assert main([str(tmp_path / "odd"), "--reference", real, *out]) == 2
    assert "names a class that is not in this version of diffusers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
