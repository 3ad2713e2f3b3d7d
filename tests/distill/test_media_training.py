"""Clips and sounds from a folder of files to a report: training, resuming, export, samples, evaluation."""

import dataclasses
import json
import re
import wave

import pytest
import torch

from distill.config.recipe import Recipe, load
from distill.config.sections import DataRecipe, TeacherRecipe, TrainRecipe
from distill.sample import sample_run, sample_to_file
from distill.train import train
from eval.compare import compare
from eval.config.options import Timing
from eval.vbench import write_clips
from teachers.loading.registry import load_teacher
from teachers.media import Audio, Video, from_record
from teachers.support.text import counted

CPU = torch.device("cpu")
ONE_CALL = Timing(repeats=1, seconds=0, min_repeats=1, part_repeats=1)


def write_samples(folder, medium, count=3):
    """Files that the medium reads, with captions: noise that becomes brighter or louder."""
    folder.mkdir()
    if isinstance(medium, Audio):  # files have at least 1,000 samples per second
        medium = dataclasses.replace(medium, rate=8000, samples=round(8000 * medium.seconds))
    generator = torch.Generator().manual_seed(0)
    ending = ".webp" if isinstance(medium, Video) else ".wav"
    for number in range(count):
        sample = torch.rand(1, *medium.shape, generator=generator) * torch.linspace(0.2, 0.9, medium.shape[-1])
        medium.save(sample if isinstance(medium, Video) else sample * 2 - 1, folder / f"{number}{ending}")
        (folder / f"{number}.txt").write_text(f"number {number}", encoding="utf-8")
    return folder


@pytest.fixture
def make_recipe(tiny_media, tmp_path):
    """Function make_recipe(pipeline, method, steps) -> (recipe of two steps from files, medium)."""

    def make(name, method, steps=2, **data):
        family, folder, size = tiny_media(name)
        medium = load_teacher(folder, size=size).medium
        files = tmp_path / "files"
        if not files.exists():
            write_samples(files, medium)
        settings = TrainRecipe(
            steps=steps,
            batch_size=2,
            checkpoint_every=1,
            evaluate_every=2,
            evaluate_samples=4,
            evaluate_teacher_steps=2,
        )
        return (
            Recipe(
                f"tiny-{method['name']}",
                TeacherRecipe(str(folder), family, 2.0, num_steps=2, size=size or None),
                method,
                output=str(tmp_path / "runs"),
                data=DataRecipe(images=str(files), **data),
                train=settings,
            ),
            medium,
        )

    return make


METHODS = [{"name": "dmd", "gan_weight": 1e-3, "r1_weight": 1.0}, {"name": "scm"}]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), list(zip(["Wan 2.1", "Stable Audio, short"], METHODS, strict=True)))
@pytest.mark.sampled
def test_a_run_from_files_to_a_report(name, method, make_recipe, tmp_path, capsys):
    recipe, medium = make_recipe(name, method, steps=1)
    train(recipe)
    recipe, _ = make_recipe(name, method)
    folder = train(recipe)  # resumes
    assert "resuming" in capsys.readouterr().out
    record = json.loads((folder / "distill.json").read_text())
    assert from_record(record["medium"]) == medium
    assert record["evaluation"]["features"] == ("motion" if isinstance(medium, Video) else "spectrum")
    history = [json.loads(line) for line in (recipe.folder / "history.jsonl").read_text().splitlines()]
    assert all(distance is not None for distance in history[-1]["held_out_frechet"].values())
    previews = sorted(file.name for file in (recipe.folder / "samples").iterdir())
    assert "00000002.png" in previews
    assert any(re.fullmatch(r"00000002(\.webp|-01\.wav)", file) for file in previews)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"pipeline_tag: {medium.tag}" in card and f"Each sample has {medium.size}; `" in card

    samples, made = sample_run(recipe.folder, ["number 1"], 2, None, 0, CPU)
    assert made == medium and samples.shape == (2, *medium.shape) and samples.isfinite().all()
    out = tmp_path / ("a.gif" if isinstance(medium, Video) else "a.wav")
    sample_to_file(recipe.folder, ["number 1"], 2, None, 0, out)
    written = sorted(tmp_path.glob("a*"))
    assert len(written) == (1 if isinstance(medium, Video) else 2)
    if isinstance(medium, Audio):
        with wave.open(str(written[0])) as sound:
            assert (sound.getframerate(), sound.getnframes()) == (medium.rate, medium.samples)

    if isinstance(medium, Video):
        (tmp_path / "prompts.txt").write_text("number 1\nnumber 2\n")
        for written, there in ((4, 0), (1, 3)):
            message = write_clips(recipe.folder, tmp_path / "vbench", str(tmp_path / "prompts.txt"), 2, batch_size=3)
            assert f"{counted(written, 'clip')} written" in message and f"{there} already there" in message
            names = sorted(file.name for file in (tmp_path / "vbench").iterdir())
            assert names == ["number 1-0.mp4", "number 1-1.mp4", "number 2-0.mp4", "number 2-1.mp4"]
            first = medium.read(tmp_path / "vbench" / "number 1-0.mp4").values
            (tmp_path / "vbench" / ".number 1-0.mp4.99.tmp").write_bytes(b"left by a process that was killed")
            (tmp_path / "vbench" / "number 1-0.mp4").unlink()
        assert not torch.equal(first, medium.read(tmp_path / "vbench" / "number 1-1.mp4").values)
    else:
        with pytest.raises(ValueError, match=r"RUN must make clips for VBench, tiny-.* makes sounds"):
            write_clips(recipe.folder, tmp_path / "vbench", "pocket")

    report = compare([recipe.folder], tmp_path / "report", samples=3, batch_size=2, timing=ONE_CALL, few_steps=(2,))
    assert report["medium"]["name"] == medium.name
    assert all(row["times_real_time"] > 0 for row in report["rows"])
    assert all(row["first_sample_seconds"] > row["load_seconds"] > 0 for row in report["rows"])
    keys = {metric["key"] for metric in report["metrics"]}
    assert (
        {"frame_change", "flicker", "change_to_teacher"}
        if isinstance(medium, Video)
        else {"spectral_distance_to_teacher"}
    ) <= keys
    assert not keys & {"lpips_to_teacher", "psnr_to_teacher", "diversity_lpips", "clip_score"}
    page = (tmp_path / "report" / "report.html").read_text()
    rows = len(report["rows"])
    if isinstance(medium, Video):
        assert page.count('<img src="data:image/webp;base64,') == 3 * rows
        assert "Clips/s" in page
    else:
        assert page.count("<audio controls") == 3 * rows == page.count('src="data:audio/wav;base64,')
        assert "Sounds/s" in page
    assert "First sample (s)" in page and "× real time" in page and "per image" not in page and "Images/s" not in page
    again = compare([recipe.folder], tmp_path / "report", samples=3, batch_size=2, timing=ONE_CALL, few_steps=(2,))
    assert all(row["from_cache"] for row in again["rows"])
    assert (tmp_path / "report" / "grid.png").is_file()


@pytest.mark.parametrize("name", ["video_dmd", "video_scm"])
@pytest.mark.exhaustive
def test_a_pocket_video_recipe_from_its_name_to_a_report(name, pocket_video, tmp_path):
    few = ["train.steps=2", "train.batch_size=2", "train.evaluate_every=2", "train.evaluate_samples=4"]
    few += ["train.evaluate_teacher_steps=2", "teacher.num_steps=2", "train.tracker=none", f"output={tmp_path}"]
    recipe = load(f"pocket/{name}", few + ["method.adaptation_steps=1"] * (name == "video_scm"))
    train(recipe)
    card = (recipe.folder / "pipeline" / "README.md").read_text(encoding="utf-8")
    assert "9 frames of 32 x 32 pixels at 8 per second" in card
    if name == "video_dmd":  # reports of both methods are alike
        check_report(recipe.folder, tmp_path / "report")


def check_report(run, folder):
    """A report of a run with the pocket video teacher's features, reference and prompts."""
    report = compare([run], folder, samples=4, batch_size=4, timing=ONE_CALL, few_steps=(2,))
    keys = {metric["key"] for metric in report["metrics"]}
    assert {"frechet_distance", "prompt_agreement", "arithmetic_agreement", "frame_change", "flicker"} <= keys
    assert report["features"] == report["reference"] == "pocket-video" == report["prompts"]["source"]
    for row in report["rows"]:
        assert row["num_steps"] >= 1 and row["frechet_distance"] > 0
        assert 0 <= row["prompt_agreement"] <= row["arithmetic_agreement"] <= 1
