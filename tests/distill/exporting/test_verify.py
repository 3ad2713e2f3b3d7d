"""An export that differs from its student is refused; cards run as they are written; exports load in half precision."""

import functools
import json
import re

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from distill.checks.export_checks import check_student
from distill.config.registry import TEACHERS, find
from distill.exporting.card import call_lines, prompt_argument
from distill.exporting.verify import ExportMismatch
from tests.commands import fewstep
from tests.distill.exporting.test_every_export import METHODS, exported
from tests.teachers.tiny_pipelines import BUILDERS

CPU = torch.device("cpu")
SD = "Stable Diffusion 1.5"


@pytest.fixture(scope="module")
def scm_export(teacher_of, tmp_path_factory):
    """Function scm_export(name) -> (folder, distill.json) of an exported student of sCM; each is exported once."""

    @functools.cache
    def make(name):
        run = tmp_path_factory.mktemp("scm") / "run"
        return run / "pipeline", exported(run, teacher_of(name), name, METHODS["scm"])

    return make


def wrong_times(teacher, monkeypatch, offset):
    """Let the teacher export its students at a second angle that is `offset` radians too large."""
    right = type(teacher).pipeline
    monkeypatch.setattr(
        teacher,
        "pipeline",
        lambda student, times: right(teacher, student, [times[0], *(t + offset for t in times[1:])]),
    )


@pytest.mark.slow
def test_a_wrong_second_step_is_refused_and_the_old_pipeline_stays(teacher_of, tmp_path, monkeypatch):
    teacher = teacher_of(SD)
    exported(tmp_path / "run", teacher, SD, METHODS["scm"])
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    wrong_times(teacher, monkeypatch, 0.05)
    with pytest.raises(ExportMismatch, match=r"within 0\.001, got a difference of .* at 2 steps; it was not exported"):
        exported(tmp_path / "run", teacher, SD, METHODS["scm"])
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_pipeline_whose_images_saturate_is_compared_by_its_latents(teacher_of, tmp_path, monkeypatch):
    teacher = teacher_of("pixels, cosine")
    exported(tmp_path / "run", teacher, "pixels, cosine", METHODS["dmd"])
    right = type(teacher).pipeline

    def wrong(student, times):
        pipe = right(teacher, student, times)
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, trained_betas=None)
        return pipe

    monkeypatch.setattr(teacher, "pipeline", wrong)
    with pytest.raises(ExportMismatch):
        exported(tmp_path / "run", teacher, "pixels, cosine", METHODS["dmd"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.first_is_quick
def test_weights_that_are_not_finite_are_not_exported(value, teacher_of, tmp_path, monkeypatch):
    teacher = teacher_of(SD)
    student = teacher.student

    def broken():
        made = student()
        with torch.no_grad():
            next(made.parameters()).view(-1)[0] = value
        return made

    monkeypatch.setattr(teacher, "student", broken)
    with pytest.raises(ValueError, match="must be finite, got NaN or infinite values in conv_in"):
        exported(tmp_path / "run", teacher, SD, METHODS["dmd"])
    assert not (tmp_path / "run" / "pipeline").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BUILDERS, "pixels, learned variance", "pixels, grey"])
@pytest.mark.sampled
def test_the_cards_code_runs_as_it_is_written(name, scm_export):
    folder, _ = scm_export(name)
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(folder)).replace("a photo of ...", "a coat"), names)
    assert len(names["images"]) >= 1
    assert np.asarray(names["images"][0]).size
    assert "the pipeline's samples differ from the student's by at most" in card
    assert "not supported" in card  # image-to-image, ControlNet


@pytest.mark.slow
def test_class_conditional_cards_pass_a_class(teacher_of, tmp_path):
    exported(tmp_path / "run", teacher_of("DiT"), "DiT", METHODS["dmd"])
    card = (tmp_path / "run" / "pipeline" / "README.md").read_text()
    assert "pipe(class_labels=[0], " in card and "pipeline_tag: text-to-image" not in card


@pytest.mark.parametrize("name", [SD, "unconditional UNet"])
def test_call_lines_pass_prompts_to_pipelines_that_take_them(name, teacher_of):
    teacher = teacher_of(name)
    kind = type(teacher.pipeline(teacher.student(), [teacher.denoiser.path.t_max]))
    lines = call_lines([{"num_steps": 1, "call": {"num_inference_steps": 1}}], prompt_argument(kind, teacher))
    assert ("'a photo of ...'" in lines) == (name == SD)


@pytest.mark.slow
@pytest.mark.parametrize("name", [SD, "Stable Diffusion 3.5", "DiT", "pixels, learned variance"])
def test_exports_load_in_half_precision(name, scm_export):
    """In half precision the images are near those in float32, and the scheduler's table stays in float32."""
    half = torch.float16 if name.startswith("pixels") else torch.bfloat16  # DDPMPipeline gives NumPy arrays
    folder, stored = scm_export(name)
    inputs = {"class_labels": [1]} if name == "DiT" else {} if name.startswith("pixels") else {"prompt": "a coat"}
    images = []
    for dtype in (torch.float32, half):
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        call = stored["calls"][0]["call"]
        images.append(pipe(**inputs, **call, generator=torch.Generator().manual_seed(0), output_type="np").images)
        assert getattr(pipe.scheduler, "alphas_cumprod", torch.zeros(1)).dtype == torch.float32
    assert np.isfinite(images[1]).all()
    assert np.abs(images[0] - images[1]).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DiT", SD, "pixels, learned variance"])
def test_default_number_of_steps_is_refused_with_a_reason(name, scm_export):
    pipe = DiffusionPipeline.from_pretrained(scm_export(name)[0])
    inputs = {"class_labels": [1]} if name == "DiT" else {} if name.startswith("pixels") else {"prompt": "a coat"}
    with pytest.raises(ValueError, match="num_inference_steps"):
        pipe(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BUILDERS, "pixels, learned variance", "pixels, cosine"])
@pytest.mark.sampled
def test_exported_students_pass_fewstep_check(name, scm_export):
    results = check_student(scm_export(name)[0], CPU)
    assert [result.name for result in results] == [
        "export, 1 step",
        "export, 2 steps",
        "export against the run's student",
    ]
    assert all(result.passed for result in results), results


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.sampled
def test_students_of_a_teacher_that_embeds_its_guidance_are_exported_and_pass(rank, folder_of, tmp_path):
    """The teacher's scale is part of the student's weights, whatever scale the call of its pipeline has."""
    _, folder = folder_of(SD)
    stock = StableDiffusionPipeline.from_pretrained(folder)
    stock.register_modules(unet=UNet2DConditionModel(**dict(stock.unet.config) | {"time_cond_proj_dim": 8}))
    stock.save_pretrained(tmp_path / "teacher")
    teacher = find(TEACHERS, "stable_diffusion").load(str(tmp_path / "teacher"), CPU)
    if rank:
        teacher.enable_lora(rank)
    stored = exported(tmp_path / "run", teacher, SD, METHODS["dmd, 2 steps"], guidance=4.0)
    assert ("lora" in stored) == bool(rank)
    assert all(result.passed for result in check_student(tmp_path / "run" / "pipeline", CPU))


@pytest.mark.slow
def test_fewstep_check_fails_for_an_export_that_was_changed(teacher_of, tmp_path, capsys):
    exported(tmp_path / "run", teacher_of("pixels, v"), "pixels, v", METHODS["scm"])
    file = tmp_path / "run" / "pipeline" / "distill.json"
    assert fewstep("check", tmp_path / "run") == 0
    assert "every check passed" in capsys.readouterr().out
    stored = json.loads(file.read_text())
    stored["checked"]["difference"] = 0.1
    file.write_text(json.dumps(stored))
    assert fewstep("check", tmp_path / "run") == 2
    assert 'distill.json has changed since it was written (its entry "sha256"' in capsys.readouterr().err
    del stored["sha256"]  # as the message says
    file.write_text(json.dumps(stored))
    assert fewstep("check", tmp_path / "run") == 1
    assert "failed: export against the run's student" in capsys.readouterr().out
    for damaged in (stored | {"times": []}, stored | {"calls": []}, stored | {"teacher": {}}):
        file.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"distill\.json is not readable .*; export the run again"):
            check_student(file.parent, CPU)


def test_fewstep_check_of_a_run_without_a_pipeline_says_so(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert fewstep("check", tmp_path) == 2
    assert "is a run without a pipeline; export its student first" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
@pytest.mark.sampled
def test_fewstep_check_reads_the_runs_sigma_data(sigma_data, folder_of, tmp_path):
    family, folder = folder_of("Stable Diffusion 3.5")
    teacher = find(TEACHERS, family).load(str(folder), CPU, sigma_data=sigma_data)
    stored = exported(tmp_path / "run", teacher, "Stable Diffusion 3.5", METHODS["scm"])
    assert stored["teacher"]["sigma_data"] == sigma_data
    assert all(result.passed for result in check_student(tmp_path / "run" / "pipeline", CPU))
