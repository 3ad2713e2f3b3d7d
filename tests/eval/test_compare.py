"""Whole comparisons of tiny pipelines: rows and their order, figures, and the cache."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import teachers.pocket
from eval.compare import compare
from eval.features.extractors import extractor
from eval.metrics.fid import frechet_distance, frechet_from_statistics, statistics
from eval.pipelines import cache
from eval.pipelines.generate import arguments
from eval.pipelines.loading import load_pipeline
from teachers.loading.embedded import EMBEDDED
from teachers.media import ANY_IMAGE
from teachers.support.checksums import read_sealed_json
from tests.commands import eval_main as main

KEYS = {
    "name", "method", "num_steps", "nfe", "latency_ms", "latency_ms_p5", "latency_ms_p95", "images_per_second",
    "peak_memory_mb", "frechet_distance", "samples", "prompt_agreement", "frechet_ratio", "training",
    "frechet_interval", "frechet_ratio_interval", "best", "precision", "recall", "density", "coverage", "real_images",
    "kid", "psnr_to_teacher", "lpips_to_teacher", "diversity_lpips", "denoiser_ms", "decoder_ms", "throughput",
    "load_seconds", "joules_per_image", "latency_compiled_ms", "prompt_agreement_interval", "seed", "clip_score",
    "clip_interval", "clip_best", "speedup", "call", "pipeline", "from_cache", "solver", "measured", "latency_repeats",
}  # fmt: skip


POCKET = {"prompts": "pocket", "features": "pocket", "reference": "pocket"}


TWO_CALLS = [{"num_steps": n, "call": {"num_inference_steps": n, "guidance_scale": 1.0}} for n in (1, 2)]


@pytest.fixture
def compare_quickly(quick_with_lpips):
    """`compare` with one few-step row of the teacher and few timed calls."""

    def run(runs, out, **options):
        return compare(runs, out, **quick_with_lpips | options)

    return run


def cached_rows(out: Path) -> set[str]:
    """The keys of the rows in a report's cache."""
    return {folder.name for folder in (out / "cache").iterdir()}


@pytest.mark.slow
def test_rows_figures_and_files_of_a_comparison(make_run, pocket_weights, tmp_path, text_pipeline, compare_quickly):
    runs = [make_run("one", evaluation=POCKET), make_run("two", method="scm", evaluation=POCKET, calls=TWO_CALLS)]
    report = compare_quickly(runs, tmp_path / "out", samples=11, batch_size=4, few_steps=(1, 2, 4, 8))
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
        assert row["frechet_interval"] is None, "11 samples are too few in 64 dimensions"
    assert rows[0]["psnr_to_teacher"] is None
    assert rows[5]["psnr_to_teacher"] > 5
    assert sum(row["best"] for row in rows) >= 1
    assert rows[0]["training"] is None
    assert rows[5]["training"]["steps"] == 600
    stored = read_sealed_json(tmp_path / "out/report.json")
    assert stored == json.loads(json.dumps(report))
    with Image.open(tmp_path / "out/grid.png") as grid:
        assert grid.width > 8 * 96
    with (tmp_path / "out/report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["frechet_distance"]) for line in lines] == [row["frechet_distance"] for row in rows]

    # The distance again, from images of the usual call in a single batch.
    pipe = load_pipeline(text_pipeline, torch.device("cpu"), torch.float32)
    prompts = teachers.pocket.balanced_prompts(11)
    images = ANY_IMAGE.received(pipe(**arguments(pipe, rows[0]["call"], prompts, range(11))))
    mean, covariance, _ = EMBEDDED["pocket"].reference()
    expected = frechet_from_statistics(*statistics(extractor("pocket")(images)), mean, covariance)
    assert rows[0]["frechet_distance"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_without_a_reference_rows_are_compared_with_the_teachers_samples(
    make_run, tmp_path, text_pipeline, compare_quickly
):
    report = compare_quickly([make_run()], tmp_path / "out", samples=6, batch_size=4)
    assert (
        report["frechet_column"]
        == "Frechet distance (pixels@6), biased (<192 dimensions), to the teacher's own samples"
    )
    assert any("from other noise" in note for note in report["notes"])
    assert any("cannot fill 192 dimensions" in note for note in report["notes"])
    assert report["rows"][0]["prompt_agreement"] is None
    pipe = load_pipeline(text_pipeline, torch.device("cpu"), torch.float32)
    prompts, call = teachers.pocket.balanced_prompts(6), report["rows"][0]["call"]
    features = [
        extractor("pixels")(ANY_IMAGE.received(pipe(**arguments(pipe, call, prompts, range(6), stream=stream))))
        for stream in ("samples", "reference")
    ]
    assert report["rows"][0]["frechet_distance"] == pytest.approx(frechet_distance(*features), rel=1e-3)


@pytest.mark.exhaustive
def test_unconditional_pipelines(make_run, unconditional_pipeline, tmp_path, compare_quickly):
    run = make_run(
        pipeline=unconditional_pipeline,
        teacher={"family": "unconditional", "path": str(unconditional_pipeline), "call": {"num_inference_steps": 3}},
        calls=[{"num_steps": 1, "call": {"num_inference_steps": 1}}],
        evaluation={"prompts": None, "features": "pixels", "reference": None},
        cost=None,
    )
    report = compare_quickly([run], tmp_path / "out", samples=5, batch_size=2, few_steps=(1, 2, 4, 8))
    assert [row["nfe"] for row in report["rows"]] == [3, 1, 2, 4, 8, 1]
    assert report["rows"][1]["solver"] == "DPM-Solver++"
    assert report["prompts"] == {"source": None, "first": None, "shown": None}
    assert "Distilled in" not in (tmp_path / "out/report.md").read_text()


@pytest.mark.exhaustive
def test_a_repeated_comparison_measures_only_changed_rows(make_run, tmp_path, capsys, compare_quickly):
    one, out = make_run("one"), tmp_path / "out"
    first = compare_quickly([one], out, samples=4)
    before = cached_rows(out)
    assert len(before) == 4, "two rows of the teacher, its reference samples, one row of the student"

    again = compare_quickly([one], out, samples=4)
    assert cached_rows(out) == before
    assert capsys.readouterr().err.count("measured before") == 4
    assert all(row.pop("from_cache") for row in again["rows"])
    assert not any(row.pop("from_cache") for row in first["rows"])
    assert again["rows"] == first["rows"]
    assert (out / "grid.png").exists()

    third = compare_quickly([one, make_run("two", calls=TWO_CALLS)], out, samples=4)
    assert [row["name"] for row in third["rows"] if not row["from_cache"]] == ["two, 2 steps"], "equal calls share rows"
    assert len(cached_rows(out)) == 4 + 1

    compare_quickly([one], out, samples=4, seed=1)
    assert len(cached_rows(out)) == 4 + 1 + 4


@pytest.mark.exhaustive
def test_adding_a_run_measures_only_that_run(make_run, tmp_path, text_pipeline, compare_quickly):
    one, out = make_run("one"), tmp_path / "out"
    compare_quickly([one], out, samples=4)
    trained = tmp_path / "trained"
    shutil.copytree(text_pipeline, trained)
    weights = trained / "unet/diffusion_pytorch_model.safetensors"
    save_file({k: v * 1.01 for k, v in load_file(weights).items()}, weights)
    teacher = {"path": str(text_pipeline), "call": {"num_inference_steps": 3, "guidance_scale": 2.0}}
    two = make_run("two", pipeline=trained, teacher=teacher, calls=TWO_CALLS)
    report = compare_quickly([one, two], out, samples=4)
    assert [row["from_cache"] for row in report["rows"]] == [True] * 3 + [False] * 2
    assert report["rows"][2]["frechet_distance"] != report["rows"][3]["frechet_distance"]

    moved = tmp_path / "elsewhere"
    shutil.copytree(two, moved)
    again = compare_quickly([one, moved], out, samples=4)
    assert all(row["from_cache"] for row in again["rows"]), "a row depends on a pipeline's content, not on its folder"


@pytest.mark.slow
def test_an_interruption_loses_only_the_current_row(make_run, tmp_path, compare_quickly):
    run, out, calls = make_run(), tmp_path / "out", []

    def interrupted(one, two):
        calls.append(len(one))
        if len(calls) == 2:  # in the second row with a diversity
            raise KeyboardInterrupt
        return (one - two).abs().mean(dim=(1, 2, 3))

    with pytest.raises(KeyboardInterrupt):
        compare_quickly([run], out, samples=4, lpips=interrupted)
    assert not (out / "report.html").exists()
    finished = cached_rows(out)
    assert len(finished) == 2, "the teacher's row and its reference samples"
    (out / "cache" / "0123.partial").mkdir()
    report = compare_quickly([run], out, samples=4)
    assert [row["from_cache"] for row in report["rows"]] == [True, False, False]
    assert finished < cached_rows(out)


@pytest.mark.exhaustive
def test_a_damaged_row_is_measured_again(make_run, tmp_path, compare_quickly):
    out = tmp_path / "out"
    compare_quickly([make_run()], out, samples=4)
    before = cached_rows(out)
    for number, name in enumerate(sorted(before)[:2]):
        next(iter(sorted((out / "cache" / name).iterdir()))).write_bytes(b"\0" * number)
        assert cache.load(out / "cache", name) is None
    compare_quickly([tmp_path / "runs/student"], out, samples=4)
    assert cached_rows(out) == before
    assert all(cache.load(out / "cache", name) for name in before)


def test_the_cache_returns_what_was_saved(tmp_path):
    images = (torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) % 256).float() / 255
    scores = {"clip_score": torch.rand(5), "prompt_agreement": torch.tensor([0, 1, torch.nan])}
    result = cache.Result(
        {"nfe": 0.1 + 0.2}, torch.rand(5, 3), torch.rand(3).double(), torch.rand(3, 3).double(), images, scores
    )
    cache.save(tmp_path, "row", result)
    back = cache.load(tmp_path, "row")
    assert back.figures["nfe"] == 0.1 + 0.2
    assert torch.equal(back.features, result.features)
    assert torch.equal(back.mean, result.mean)
    assert torch.equal(back.covariance, result.covariance)
    torch.testing.assert_close(back.images, images)
    torch.testing.assert_close(back.scores, scores, equal_nan=True, rtol=0, atol=0)
    assert cache.load(tmp_path, "other") is None


@pytest.fixture
def broken_run(make_run, text_pipeline, tmp_path):
    """A run whose teacher and student generate NaN from finite weights."""
    folder = tmp_path / "broken"
    shutil.copytree(text_pipeline, folder)
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    save_file(
        {k: v.sign() * 1e30 if k.startswith("decoder.conv") else v for k, v in load_file(weights).items()}, weights
    )
    return make_run(pipeline=folder)


@pytest.mark.slow
def test_broken_images_end_the_comparison_with_the_rows_name(broken_run, tmp_path, quick):
    with pytest.raises(ValueError, match=r"^teacher, 3 steps: 4 of 4 samples have features that are NaN"):
        compare([broken_run], tmp_path / "out", samples=4, **quick)


@pytest.mark.slow
def test_broken_images_end_the_command(broken_run, tmp_path, capsys):
    assert main([str(broken_run), "--out", str(tmp_path / "out"), "--samples", "4", "--size", "6"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: teacher, 3 steps: 4 of 4 samples have features that are NaN or infinite")
    assert not (tmp_path / "out/report.html").exists()


@pytest.mark.exhaustive
def test_command(make_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(make_run()), "--out", str(out), "--samples", "4", "--reference", "teacher"]) == 0
    printed = capsys.readouterr().out
    assert "student, 1 step" in printed
    assert str(out / "report.html") in printed


@pytest.mark.exhaustive
def test_prompts_from_a_file_are_repeated(make_run, tmp_path, quick):
    (tmp_path / "prompts.txt").write_text("a bag\n\n  a <b>coat</b>  \n")
    prompts = str(tmp_path / "prompts.txt")
    report = compare([make_run()], tmp_path / "out", samples=5, prompts=prompts, reference="teacher", **quick)
    assert report["prompts"]["first"] == ["a bag", "a <b>coat</b>", "a bag", "a <b>coat</b>", "a bag"]


@pytest.mark.slow
def test_different_usual_calls_are_noted(make_run, tmp_path, text_pipeline, quick):
    other = {"path": str(text_pipeline), "call": {"num_inference_steps": 3, "guidance_scale": 5.0}}
    report = compare([make_run("one"), make_run("two", teacher=other)], tmp_path / "out", samples=4, **quick)
    assert any(note.startswith("two has another usual call") for note in report["notes"])


@pytest.mark.slow
def test_ratios_to_a_baseline_and_intervals(make_run, pocket_weights, tmp_path, compare_quickly):
    runs = [make_run("one", evaluation=POCKET), make_run("two", evaluation=POCKET, calls=TWO_CALLS)]
    report = compare_quickly(runs, tmp_path / "out", samples=80, batch_size=40, baseline=runs[1])
    rows, base = report["rows"], next(row for row in report["rows"] if row["name"] == "two, 1 step")
    assert report["baseline"] == "two, 1 step"
    assert base["frechet_ratio"] == base["speedup"] == 1
    assert base["frechet_ratio_interval"] is None
    for row in rows:
        assert row["frechet_interval"][0] <= row["frechet_distance"] <= row["frechet_interval"][1]
        assert row["frechet_ratio"] == pytest.approx(row["frechet_distance"] / base["frechet_distance"])
        if row is not base:
            assert row["frechet_ratio_interval"][0] <= row["frechet_ratio"] <= row["frechet_ratio_interval"][1]
    equal = next(row for row in rows if row["name"] == "one, 1 step")
    assert equal["best"] == base["best"], "equal weights, call and noise"
    with pytest.raises(ValueError, match="must be one of the compared runs"):
        compare_quickly(runs[:1], tmp_path / "out", samples=80, batch_size=40, baseline=tmp_path)
