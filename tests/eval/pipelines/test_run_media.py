"""What runs sample: from distill.json or the family; comparisons of different media; cached clips and sounds."""

import json
from pathlib import Path

import pytest
import torch

from distill.sample import sample_to_file
from eval.config.media_names import check_features
from eval.config.options import Options
from eval.features.extractors import Extractor
from eval.metrics.context import MetricContext
from eval.metrics.registry import installed_metrics
from eval.pipelines import cache
from eval.pipelines.inputs import read_inputs
from eval.pipelines.run_media import usual_medium
from eval.pipelines.runs import read_run
from eval.pipelines.signatures import pipeline_class
from teachers.media import ANY_IMAGE, Audio, Image, Video, from_record, to_record

CLIP = Video(frames=9, height=16, width=32, rate=16.0)
SOUND = Audio(channels=2, samples=800, rate=8000)


@pytest.mark.parametrize("medium", [CLIP, SOUND, Image(8, 8)], ids=repr)
def test_a_record_gives_the_medium(medium):
    assert from_record(json.loads(json.dumps(to_record(medium)))) == medium
    assert from_record(None) == ANY_IMAGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "smell"}, '"medium" must be an object with the name image, video, audio'),
        ({"frames": None}, 'must have the number "frames"'),
        ({"frames": True}, 'must have the number "frames"'),
        ({"frames": 9.0}, 'must have the number "frames"'),
        ({"frames": 0}, "must be above 0 and at most"),
        ({"height": 10**9}, '"height" of "medium" must be above 0 and at most'),
        ({"rate": float("nan")}, '"rate" of "medium" must be above 0'),
    ],
)
def test_a_wrong_record_is_an_error_with_the_file(make_run, change, message):
    run = make_run(medium=to_record(CLIP) | change)
    with pytest.raises(ValueError, match=r"distill\.json: .*" + message):
        read_run(run)


@pytest.mark.slow
def test_a_pipeline_of_a_stranger_has_the_medium_of_its_family(tiny_media, text_pipeline):
    _, folder, _ = tiny_media("Stable Audio")
    medium = usual_medium(folder, pipeline_class(folder))
    assert (medium.name, medium.rate) == ("audio", 400)
    assert usual_medium(text_pipeline, pipeline_class(text_pipeline)) == ANY_IMAGE


def test_runs_of_different_media_are_not_compared(make_run, tmp_path):
    runs = [make_run("clips", medium=to_record(CLIP)), make_run("sounds", medium=to_record(SOUND)), make_run("images")]
    for pair in (runs[:2], runs[1:]):
        with pytest.raises(ValueError, match="all runs of a comparison must make samples of one kind and size: "):
            read_inputs(Options(pair, tmp_path / "out"))
    with pytest.raises(ValueError, match="--size is for images, got 8 for clips; omit it"):
        read_inputs(Options(runs[:1], tmp_path / "out", size=8))
    chosen = {"prompts": str(tmp_path / "prompts.txt"), "features": "motion"}
    (tmp_path / "prompts.txt").write_text("a coat\n")
    with pytest.raises(ValueError, match="--score is for images, got a comparison of clips; omit it"):
        read_inputs(Options(runs[:1], tmp_path / "out", score=["pickscore"], **chosen))
    with pytest.raises(ValueError, match="--clap is for sounds, got a comparison of clips; omit it"):
        read_inputs(Options(runs[:1], tmp_path / "out", clap="x", **chosen))
    with pytest.raises(ValueError, match="--clip is for images and clips, got a comparison of sounds; omit it"):
        read_inputs(Options(runs[1:2], tmp_path / "out", clip="x", **chosen | {"features": "spectrum"}))
    with pytest.raises(
        ValueError, match='unknown feature extractor "pixels" for clips; choose one of motion, pocket-video, frames='
    ):
        read_inputs(Options(runs[:1], tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "medium", "message"),
    [
        ("motion", "image", 'the features "motion" are not for images; choose one of pocket, clean'),
        ("spectrum", "video", 'the features "spectrum" are not for clips'),
        ("clean", "audio", 'unknown feature extractor "clean" for sounds'),
        ("i3d", "video", "must be given as i3d=FILE"),
    ],
)
def test_features_of_another_medium_are_refused(name, medium, message):
    with pytest.raises(ValueError, match=message):
        check_features(name, medium)


@pytest.mark.parametrize("medium", [CLIP, SOUND], ids=["video", "audio"])
def test_cached_samples_are_those_that_were_measured(medium, tmp_path):
    steps = 255 if medium.name == "video" else 32767
    samples = (torch.rand(2, *medium.shape) * steps).round() / steps
    samples = samples if medium.name == "video" else -samples
    features = torch.zeros(2, 3)
    cache.save(tmp_path, "a", cache.Result({}, features, features[0].double(), torch.eye(3).double(), samples))
    torch.testing.assert_close(cache.load(tmp_path, "a").images, samples)
    (tmp_path / "a" / "samples.safetensors").write_bytes(b"damaged")
    assert cache.load(tmp_path, "a") is None


def test_metrics_are_those_of_the_medium():
    keys = {
        medium: {metric.key for metric in installed_metrics().of(medium).classes}
        for medium in ("image", "video", "audio")
    }
    assert "flicker" in keys["video"] and "flicker" not in keys["image"] | keys["audio"]
    assert {"kid", "psnr_to_teacher", "clip_score"} <= keys["image"] and not {"kid", "clip_score"} & keys["audio"]
    everywhere = {"frechet_distance", "precision", "recall", "density", "coverage", "prompt_agreement"}
    assert keys["audio"] == everywhere | {"spectral_distance_to_teacher", "clap_score", "arithmetic_agreement"}


def test_help_has_the_word_of_the_medium():
    classes = {metric.key: metric for metric in installed_metrics().classes}
    spectrum = Extractor("spectrum", lambda sounds: sounds, medium=SOUND)
    context = MetricContext(9, 0, torch.device("cpu"), spectrum, 2, medium=SOUND)
    assert "reference sounds" in classes["coverage"](context).describe()["help"]


@pytest.mark.parametrize(
    ("medium", "out", "message"),
    [
        (CLIP, "a.png", r"--out must end in \.mp4, \.webp or \.gif, got a\.png"),
        (SOUND, "a.mp3", r"--out must end in \.wav, got a\.mp3"),
        (None, "a.wav", r"--out must end in \.png, \.jpg or \.webp, got a\.wav"),
    ],
)
def test_the_ending_of_out_is_checked_before_weights_are_loaded(make_run, medium, out, message, tmp_path):
    changes = {} if medium is None else {"medium": to_record(medium)}
    with pytest.raises(ValueError, match=message):
        sample_to_file(make_run(**changes), ["a"], 1, None, 0, Path(out))
