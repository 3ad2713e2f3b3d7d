"""The whole comparison on tiny pipelines: rows and their order, figures, the cache, and what users can get wrong."""

import functools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eval.pipelines.measure
import teachers.pocket
from eval.compare import compare
from eval.features.extractors import extractor
from eval.metrics.fid import frechet_distance, frechet_from_statistics, statistics
from eval.pipelines import cache
from eval.pipelines.generate import arguments, images_of, load_pipeline
from tests.commands import eval_main as main

KEYS = {
    "name", "method", "num_steps", "nfe", "latency_ms", "latency_ms_p5", "latency_ms_p95", "images_per_second",
    "peak_memory_mb", "frechet_distance", "samples", "prompt_agreement", "frechet_ratio", "training",
    "frechet_interval", "frechet_ratio_interval", "best", "precision", "recall", "density", "coverage", "real_images",
    "kid", "psnr_to_teacher", "lpips_to_teacher", "diversity_lpips", "denoiser_ms", "decoder_ms", "throughput",
    "load_seconds", "joules_per_image", "latency_compiled_ms", "prompt_agreement_interval", "seed",
}  # fmt: skip
POCKET = {"prompts": "pocket", "features": "pocket", "reference": "pocket"}
TWO_CALLS = [{"num_steps": n, "call": {"num_inference_steps": n, "guidance_scale": 1.0}} for n in (1, 2)]


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr(
        eval.pipelines.measure,
        "latency",
        functools.partial(eval.pipelines.measure.latency, repeats=3, least=1, seconds=0.1),
    )


@pytest.fixture(autouse=True)
def cheap_lpips(monkeypatch):
    """A stand-in for LPIPS, whose weights are not everywhere."""
    monkeypatch.setattr(
        "eval.compare.perceptual", lambda device: lambda one, two: (one - two).abs().mean(dim=(1, 2, 3))
    )


@pytest.fixture
def two_teacher_rows(monkeypatch):
    """Only the usual call and one step, where a test is not about the rows."""
    monkeypatch.setattr("eval.pipelines.jobs.FEW_STEPS", (1,))


@pytest.fixture
def measured(monkeypatch, two_teacher_rows) -> list[str]:
    """The names of the rows that were measured and not taken from the cache."""
    names = []

    def spy(job, *rest, original=eval.pipelines.measure.measure):
        names.append(job.name)
        return original(job, *rest)

    monkeypatch.setattr("eval.compare.measure", spy)
    return names


def test_end_to_end(make_run, pocket_weights, tmp_path, text_pipeline):
    runs = [make_run("one", evaluation=POCKET), make_run("two", method="scm", evaluation=POCKET, calls=TWO_CALLS)]
    report = compare(runs, tmp_path / "out", samples=11, batch_size=4)
    rows = report["rows"]
    assert [(row["method"], row["num_steps"], row["nfe"]) for row in rows] == [
        ("teacher", 3, 6), ("teacher", 1, 2), ("teacher", 2, 4), ("teacher", 4, 8), ("teacher", 8, 16),
        ("dmd", 1, 1), ("scm", 1, 1), ("scm", 2, 2),
    ]  # fmt: skip
    assert rows[1]["name"] == "teacher, DPM-Solver++, 1 step"
    assert rows[-1]["name"] == "two, 2 steps"
    assert report["frechet_column"] == "Frechet distance (pocket@11), biased (<64 dimensions)"
    for row in rows:
        assert set(row) >= KEYS
        assert row["latency_ms_p5"] <= row["latency_ms"] <= row["latency_ms_p95"]
        assert row["samples"] == 11
        assert 0 <= row["prompt_agreement"] <= 1
        assert row["frechet_ratio"] == pytest.approx(row["frechet_distance"] / rows[0]["frechet_distance"])
        assert row["images_per_second"] > 0
        assert row["peak_memory_mb"] > 10
        assert row["denoiser_ms"] > 0
        assert row["decoder_ms"] > 0
        assert [entry["batch_size"] for entry in row["throughput"]] == [1, 4]
        assert row["diversity_lpips"] > 0
        assert row["frechet_interval"] is None, "11 samples cannot tell in 64 dimensions"
    assert rows[0]["psnr_to_teacher"] is None
    assert rows[5]["psnr_to_teacher"] > 5
    assert sum(row["best"] for row in rows) >= 1
    assert rows[0]["training"] is None
    assert rows[5]["training"]["steps"] == 600
    stored = json.loads((tmp_path / "out/report.json").read_text())
    assert stored == json.loads(json.dumps(report))
    with Image.open(tmp_path / "out/grid.png") as picture:
        assert picture.width > 8 * 96

    # The distance again, by hand: the usual row's images, drawn in one batch.
    pipe = load_pipeline(text_pipeline, torch.device("cpu"), torch.float32)
    prompts = teachers.pocket.balanced_prompts(11)
    images = images_of(pipe(**arguments(pipe, rows[0]["call"], prompts, range(11))))
    mean, covariance = teachers.pocket.reference()
    expected = frechet_from_statistics(*statistics(extractor("pocket")(images)), mean, covariance)
    assert rows[0]["frechet_distance"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("two_teacher_rows")
def test_without_a_reference_the_teachers_own_samples_are_it(make_run, tmp_path, text_pipeline):
    report = compare([make_run()], tmp_path / "out", samples=6, batch_size=4)
    assert (
        report["frechet_column"]
        == "Frechet distance (pixels@6), biased (<192 dimensions), to the teacher's own samples"
    )
    assert any("drawn from other seeds" in note for note in report["notes"])
    assert any("cannot fill 192 dimensions" in note for note in report["notes"])
    assert report["rows"][0]["prompt_agreement"] is None
    pipe = load_pipeline(text_pipeline, torch.device("cpu"), torch.float32)
    prompts, call = teachers.pocket.balanced_prompts(6), report["rows"][0]["call"]
    drawn = [
        extractor("pixels")(images_of(pipe(**arguments(pipe, call, prompts, range(6), stream=stream))))
        for stream in ("samples", "reference")
    ]
    assert report["rows"][0]["frechet_distance"] == pytest.approx(frechet_distance(*drawn), rel=1e-3)


def test_unconditional_pipelines(make_run, unconditional_pipeline, tmp_path):
    run = make_run(
        pipeline=unconditional_pipeline,
        teacher={"family": "unconditional", "path": str(unconditional_pipeline), "call": {"num_inference_steps": 3}},
        calls=[{"num_steps": 1, "call": {"num_inference_steps": 1}}],
        evaluation={"prompts": None, "features": "pixels", "reference": None},
        cost=None,
    )
    report = compare([run], tmp_path / "out", samples=5, batch_size=2)
    assert [row["nfe"] for row in report["rows"]] == [3, 1, 2, 4, 8, 1]
    assert report["rows"][1]["solver"] == "DPM-Solver++"
    assert report["prompts"] == {"source": None, "first": None}
    assert "Distilled in" not in (tmp_path / "out/report.md").read_text()


def test_a_second_run_measures_only_what_changed(make_run, tmp_path, measured, capsys):
    one, out = make_run("one"), tmp_path / "out"
    first = compare([one], out, samples=4)
    count = len(measured)
    assert count == 4, "two of the teacher, its reference, one of the student"

    again = compare([one], out, samples=4)
    assert len(measured) == count
    assert "measured before" in capsys.readouterr().err
    drop = ("from_cache",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in again["rows"]] == [
        {k: v for k, v in row.items() if k not in drop} for row in first["rows"]
    ]
    assert (tmp_path / "out/grid.png").exists()

    compare([one, make_run("two", calls=TWO_CALLS)], out, samples=4)
    assert measured[count:] == ["two, 2 steps"], "the same weights called the same way are the same row"

    compare([one], out, samples=4, seed=1)
    assert len(measured) == count + 1 + 4


def test_adding_a_run_measures_that_run(make_run, tmp_path, measured, text_pipeline):
    """A student with weights of its own beside one that was measured: its rows, and no other's."""
    one, out = make_run("one"), tmp_path / "out"
    compare([one], out, samples=4)
    before = len(measured)
    trained = tmp_path / "trained"
    shutil.copytree(text_pipeline, trained)
    weights = trained / "unet/diffusion_pytorch_model.safetensors"
    save_file({k: v * 1.01 for k, v in load_file(weights).items()}, weights)
    teacher = {"path": str(text_pipeline), "call": {"num_inference_steps": 3, "guidance_scale": 2.0}}
    two = make_run("two", pipeline=trained, teacher=teacher, calls=TWO_CALLS)
    report = compare([one, two], out, samples=4)
    assert measured[before:] == ["two, 1 step", "two, 2 steps"]
    assert [row["from_cache"] for row in report["rows"]] == [True] * 3 + [False] * 2
    assert report["rows"][2]["frechet_distance"] != report["rows"][3]["frechet_distance"]

    moved = tmp_path / "elsewhere"
    shutil.copytree(two, moved)
    compare([one, moved], out, samples=4)
    assert len(measured) == before + 2, "what counts is what a folder holds, not where it lies"


def test_weights_of_features_count_by_their_content(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("1")
    first = cache.content(str(tmp_path / "model"))
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    assert cache.content(str(tmp_path / "copy")) == first
    (tmp_path / "model/weights").write_text("2")
    assert cache.content(str(tmp_path / "model")) != first
    assert cache.content("owner/name") == "owner/name"
    assert cache.content(None) is None


def test_a_kill_loses_only_the_row_being_made(make_run, tmp_path, measured, monkeypatch):
    one, out = make_run(), tmp_path / "out"

    def killed(cache_folder, name, result, original=cache.save):
        if len(measured) == 2:
            (cache_folder / f".{name}.tmp").mkdir()
            raise KeyboardInterrupt
        original(cache_folder, name, result)

    with monkeypatch.context() as patched:
        patched.setattr(cache, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            compare([one], out, samples=4)
    assert not (out / "report.html").exists()
    compare([one], out, samples=4)
    assert len(measured) == 2 + 3
    assert not list((out / "cache").glob(".*.tmp"))


def test_a_damaged_row_is_made_again(make_run, tmp_path, measured):
    out = tmp_path / "out"
    compare([make_run()], out, samples=4)
    for number, file in enumerate(sorted((out / "cache").glob("*/*"))[:2]):
        file.write_bytes(b"\0" * number)
    before = len(measured)
    compare([tmp_path / "runs/student"], out, samples=4)
    assert before < len(measured) <= before + 2


def test_changed_weights_are_another_row(text_pipeline, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(text_pipeline, folder)
    print_ = cache.fingerprint(folder)
    (folder / "README.md").write_text("a card")
    (folder / "distill.json").write_text("{}")
    assert cache.fingerprint(folder) == print_
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert cache.fingerprint(folder) != print_


def test_the_cache_gives_back_what_it_got(tmp_path):
    images = (torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) % 256).float() / 255
    result = cache.Result(
        {"nfe": 0.1 + 0.2}, torch.rand(5, 3), torch.rand(3).double(), torch.rand(3, 3).double(), images
    )
    cache.save(tmp_path, "row", result)
    back = cache.load(tmp_path, "row")
    assert back.figures["nfe"] == 0.1 + 0.2
    assert torch.equal(back.features, result.features)
    assert torch.equal(back.mean, result.mean)
    assert torch.equal(back.covariance, result.covariance)
    torch.testing.assert_close(back.images, images)
    assert cache.load(tmp_path, "other") is None


def test_broken_images_are_named(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.pipelines.measure.images_of", lambda output: torch.full((4, 3, 8, 8), math.nan))
    with pytest.raises(ValueError, match=r"^teacher, 3 steps: 4 of 4 samples have features that are NaN"):
        compare([make_run()], tmp_path / "out", samples=4)


def test_broken_images_end_the_command(make_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("eval.pipelines.measure.images_of", lambda output: torch.full((4, 3, 8, 8), math.nan))
    assert main([str(make_run()), "--out", str(tmp_path / "out"), "--samples", "4", "--size", "6"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: teacher, 3 steps: 4 of 4 samples have features that are NaN or infinite")
    assert not (tmp_path / "out/report.html").exists()


@pytest.mark.usefixtures("two_teacher_rows")
def test_command(make_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(make_run()), "--out", str(out), "--samples", "4", "--reference", "teacher"]) == 0
    printed = capsys.readouterr().out
    assert "student, 1 step" in printed
    assert str(out / "report.html") in printed


def spoil(run: Path, **changes) -> Path:
    file = run / "pipeline/distill.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return run


MISTAKES = {
    "no folder": (lambda make, tmp: [tmp / "nowhere"], [], "does not exist"),
    "no pipeline": (lambda make, tmp: [tmp], [], "holds no pipeline"),
    "other format": (lambda make, tmp: [make(format=7)], [], "not of format 1"),
    "no calls": (lambda make, tmp: [make(calls=[])], [], "lists no calls"),
    "no method": (lambda make, tmp: [make(method=None)], [], 'lacks the entry "method"'),
    "no steps": (
        lambda make, tmp: [make(teacher={"path": "x", "call": {}})], [], 'lacks the entry "num_inference_steps"',
    ),
    "teacher gone": (
        lambda make, tmp: [make(teacher={"path": str(tmp), "call": {"num_inference_steps": 2}})], [],
        "no diffusers pipeline",
    ),
    "two teachers": (
        lambda make, tmp: [make("a"), make("b", teacher={"path": "x", "call": {"num_inference_steps": 2}})], [],
        "runs of one teacher at a time",
    ),
    "two features": (
        lambda make, tmp: [make("a"), make("b", evaluation={"prompts": "pocket", "features": "inception"})], [],
        "say which to use with --features",
    ),
    "stranger in a call": (
        lambda make, tmp: [make(calls=[{"num_steps": 1, "call": {"steps": 1}}])], [], 'takes no argument "steps"',
    ),
    "no prompts file": (lambda make, tmp: [make()], ["--prompts", "missing.txt"], "no file of prompts"),
    "prompts wanted": (lambda make, tmp: [make()], ["--prompts", "none"], "got no prompts"),
    "features": (lambda make, tmp: [make()], ["--features", "dino"], "unknown feature extractor"),
    "reference": (lambda make, tmp: [make()], ["--reference", "missing.npz"], "there is no reference"),
    "samples": (lambda make, tmp: [make()], ["--samples", "1"], "at least 2 samples"),
    "device": (lambda make, tmp: [make()], ["--device", "abacus"], "cannot be used here"),
    "precision": (lambda make, tmp: [make()], ["--precision", "int4"], "there is no precision"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_and_exit_code_2(mistake, make_run, tmp_path, capsys):
    runs, options, sentence = MISTAKES[mistake]
    out = tmp_path / "out"
    assert main([*map(str, runs(make_run, tmp_path)), "--out", str(out), *options]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not out.exists()


def test_mistakes_in_files(make_run, tmp_path, capsys):
    run, out = make_run(), ["--out", str(tmp_path / "out"), "--samples", "4"]
    np.savez(tmp_path / "three.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert main([str(run), "--reference", str(tmp_path / "three.npz"), *out]) == 2
    assert 'has 3 dimensions and the features "pixels" have 192' in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main([str(run), "--prompts", str(tmp_path / "empty.txt"), *out]) == 2
    assert "holds no prompts" in capsys.readouterr().err
    (run / "pipeline/distill.json").write_text("{")
    assert main([str(run), *out]) == 2
    assert "not valid JSON" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([str(run), "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("two_teacher_rows")
def test_prompts_from_a_file_go_round(make_run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a bag\n\n  a <b>coat</b>  \n")
    report = compare(
        [make_run()], tmp_path / "out", samples=5, prompts=str(tmp_path / "prompts.txt"), reference="teacher"
    )
    assert report["prompts"]["first"] == ["a bag", "a <b>coat</b>", "a bag", "a <b>coat</b>", "a bag"]


@pytest.mark.usefixtures("two_teacher_rows")
def test_another_usual_call_is_noted(make_run, tmp_path, text_pipeline):
    other = {"path": str(text_pipeline), "call": {"num_inference_steps": 3, "guidance_scale": 5.0}}
    report = compare([make_run("one"), make_run("two", teacher=other)], tmp_path / "out", samples=4)
    assert any(note.startswith("two names another usual call") for note in report["notes"])


@pytest.mark.usefixtures("two_teacher_rows")
def test_ratios_over_a_baseline_and_intervals(make_run, pocket_weights, tmp_path):
    runs = [make_run("one", evaluation=POCKET), make_run("two", evaluation=POCKET, calls=TWO_CALLS)]
    report = compare(runs, tmp_path / "out", samples=80, batch_size=40, baseline=runs[1])
    rows, base = report["rows"], next(row for row in report["rows"] if row["name"] == "two, 1 step")
    assert report["baseline"] == "two, 1 step"
    assert base["frechet_ratio"] == base["speedup"] == 1
    assert base["frechet_ratio_interval"] is None
    for row in rows:
        assert row["frechet_interval"][0] <= row["frechet_distance"] <= row["frechet_interval"][1]
        assert row["frechet_ratio"] == pytest.approx(row["frechet_distance"] / base["frechet_distance"])
        if row is not base:
            assert row["frechet_ratio_interval"][0] <= row["frechet_ratio"] <= row["frechet_ratio_interval"][1]
    same = next(row for row in rows if row["name"] == "one, 1 step")
    assert same["best"] == base["best"], "the same weights, called the same way, on the same noise"
    with pytest.raises(ValueError, match="is none of the runs compared"):
        compare(runs[:1], tmp_path / "out", samples=80, batch_size=40, baseline=tmp_path)


def test_help_and_usage_from_a_shell():
    told = subprocess.run([sys.executable, "-m", "eval", "--help"], capture_output=True, text=True, check=True).stdout
    for option in (
        "--out",
        "--samples",
        "--batch-size",
        "--seed",
        "--device",
        "--features",
        "--reference",
        "--prompts",
        "--baseline",
        "--compile",
        "--inception-weights",
    ):
        assert option in told
    assert subprocess.run([sys.executable, "-m", "eval"], capture_output=True, check=False).returncode == 2


def test_eval_never_imports_distill():
    for file in Path(eval.pipelines.measure.__file__).parents[1].rglob("*.py"):
        for line in file.read_text().splitlines():
            assert not line.strip().startswith(("import distill", "from distill")), f"{file}: {line}"
